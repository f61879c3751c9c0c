"""The examples, run as a user runs them: against a router, and with a slime that is a stub."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from slime_router.client import Row
from slime_router.integrations import slime as integration
from slime_router.testing import FakeWorker, Script
from tests.integration.gateway import Served, served
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def example(name: str) -> Any:
    """The module, loaded from its file."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def solve_the_first(body: dict[str, Any]) -> Script:
    """A model that knows what to do with the first task, and only with that."""
    text = tiny_tokenizer().decode(body["input_ids"], skip_special_tokens=True)
    reply = "I do not know."
    if "12 * 7 + 5 = 89" in text:
        reply = "ANSWER(89)"
    elif "12 * 7" in text:
        reply = "CALC(12 * 7 + 5) "
    tokenizer = tiny_tokenizer()
    return Script(ids=[*tokenizer.encode(reply).tolist(), min(tokenizer.eos_ids)])


async def run(name: str, *args: str) -> tuple[int, str, str]:
    """Exit status, output and errors of an example's command line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / f"{name}.py"),
        *args,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 200)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def url_of(router: Served) -> str:
    return str(router.http._base_url)


class TestGrpoRollout:
    async def test_every_sampled_token_is_trained(self):
        """Twelve rollouts at once, with a worker whose words mean nothing."""
        async with served() as (router, worker):
            status, output, errors = await run("grpo_rollout", "--router", url_of(router))
            assert (status, errors) == (0, "")
            assert len(worker.requests) == 3 * 4 * 3
            assert "Every sampled token is trained, once." in output
            assert output.count("/3 ") == 3, "a row for the last rollout of each group"
            assert len(router.gateway.store.sessions) == 0, "the trainer deletes what it has"

    async def test_the_calculator_is_used_and_the_right_answer_rewarded(self):
        """It asks for the value, gets it, and answers: two turns, and a reward of 1."""
        async with served({"reply": solve_the_first}) as (router, worker):
            status, output, errors = await run(
                *("grpo_rollout", "--router", url_of(router)),
                *("--group-size", "1", "--max-turns", "4"),
            )
        assert (status, errors) == (0, "")
        assert len(worker.requests) == 2 + 4 + 4
        rewards = [line.split()[3] for line in output.splitlines() if "/0/0 " in line]
        assert rewards == ["1.000"]

    async def test_without_a_router_it_says_so_in_one_line(self):
        async with served() as (router, _):
            url = url_of(router)
        status, output, errors = await run("grpo_rollout", "--router", url)
        assert (status, output) == (1, "")
        assert errors.startswith("grpo_rollout: No answer from http://127.0.0.1:")
        assert errors.count("\n") == 1

    @pytest.mark.parametrize(
        ("reply", "observation"),
        [
            ("CALC(2*(3+4))", "2*(3+4) = 14"),
            ("so CALC( 7 / 2 ) then", " 7 / 2  = 3.5"),
            ("CALC(-3) ", "-3 = -3"),
        ],
    )
    def test_a_sum_is_computed(self, reply, observation):
        assert example("grpo_rollout").observe(reply) == observation

    @pytest.mark.parametrize(
        "reply",
        ["", "CALC", "CALC()", "CALC(1/0)", "CALC(__import__('os'))", "CALC(9**9)", "CALC(\x00)"],
    )
    def test_whatever_a_model_writes_there_is_an_answer_to_it(self, reply):
        """Nothing that it writes is run, and nothing ends the rollout."""
        assert "ANSWER(<number>)" in example("grpo_rollout").observe(reply)

    def test_only_the_right_number_earns_one(self):
        score = example("grpo_rollout").score
        assert score(["CALC(1)", "ANSWER(16)"], 16) == 1
        assert score(["ANSWER(16)", "ANSWER(17)"], 16) < 1
        assert score([], 16) == 0
        assert score(["ab"], 16) > 0
        assert score(["äö"], 16) == 0


@dataclass
class Sample:
    """slime's sample: the fields that its `from_dict` knows, and how it treats others."""

    class Status(Enum):
        PENDING = "pending"
        COMPLETED = "completed"
        TRUNCATED = "truncated"
        ABORTED = "aborted"
        FAILED = "failed"

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, str]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: str | None = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    weight_versions: list[str] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    rollout_routed_experts: Any = None
    remove_sample: bool = False
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    session_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "status": self.status.value}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Sample:
        values = {**values, "status": Sample.Status(values["status"])}
        sample = Sample()
        for name, value in values.items():
            setattr(sample, name, value)
        return sample

    def get_reward_value(self, args: Namespace) -> Any:
        return self.reward if not args.reward_key else self.reward[args.reward_key]  # type: ignore[index] # a dict


