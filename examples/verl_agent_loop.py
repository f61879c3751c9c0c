"""An agent loop for verl, made and run as verl does it, for one episode and without its trainer.

    python examples/verl_agent_loop.py --router http://127.0.0.1:30001 --checkpoint CHECKPOINT

It prints what verl goes on with, as one line of JSON. In a training run the loop is named in
`actor_rollout_ref.rollout.agent.agent_loop_config_path`. The agent is an ordinary OpenAI client
with a tool: replace `act` with yours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from omegaconf import OmegaConf
from openai import AsyncOpenAI
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import get_json_schema
from verl.experimental.agent_loop.agent_loop import DictConfigWrap

from slime_router.integrations.verl import RouterAgentLoop

TASK = [{"role": "user", "content": "Weather task: is Paris warm?"}]
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 100}
MAX_TURNS = 4
REPLY_TIMEOUT_S = 3600.0


def get_weather(city: str) -> str:
    """
    Looks up the weather.

    Args:
        city: The name of the city.

    Returns:
        What it is like there.
    """
    return f"21 °C in {city}"


class WeatherLoop(RouterAgentLoop):
    """Asks for the weather until it has an answer."""

    async def act(
        self, base_url: str, messages: Sequence[Mapping[str, Any]], **fields: Any
    ) -> float:
        """The agent; its reward is `worth`, a field of the dataset, if it says that it is warm."""
        said: list[Any] = [*messages]
        async with AsyncOpenAI(
            base_url=base_url, api_key=self.router_key, timeout=REPLY_TIMEOUT_S, max_retries=0
        ) as llm:
            for _ in range(MAX_TURNS):
                reply = await llm.chat.completions.create(
                    model="policy", messages=said, tools=[get_json_schema(get_weather)]
                )
                message = reply.choices[0].message
                said.append(message.model_dump(exclude_none=True))
                if not message.tool_calls:
                    break
                said += map(_answer, message.tool_calls)
        return fields["worth"] * float("warm" in (said[-1].get("content") or ""))


def _answer(call: Any) -> dict[str, str]:
    """The tool's message; a model may write anything for arguments, and hears what is wrong."""
    try:
        result = get_weather(**json.loads(call.function.arguments))
    except (ValueError, TypeError) as error:
        result = f"error: {error}"
    return {"role": "tool", "tool_call_id": call.id, "content": result}


async def episode(router: str, checkpoint: str) -> dict[str, Any]:
    """What verl holds of one episode."""
    config = OmegaConf.create(
        {"actor_rollout_ref": {"rollout": {"response_length": 4096}}, "data": {}}
    )
    loop = hydra.utils.instantiate(
        config={"_target_": f"{__name__}.WeatherLoop", "router_url": router},
        trainer_config=DictConfigWrap(config=config),
        server_manager=None,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        processor=None,
        dataset_cls=None,
        data_config=DictConfigWrap(config.data),
    )
    output = await loop.run(SAMPLING, raw_prompt=TASK, worth=0.5)
    held = output.as_dict()
    return {
        "prompt": held["prompts"].tolist(),
        "response": held["responses"].tolist(),
        "mask": held["response_mask"].tolist(),
        "logprobs": held["rollout_log_probs"].tolist(),
        "reward": held["rm_scores"].sum().item(),
        "turns": output.num_turns,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--router", default="http://127.0.0.1:30001")
    parser.add_argument("--checkpoint", required=True, help="whose tokenizer verl reads")
    args = parser.parse_args()
    held = asyncio.run(episode(args.router, args.checkpoint))
    counts = len(held["prompt"]), len(held["response"]), sum(held["mask"])
    print("{} prompt tokens, {} response tokens, {} of them trained".format(*counts))
    print(json.dumps(held))


if __name__ == "__main__":
    main()
