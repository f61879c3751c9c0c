"""Agent rollouts for slime: its generate function, with the router as its SGLang router.

    --custom-generate-function-path slime_generate.generate
    --custom-reward-post-process-path slime_generate.normalise   (GRPO by rollout)
    --sglang-router-ip HOST --sglang-router-port PORT             (where slime_router listens)

The agent is an ordinary OpenAI client. Replace `act` with yours.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from openai import APIStatusError, AsyncOpenAI

from slime_router.integrations.keys import router_key
from slime_router.integrations.slime import Prompt, normalise, roll_out

__all__ = ["act", "generate", "normalise"]

SECOND_LOOK = "Check that. Then give only the final answer."
MAX_TURNS = 2
REPLY_TIMEOUT_S = 3600.0


async def generate(args: Namespace, sample: Any, sampling_params: Mapping[str, Any]) -> list[Any]:
    """One rollout: slime's `Sample` for each row."""
    return await roll_out(args, sample, sampling_params, act)


async def act(base_url: str, prompt: Prompt, *, max_turns: int = MAX_TURNS) -> None:
    """The agent: it answers, and then looks at its answer again."""
    is_text = isinstance(prompt, str)
    messages: list[Any] = [{"role": "user", "content": prompt}] if is_text else [*prompt]
    async with AsyncOpenAI(
        base_url=base_url, api_key=router_key(), timeout=REPLY_TIMEOUT_S, max_retries=0
    ) as llm:
        for _ in range(max_turns):
            try:
                answer = await llm.chat.completions.create(model="policy", messages=messages)
            except APIStatusError as error:
                if error.status_code >= 500:
                    raise
                break  # the context or the session is full: what there is is trained
            reply = answer.choices[0].message.content or ""
            messages.append({"role": "assistant", "content": reply})
            messages.append({"role": "user", "content": SECOND_LOOK})