class State:
    """slime's state of a rollout: one for the arguments, with the flag that an abort sets."""

    def __init__(self, args: Namespace) -> None:
        self._args = args

    @property
    def aborted(self) -> bool:
        return bool(getattr(self._args, "is_aborted", False))


@pytest.fixture
def slime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, with a slime whose samples are those above."""
    types, rollout = ModuleType("slime.utils.types"), ModuleType("slime.rollout.sglang_rollout")
    types.Sample = Sample  # type: ignore[attr-defined] # a module of its own
    rollout.GenerateState = State  # type: ignore[attr-defined]
    for name in ("slime", "slime.utils", "slime.rollout"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "slime.utils.types", types)
    monkeypatch.setitem(sys.modules, "slime.rollout.sglang_rollout", rollout)
    return example("slime_generate")


def slime_args(router: Served, **fields: Any) -> Namespace:
    url = router.http._base_url
    assert url is not None
    given = {"reward_key": None, "rollout_max_context_len": None, **fields}
    return Namespace(sglang_router_ip=url.host, sglang_router_port=url.port, **given)


SAMPLING = {
    "temperature": 0.9,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 24,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": True,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}


async def aborted_while_running(
    slime: Any, router: Served, worker: FakeWorker
) -> asyncio.Task[Any]:
    """A rollout that is held at the worker, after slime has said that it aborts."""
    worker.hold()
    args = slime_args(router)
    task = asyncio.create_task(slime.generate(args, Sample(index=0, prompt="Hi"), SAMPLING))
    await worker.wait_running(1)
    args.is_aborted = True
    return task


class TestSlimeGenerate:
    async def test_the_samples_are_what_was_sampled(self, slime):
        """Two turns that extend each other are one sample, with the prompt's own fields kept."""
        before = Sample(group_index=3, index=13, prompt="Hello", label="hi", metadata={"a": 1})
        async with served() as (router, worker):
            samples = await slime.generate(slime_args(router), before, SAMPLING)
            assert len(router.gateway.store.sessions) == 0
        [sample] = samples
        assert isinstance(sample, Sample)
        kept = (sample.group_index, sample.index, sample.label, sample.prompt)
        assert kept == (3, 13, "hi", "Hello")
        assert sample.rollout_id == 13, "slime counts samples of one id as one rollout"
        assert sample.metadata["a"] == 1
        assert sample.metadata["slime_router"]["group_id"] == "3"
        assert sample.loss_mask is not None
        assert sample.rollout_log_probs is not None
        assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length
        assert all(np.isfinite(sample.rollout_log_probs))
        assert sample.status in (Sample.Status.COMPLETED, Sample.Status.TRUNCATED)
        assert sample.response
        assert sample.reward is None, "slime's own reward function has its turn"
        last = worker.requests[-1].body["input_ids"]
        assert len(worker.requests) == 2
        assert sample.tokens[: len(last)] == last

    async def test_slimes_sampling_parameters_reach_the_worker(self, slime):
        async with served() as (router, worker):
            await slime.generate(slime_args(router), Sample(index=0, prompt="Hello"), SAMPLING)
        params = [request.body["sampling_params"] for request in worker.requests]
        assert all(each["temperature"] == 0.9 for each in params)
        assert params[0]["max_new_tokens"] == 24

    async def test_a_prompt_of_messages_is_a_conversation(self, slime):
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        async with served() as (router, worker):
            await slime.generate(slime_args(router), Sample(index=0, prompt=prompt), SAMPLING)
        text = tiny_tokenizer().decode(
            worker.requests[0].body["input_ids"], skip_special_tokens=True
        )
        assert "Be brief." in text
        assert len(prompt) == 2, "the sample's own prompt is not written to"

    async def test_an_agent_without_a_reply_trains_nothing(self, slime):
        """A prompt that does not fit: the batch keeps its shape, and slime drops the sample."""
        long = "word " * 2100
        async with served() as (router, _):
            [sample] = await slime.generate(
                slime_args(router), Sample(index=0, prompt=long), SAMPLING
            )
        assert sample.loss_mask == [0]
        assert (sample.status, sample.remove_sample) == (Sample.Status.ABORTED, True)
        assert (sample.response_length, len(sample.tokens)) == (1, 2)

    async def test_a_rollout_that_starts_anew_is_several_samples_of_one_rollout(self, slime):
        """All of what it sampled is trained, and slime learns that it is one rollout."""

        async def compact(base_url: str, prompt: Any) -> None:
            """An agent that throws its history away."""
            await slime.act(base_url, prompt, max_turns=1)
            await slime.act(base_url, "In short?", max_turns=1)

        before = Sample(group_index=3, index=13, prompt="Hello")
        async with served() as (router, _):
            samples = await integration.roll_out(slime_args(router), before, SAMPLING, compact)
        assert len(samples) == 2
        assert [sample.rollout_id for sample in samples] == [13, 13]
        assert [sample.index for sample in samples] == [13, 13]
        for sample in samples:
            response = sample.tokens[-sample.response_length :]
            assert sample.response == tiny_tokenizer().decode(response, skip_special_tokens=True)
        assert samples[0].response != samples[1].response, "each has its own row's"

    async def test_a_rollout_that_slime_aborts_ends_at_once_and_is_aborted(self, slime):
        """Its worker does not have to be waited for, and the router resumes nothing."""
        async with served() as (router, worker):
            task = await aborted_while_running(slime, router, worker)
            [sample] = await asyncio.wait_for(task, 60)
            assert (sample.status, sample.remove_sample) == (Sample.Status.ABORTED, True)
            assert len(router.gateway.store.sessions) == 0
            assert len([r for r in worker.requests if r.path == "/generate"]) == 1

    async def test_an_agent_that_fails_as_slime_aborts_is_an_aborted_rollout(
        self, slime, monkeypatch
    ):
        """Its turn may end with the abort at the worker before the flag is looked at again."""
        monkeypatch.setattr(integration, "ABORT_POLL_S", 3600)
        async with served(resume_aborted="none") as (router, worker):
            task = await aborted_while_running(slime, router, worker)
            worker._engine.abort(worker.running[0])
            [sample] = await asyncio.wait_for(task, 60)
            assert sample.status == Sample.Status.ABORTED
            assert len(router.gateway.store.sessions) == 0

    @pytest.mark.parametrize(
        ("args", "params", "named"),
        [
            ({}, {"json_schema": "{}"}, "json_schema"),
            ({}, {"n": 2}, "n=2"),
            ({"apply_chat_template": True}, {}, "--apply-chat-template"),
            ({"partial_rollout": True}, {}, "--partial-rollout"),
        ],
    )
    async def test_what_an_agent_cannot_give_is_refused_in_one_line(
        self, slime, args, params, named
    ):
        async with served() as (router, worker):
            given = slime_args(router, **args)
            before = len(worker.requests)
            with pytest.raises(ValueError, match=named) as caught:
                await slime.generate(given, Sample(index=0, prompt="Hi"), {**SAMPLING, **params})
            assert "\n" not in str(caught.value)
            assert len(worker.requests) == before

    async def test_a_prompt_of_messages_may_stand_under_the_chat_templates_flag(self, slime):
        prompt = [{"role": "user", "content": "Hi"}]
        async with served() as (router, _):
            given = slime_args(router, apply_chat_template=True)
            assert await slime.generate(given, Sample(index=0, prompt=prompt), SAMPLING)

    async def test_a_rollout_that_slime_cancels_leaves_nothing_on_the_router(self, slime):
        async with served() as (router, worker):
            worker.hold()
            rollout = slime.generate(slime_args(router), Sample(index=0, prompt="Hi"), SAMPLING)
            task = asyncio.create_task(rollout)
            await worker.wait_running(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(router.gateway.store.sessions) == 0

    async def test_a_replay_without_experts_is_refused_in_one_line(self, slime):
        """slime would train without them, and say nothing."""
        async with served() as (router, worker):
            worker.script([11])
            args = slime_args(router, use_rollout_routing_replay=True)
            with pytest.raises(ValueError, match="--enable-return-routed-experts") as caught:
                await slime.generate(args, Sample(index=0, prompt="Hi"), SAMPLING)
            assert "\n" not in str(caught.value)

    def test_routed_experts_have_the_shape_of_the_model(self, slime):
        """slime replays them layer by layer, for all tokens but the last."""
        row = Row(
            row_id="t",
            session_id="s",
            group_id=None,
            rollout_id="s",
            turn_ids=("t",),
            tokens=np.array([1, 2, 3], np.int32),
            loss_mask=np.array([0, 0, 1], np.uint8),
            logprobs=None,
            weight_versions=(None, None, "v"),
            turn_versions=("v",),
            response_length=1,
            status="completed",
            finish_reason="stop",
            reward=None,
            routed_experts=np.arange(12, dtype=np.uint8).reshape(2, 6),
        )
        args = Namespace(num_layers=3, moe_router_topk=2)
        [sample] = integration.to_samples(args, Sample(index=0), [row], [""])
        assert sample.rollout_routed_experts.dtype == np.int32
        assert sample.rollout_routed_experts[1].tolist() == [[6, 7], [8, 9], [10, 11]]

    @pytest.mark.parametrize("is_known", [True, False])
    def test_under_top_p_a_sample_says_what_its_tokens_were_sampled_from(self, slime, is_known):
        """slime renormalises over these ids; offsets begin with the response."""
        known: dict[str, Any] = {
            "mask_offsets": np.array([0, 0, 0, 2, 5], np.int64),
            "mask_ids": np.array([7, 3, 4, 8, 9], np.int32),
            "sampling_logprobs": np.array([0, 0, -0.5, -0.25], np.float32),
        }
        row = Row(
            row_id="t",
            session_id="s",
            group_id=None,
            rollout_id="s",
            turn_ids=("t",),
            tokens=np.array([1, 2, 3, 4], np.int32),
            loss_mask=np.array([0, 0, 1, 1], np.uint8),
            logprobs=None,
            weight_versions=(None, None, "v", "v"),
            turn_versions=("v",),
            response_length=2,
            status="completed",
            finish_reason="stop",
            reward=None,
            truncated_sampling=not is_known,
            **known,
        )
        given = (Namespace(), Sample(index=0), [row], [""])
        if not is_known:
            with pytest.raises(ValueError, match="--capture distribution"):
                integration.to_samples(*given, replays_top_p=True)
            return
        [sample] = integration.to_samples(*given, replays_top_p=True)
        assert sample.rollout_top_p_token_ids == [7, 3, 4, 8, 9]
        assert sample.rollout_top_p_token_offsets == [0, 2, 5]

    async def test_a_rollout_under_top_p_has_its_masks(self, slime):
        """The router asks for them, as its flag says."""
        async with served(capture="distribution") as (router, _):
            sampling = {**SAMPLING, "top_p": 0.5}
            [sample] = await slime.generate(
                slime_args(router), Sample(index=0, prompt="Hi"), sampling
            )
        offsets = sample.rollout_top_p_token_offsets
        assert len(offsets) == sample.response_length + 1
        assert offsets[-1] == len(sample.rollout_top_p_token_ids) > 0

    def test_advantages_are_by_rollout(self, slime):
        """Three samples of one success weigh as one: 0.5, not 0.25."""
        samples = [
            *[Sample(group_index=0, index=5, rollout_id=5, reward=1.0) for _ in range(3)],
            Sample(group_index=0, index=6, reward=0.0),
        ]
        args = Namespace(reward_key=None, grpo_std_normalization=False)
        rewards, advantages = slime.normalise(args, samples)
        assert rewards == [1.0, 1.0, 1.0, 0.0]
        assert advantages == [0.5, 0.5, 0.5, -0.5]


def test_no_example_imports_slime_before_it_is_used():
    """They are read, and checked, where slime is not installed."""
    assert "slime" not in sys.modules
    example("slime_generate")
    assert "slime" not in sys.modules
