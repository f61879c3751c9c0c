"""TRL's asynchronous rollout loop, its own constructor and all: `trl_loop.py URL CHECKPOINT`."""

from __future__ import annotations

import asyncio
import json
import multiprocessing as mp
import sys

from datasets import Dataset
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template
from weather import MESSAGES, get_weather

from slime_router.integrations.trl import RouterRolloutLoop, RouterRolloutWorker


def worth(completions: list[object], **_: object) -> list[float]:
    return [0.0] * len(completions)


async def main(url: str, checkpoint: str) -> None:
    assert RouterRolloutWorker._loop_cls is RouterRolloutLoop
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = qwen3_chat_template  # one that TRL knows; only the router renders
    loop = RouterRolloutLoop(
        model_name="qwen3",
        dataset=Dataset.from_list([{"prompt": MESSAGES}]),
        reward_funcs=[worth],
        processing_class=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id],
        rollout_buffer=mp.Queue(),
        model_version_value=mp.Value("i", 0),
        heartbeat_value=mp.Value("d", 0.0),
        failed_event=mp.Event(),
        exception_info_queue=mp.Queue(maxsize=1),
        metrics_queue=mp.Queue(),
        tools=[get_weather],
        vllm_server_url=url,
        max_tokens=100,
    )
    said, ids, sequences, calls, failures, reward = await loop._generate_one(
        MESSAGES, {"get_weather": get_weather}, [get_weather], group_id=3
    )
    found = {
        "roles": [message["role"] for message in said],
        "last": said[-1]["content"],
        "ids": ids,
        "sequences": [
            [each.input_ids, each.completion_mask, each.old_log_probs] for each in sequences
        ],
        "calls": [calls, failures, reward],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
