"""A verl agent loop, made as verl makes it: `verl_loop.py URL CHECKPOINT`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from omegaconf import OmegaConf
from openai import AsyncOpenAI
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import get_json_schema
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from weather import MESSAGES, get_weather

from slime_router.integrations.verl import RouterAgentLoop


class WeatherLoop(RouterAgentLoop):
    async def act(
        self, base_url: str, messages: Sequence[Mapping[str, Any]], **fields: Any
    ) -> float:
        said: list[Any] = [*messages]
        async with AsyncOpenAI(base_url=base_url, api_key="none") as llm:
            while True:
                reply = await llm.chat.completions.create(
                    model="qwen3", messages=said, tools=[get_json_schema(get_weather)]
                )
                message = reply.choices[0].message
                said.append(message.model_dump(exclude_none=True))
                if not message.tool_calls:
                    return fields["worth"] * float("warm" in (message.content or ""))
                for call in message.tool_calls:
                    result = get_weather(**json.loads(call.function.arguments))
                    said.append({"role": "tool", "tool_call_id": call.id, "content": result})


async def main(url: str, checkpoint: str) -> None:
    config = OmegaConf.create(
        {"actor_rollout_ref": {"rollout": {"response_length": 4096}}, "data": {}}
    )
    loop = hydra.utils.instantiate(
        config={"_target_": f"{__name__}.WeatherLoop", "router_url": url},
        trainer_config=DictConfigWrap(config=config),
        server_manager=None,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        processor=None,
        dataset_cls=None,
        data_config=DictConfigWrap(config.data),
    )
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 100}
    output = await loop.run(sampling, raw_prompt=MESSAGES, worth=0.5)
    held = output.as_dict()  # what verl goes on with
    found = {
        "prompt": held["prompts"].tolist(),
        "response": held["responses"].tolist(),
        "mask": held["response_mask"].tolist(),
        "logprobs": held["rollout_log_probs"].tolist(),
        "reward": held["rm_scores"].sum().item(),
        "turns": output.num_turns,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
