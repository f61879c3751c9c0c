"""Agent rollouts for slime: what a custom generate function needs, for any OpenAI agent.

    async def generate(args, sample, sampling_params):
        return await roll_out(args, sample, sampling_params, agent)

The samples are what the router recorded of the agent: slime trains on the very tokens that were
sampled. slime is imported only where it is used. The key of a router that has keys is in
`SLIME_ROUTER_API_KEY`; an agent sends `router_key()`.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from slime_router.client import AsyncClient, ClientError, Row, group_advantages
from slime_router.client.aio import AsyncSession
from slime_router.client.keys import key_headers
from slime_router.integrations.keys import router_key
from slime_router.integrations.parts import chat_sampling

if TYPE_CHECKING:
    Sample: TypeAlias = Any  # slime.utils.types.Sample, where slime is installed

Prompt: TypeAlias = str | list[dict[str, Any]]
Agent: TypeAlias = Callable[[str, Prompt], Awaitable[object]]  # base URL and prompt

ABORT_POLL_S = 0.1


async def roll_out(
    args: Namespace, sample: Sample, sampling_params: Mapping[str, Any], agent: Agent
) -> list[Sample]:
    """One rollout of an agent: a sample for each row of its session.

    It is a list of one where a sample would do: slime flattens a batch by the shape of its first
    entry. Where slime has enough rollouts and aborts the rest, it is an aborted sample.

    Raises:
        ValueError: slime's arguments ask for what an agent's rollout cannot give.
    """
    check(args, sample)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}"
    async with AsyncClient(url, headers=key_headers(router_key())) as client:
        session = await client.open_session(
            group_id=None if sample.group_index is None else str(sample.group_index),
            sampling=chat_sampling(sampling_params),
            max_tokens=sampling_params.get("max_new_tokens"),
            return_routed_experts=bool(getattr(args, "use_rollout_routing_replay", False)),
        )
        try:
            if not await _is_finished(args, session, agent, sample.prompt):
                return [nothing_to_train(sample)]
            export = await session.rows(max_len=getattr(args, "rollout_max_context_len", None))
            skips = bool(sampling_params.get("skip_special_tokens", True))
            texts = [
                await client.detokenize(
                    row.tokens[len(row.tokens) - row.response_length :].tolist(),
                    skip_special_tokens=skips,
                )
                for row in export.rows
            ]
        finally:  # also where slime cancels what it has rolled out too many of
            with suppress(ClientError):
                await session.delete()
    replays = sampling_params.get("top_p", 1.0) != 1.0
    samples = to_samples(args, sample, export.rows, texts, replays_top_p=replays)
    return samples or [nothing_to_train(sample)]


def check(args: Namespace, sample: Sample) -> None:
    """Whether slime's arguments suit a rollout of an agent.

    Raises:
        ValueError: they do not; one line says why, and what to do.
    """
    if getattr(args, "apply_chat_template", False) and isinstance(sample.prompt, str):
        raise ValueError(
            "--apply-chat-template has rendered the prompt, and the agent's chat would wrap it once"
            " more: leave it off, so that samples have messages."
        )
    if getattr(args, "partial_rollout", False):
        raise ValueError("--partial-rollout cannot continue an agent in the middle: leave it off.")


async def _is_finished(
    args: Namespace, session: AsyncSession, agent: Agent, prompt: Prompt
) -> bool:
    """Runs the agent in its session; False where slime aborts the rollout meanwhile."""
    work = asyncio.ensure_future(agent(session.base_url, prompt))
    watch = asyncio.ensure_future(_aborted(args))
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            watch.result()
        # An agent fails, too, where its turn is aborted before the flag is looked at again.
        if not work.done() or (work.exception() is not None and _state(args).aborted):
            await session.close(in_flight="cancel")
            return False
        await work
        await session.close()
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)
    return True


async def _aborted(args: Namespace) -> None:
    """Returns once slime has enough rollouts."""
    state = _state(args)
    while not state.aborted:  # noqa: ASYNC110 - slime sets a flag, and no event
        await asyncio.sleep(ABORT_POLL_S)


def _state(args: Namespace) -> Any:
    """slime's state of its rollouts; there is only one."""
    from slime.rollout.sglang_rollout import (  # type: ignore[import-not-found] # runs in slime
        GenerateState,
    )

    return GenerateState(args)


def to_samples(
    args: Namespace,
    sample: Sample,
    rows: Sequence[Row],
    texts: Sequence[str],
    *,
    replays_top_p: bool = False,
) -> list[Sample]:
    """slime's samples: the fields of `sample`, with what the router recorded.

    `texts` are the rows' responses as text. All have one `rollout_id`, by which slime counts them
    as one rollout. With `replays_top_p` they say what each token was sampled from.

    Raises:
        ValueError: that, or the experts that slime is to replay, is not known of a row.
    """
    from slime.utils.types import (  # type: ignore[import-not-found] # it runs inside slime
        Sample as SlimeSample,
    )

    rollout_id = getattr(sample, "rollout_id", None)
    base = sample.to_dict()
    base["rollout_id"] = sample.index if rollout_id is None else rollout_id
    samples = []
    for row, text in zip(rows, texts, strict=True):
        fields = {**row.to_sample(), "response": text}
        fields["metadata"] = {**(sample.metadata or {}), **fields["metadata"]}
        if row.routed_experts is None and getattr(args, "use_rollout_routing_replay", False):
            raise ValueError(
                "--use-rollout-routing-replay needs the routed experts of each row, and a row lacks"
                " them: start the workers with --enable-return-routed-experts."
            )
        if row.routed_experts is not None:
            shape = (len(row.tokens) - 1, args.num_layers, args.moe_router_topk)
            fields["rollout_routed_experts"] = row.routed_experts.astype("int32").reshape(shape)
        if replays_top_p:
            fields |= _top_p(row, fields)
        samples.append(SlimeSample.from_dict({**base, **fields}))
    return samples


def _top_p(row: Row, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What each token of the response was sampled from, by slime's names."""
    if row.truncated_sampling or "mask_ids" not in fields:
        raise ValueError(
            "--rollout-top-p below 1 needs the ids that each token was sampled from, and a row"
            " lacks them: start the router with --capture distribution."
        )
    return {
        "rollout_top_p_token_ids": fields["mask_ids"],
        "rollout_top_p_token_offsets": fields["mask_offsets"],
    }


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

    slime's own normalisation counts each sample as a separate rollout.
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
