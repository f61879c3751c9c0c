"""An agent loop for verl whose agent is any OpenAI client, in a session of the router.

    # agent.yaml, for actor_rollout_ref.rollout.agent.agent_loop_config_path
    - name: my_agent
      _target_: my_package.MyAgentLoop
      router_url: http://router:30001

verl's own server manager is not asked: the router's workers sample, so they must get its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from verl.experimental.agent_loop.agent_loop import (  # type: ignore[import-not-found] # verl's
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from slime_router.client import AsyncClient, ClientError, Export
from slime_router.client.keys import key_headers
from slime_router.integrations import keys
from slime_router.integrations.parts import Parts, chat_sampling, longest


class RouterAgentLoop(AgentLoopBase):  # type: ignore[misc] # verl is not installed where this is checked
    """One rollout is one session; what it returns is the row that trains most tokens.

    Subclasses write `act`. How many rows there were is in `extra_fields["rows"]`, how many sampled
    tokens the others train in `extra_fields["tokens_of_other_rows"]`. `router_key` is what the
    agent sends as its API key; where it is not given, it is what `keys.router_key()` finds.
    """

    def __init__(
        self,
        *args: Any,
        router_url: str = "http://localhost:30001",
        router_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.router_url = router_url
        self.router_key = router_key or keys.router_key()

    async def act(
        self, base_url: str, messages: Sequence[Mapping[str, Any]], **fields: Any
    ) -> float | None:
        """Runs the agent; returns its reward, or None where verl's reward function has its turn.

        `fields` are those of the dataset.
        """
        raise NotImplementedError

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """One rollout, as verl asks for it.

        Raises:
            ValueError: the agent sampled nothing.
        """
        start = perf_counter()
        messages = list(kwargs.pop("raw_prompt"))
        headers = key_headers(self.router_key)
        async with AsyncClient(self.router_url, headers=headers) as client:
            session = await client.open_session(sampling=chat_sampling(sampling_params))
            try:
                async with session:
                    reward = await self.act(session.base_url, messages, **kwargs)
                export = await session.rows()
            finally:
                with suppress(ClientError):
                    await session.delete()
        return self.output(export, reward, seconds=perf_counter() - start)

    def output(self, export: Export, reward: float | None, *, seconds: float) -> Any:
        """verl's output of the rows of a session.

        Raises:
            ValueError: there are none.
        """
        row = longest(export.rows)
        if row is None:
            raise ValueError("The agent sampled nothing: there is no row to train.")
        parts = Parts.of(row, self.rollout_config.response_length)
        return AgentLoopOutput(
            prompt_ids=parts.prompt_ids,
            response_ids=parts.response_ids,
            response_mask=parts.mask,
            response_logprobs=parts.logprobs,
            routed_experts=row.routed_experts,
            reward_score=reward,
            num_turns=2 * len(row.turn_ids),
            metrics=AgentLoopMetrics(generate_sequences=seconds),
            extra_fields={
                "turn_scores": [],
                "tool_rewards": [],
                "rows": len(export.rows),
                "tokens_of_other_rows": export.stats.trained_tokens - row.trained_tokens,
            },
        )
