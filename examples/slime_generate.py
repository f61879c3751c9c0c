"""Agent rollouts for slime: its generate function, with the router as its SGLang router.

    --custom-generate-function-path slime_generate.generate
    --custom-reward-post-process-path slime_generate.normalise   (GRPO by rollout)
    --sglang-router-ip HOST --sglang-router-port PORT             (where slime_router listens)

The agent is an ordinary OpenAI client. The samples are what the router recorded of it: slime
trains on the very tokens that were sampled, whatever the agent made of their text. slime is
imported only where it is used.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from openai import APIStatusError, AsyncOpenAI

from slime_router.client import AsyncClient, ClientError, Export, group_advantages

if TYPE_CHECKING:
    Sample: TypeAlias = Any  # slime.utils.types.Sample, where slime is installed

Prompt: TypeAlias = str | list[dict[str, Any]]
Agent: TypeAlias = Callable[[str, Prompt], Awaitable[list[str]]]  # base URL, prompt: replies

SECOND_LOOK = "Check that. Then give only the final answer."
MAX_TURNS = 2
REPLY_TIMEOUT_S = 3600.0

# slime speaks SGLang's sampling fields, sessions speak OpenAI's.
SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "skip_special_tokens": "skip_special_tokens",
    "sampling_seed": "seed",
    "max_new_tokens": "max_tokens",
}


async def generate(
    args: Namespace,
    sample: Sample,
    sampling_params: Mapping[str, Any],
    *,
    agent: Agent | None = None,
) -> list[Sample]:
    """One rollout: a sample for each row. slime gives no `agent`; `act` is the one.

    It is a list of one where a sample would do: slime flattens a batch by the shape of its first
    entry.
    """
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}"
    wants_experts = bool(getattr(args, "use_rollout_routing_replay", False))
    async with AsyncClient(url) as client:
        session = await client.open_session(
            group_id=None if sample.group_index is None else str(sample.group_index),
            sampling=session_sampling(sampling_params),
            max_tokens=sampling_params.get("max_new_tokens"),
            return_routed_experts=wants_experts,
        )
        try:
            async with session:
                replies = await (agent or act)(session.base_url, sample.prompt)
            export = await session.rows(max_len=getattr(args, "rollout_max_context_len", None))
        finally:  # also where slime cancels what it has rolled out too many of
            with suppress(ClientError):
                await session.delete()
    samples = to_samples(args, sample, export, response="\n".join(replies))
    return samples or [nothing_to_train(sample)]


async def act(base_url: str, prompt: Prompt, *, max_turns: int = MAX_TURNS) -> list[str]:
    """The agent: it answers, and then looks at its answer again. Returns its replies."""
    is_text = isinstance(prompt, str)
    messages: list[Any] = [{"role": "user", "content": prompt}] if is_text else [*prompt]
    replies: list[str] = []
    async with AsyncOpenAI(
        base_url=base_url, api_key="none", timeout=REPLY_TIMEOUT_S, max_retries=0
    ) as llm:
        for _ in range(max_turns):
            try:
                answer = await llm.chat.completions.create(model="policy", messages=messages)
            except APIStatusError as error:
                if error.status_code >= 500:
                    raise
                break  # the context or the session is full: what there is is trained
            replies.append(answer.choices[0].message.content or "")
            messages.append({"role": "assistant", "content": replies[-1]})
            messages.append({"role": "user", "content": SECOND_LOOK})
    return replies


def session_sampling(sampling_params: Mapping[str, Any]) -> dict[str, Any]:
    """slime's sampling parameters as a session's defaults; what a chat has no word for is not."""
    return {
        name: sampling_params[theirs]
        for theirs, name in SAMPLING_NAMES.items()
        if sampling_params.get(theirs) is not None
    }


def to_samples(args: Namespace, sample: Sample, export: Export, *, response: str) -> list[Sample]:
    """slime's samples of the rows: the fields of `sample`, with what the router recorded.

    They share a `rollout_id`, by which slime counts them as one rollout.
    """
    from slime.utils.types import (  # type: ignore[import-not-found] # it runs inside slime
        Sample as SlimeSample,
    )

    rollout_id = getattr(sample, "rollout_id", None)
    base = {**sample.to_dict(), "response": response}
    base["rollout_id"] = sample.index if rollout_id is None else rollout_id
    samples = []
    for row in export.rows:
        fields = row.to_sample()
        fields["metadata"] = {**(sample.metadata or {}), **fields["metadata"]}
        if row.routed_experts is not None:
            shape = (len(row.tokens) - 1, args.num_layers, args.moe_router_topk)
            fields["rollout_routed_experts"] = row.routed_experts.astype("int32").reshape(shape)
        samples.append(SlimeSample.from_dict({**base, **fields}))
    return samples


def nothing_to_train(sample: Sample) -> Sample:
    """A sample that slime can batch and that trains nothing: the agent did not get to a reply."""
    sample.tokens = [0, 0]  # slime takes no sample without a response
    sample.response, sample.response_length, sample.loss_mask = "", 1, [0]
    sample.rollout_log_probs = [0.0]
    sample.reward = 0.0
    sample.remove_sample = True
    sample.status = type(sample).Status.ABORTED
    return sample


@dataclass(frozen=True, slots=True)
class _Rewarded:
    group_id: Any
    rollout_id: Any
    reward: float


def normalise(args: Namespace, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Rewards and GRPO's advantages: by rollout, also where one became several samples.

    slime's own normalisation takes each sample for a rollout of its own.
    """
    rewarded = [
        _Rewarded(
            sample.group_index,
            sample.index if getattr(sample, "rollout_id", None) is None else sample.rollout_id,
            sample.get_reward_value(args),
        )
        for sample in samples
    ]
    divides = bool(getattr(args, "grpo_std_normalization", True))
    return [each.reward for each in rewarded], group_advantages(rewarded, divide_by_std=divides)
