"""Rollouts for TRL's asynchronous GRPO: tools run as before, tokens come from the router.

    trainer = AsyncGRPOTrainer(..., rollout_worker=RouterRolloutWorker(
        vllm_server_url="http://router:30001", ...))

TRL renders and encodes each turn again and reconciles what differs; here the conversation is a
session, and the sequences are its rows. The key of a router that has keys is in
`SLIME_ROUTER_API_KEY`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from openai import AsyncOpenAI
from transformers.utils.chat_template_utils import get_json_schema
from trl.experimental.async_grpo.async_rollout_worker import (  # type: ignore[import-not-found]
    AsyncRolloutWorker,
    TrainingSequence,
    _AsyncRolloutLoop,
)

from slime_router.client import AsyncClient, ClientError, Export, LeftOut, Row
from slime_router.client.keys import key_headers
from slime_router.integrations.keys import router_key
from slime_router.integrations.parts import chat_sampling

REPLY_TIMEOUT_S = 3600.0
SAMPLING = ("temperature", "top_p", "min_p", "repetition_penalty", "max_tokens")


class RouterRolloutLoop(_AsyncRolloutLoop):  # type: ignore[misc] # TRL is not installed where this is checked
    """TRL's loop, but for how a conversation is sampled and recorded."""

    async def _generate_one(
        self,
        prompt: Sequence[Mapping[str, Any]],
        tool_dict: dict[str, Callable[..., Any]],
        tools: Sequence[Callable[..., Any]],
        group_id: int = 0,
    ) -> tuple[list[dict[str, Any]], list[int], list[Any], int, int, float | None]:
        """One conversation: the agent's messages, its sampled ids, a sequence for each row."""
        start = time.monotonic()
        sampling = {name: getattr(self, name) for name in SAMPLING}
        sampling |= {"top_k": self.top_k or None}  # for TRL, 0 is all
        headers = key_headers(router_key())
        async with AsyncClient(self.vllm_server_url, headers=headers) as client:
            session = await client.open_session(
                group_id=str(group_id), sampling=chat_sampling(sampling)
            )
            try:
                async with session:
                    said, calls, failures, is_cut = await self._converse(
                        session.base_url, prompt, tool_dict, tools
                    )
                export = await session.rows()
            finally:
                with suppress(ClientError):
                    await session.delete()
        sequences = [sequence_of(row, session.id) for row in export.rows]
        ids = [i for row in export.rows for i in row.tokens[row.loss_mask == 1].tolist()]
        self._push_rollout_metrics(
            turns=export.stats.turns,
            sequences=len(sequences),
            completion_ids=ids,
            tally=tally_of(export),
            loop_exhausted=is_cut,
            duration_s=time.monotonic() - start,
        )
        return said, ids, sequences, calls, failures, None

    async def _converse(
        self,
        base_url: str,
        prompt: Sequence[Any],
        tool_dict: dict[str, Callable[..., Any]],
        tools: Sequence[Callable[..., Any]],
    ) -> tuple[list[dict[str, Any]], int, int, bool]:
        """The messages after the prompt, calls, failures, and whether too many rounds ended it."""
        said: list[Any] = []
        schemas: dict[str, Any] = (
            {"tools": [get_json_schema(tool) for tool in tools]} if tools else {}
        )
        extra = (
            {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        )
        calls = failures = rounds = 0
        async with AsyncOpenAI(
            base_url=base_url, api_key=router_key(), timeout=REPLY_TIMEOUT_S, max_retries=0
        ) as llm:
            while True:
                reply = await llm.chat.completions.create(
                    model="policy", messages=[*prompt, *said], extra_body=extra, **schemas
                )
                message = reply.choices[0].message.model_dump(exclude_none=True)
                said.append(message)
                asked = message.get("tool_calls")
                limit = self.max_tool_calling_iterations
                if not asked or (limit is not None and rounds >= limit):
                    return said, calls, failures, bool(asked)
                results, made, failed = await self._execute_tool_calls(
                    [_as_trl(call) for call in asked], tool_dict
                )
                for call, result in zip(asked, results, strict=True):
                    said.append({**result, "tool_call_id": call["id"]})
                calls, failures, rounds = calls + made, failures + failed, rounds + 1


class RouterRolloutWorker(AsyncRolloutWorker):  # type: ignore[misc] # as above
    """TRL's worker with this loop in its process."""

    _loop_cls = RouterRolloutLoop


def sequence_of(row: Row, rollout_id: str) -> Any:
    """TRL's training sequence of a row."""
    logprobs = [0.0] * len(row.tokens) if row.logprobs is None else row.logprobs.tolist()
    return TrainingSequence(
        input_ids=row.tokens.tolist(),
        completion_mask=row.loss_mask.tolist(),
        old_log_probs=logprobs,
        rollout_id=rollout_id,
    )


def tally_of(export: Export) -> dict[str, float]:
    """TRL's tally of how turns went on: in their row, by realigning one, or in a new row."""
    transitions = max(sum(len(row.turn_ids) for row in export.rows) - 1, 0)
    forks = max(len(export.rows) - 1, 0)
    realigned = export.stats.left_out.get("realigned", LeftOut(turns=0, tokens=0))
    return {
        "clean": float(max(transitions - forks - realigned.turns, 0)),
        "realign": float(realigned.turns),
        "fork": float(forks),
        "transitions": float(transitions),
        "drift_tokens": float(realigned.tokens),
        "drift_max": float(realigned.tokens),  # at most: each drift by itself is not known
    }


def _as_trl(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object; TRL runs nothing for those that are not one."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    return {"function": {"name": function["name"], "arguments": arguments}}
