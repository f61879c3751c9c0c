"""A rollout of TRL's asynchronous GRPO: its own loop, for one conversation and without a trainer.

    python examples/trl_rollout.py --router http://127.0.0.1:30001 --checkpoint CHECKPOINT

It prints what TRL goes on with, as one line of JSON. In a training run, `AsyncGRPOTrainer` gets
`rollout_worker=RouterRolloutWorker(vllm_server_url=ROUTER, ...)`, and the tools are TRL's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template

from slime_router.integrations.trl import RouterRolloutLoop, RouterRolloutWorker

TASK = [{"role": "user", "content": "Weather task: is Paris warm?"}]


def get_weather(city: str) -> str:
    """
    Looks up the weather.

    Args:
        city: The name of the city.

    Returns:
        What it is like there.
    """
    return f"21 °C in {city}"


def worth(completions: list[object], **_: object) -> list[float]:
    """The reward of each conversation; TRL asks for one, and this episode does not use it."""
    return [0.0] * len(completions)


async def conversation(router: str, checkpoint: str) -> dict[str, Any]:
    """What TRL holds of one conversation."""
    assert RouterRolloutWorker._loop_cls is RouterRolloutLoop
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = qwen3_chat_template  # one that TRL knows; only the router renders
    loop = RouterRolloutLoop(
        model_name="policy",
        dataset=Dataset.from_list([{"prompt": TASK}]),
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
        vllm_server_url=router,
        max_tokens=100,
        max_tool_calling_iterations=4,
    )
    said, ids, sequences, calls, failures, reward = await loop._generate_one(
        TASK, {"get_weather": get_weather}, [get_weather], group_id=3
    )
    return {
        "roles": [message["role"] for message in said],
        "last": said[-1].get("content") or "",
        "ids": ids,
        "sequences": [
            [each.input_ids, each.completion_mask, each.old_log_probs] for each in sequences
        ],
        "calls": [calls, failures, reward],
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--router", default="http://127.0.0.1:30001")
    parser.add_argument("--checkpoint", required=True, help="whose tokenizer TRL reads")
    args = parser.parse_args()
    held = asyncio.run(conversation(args.router, args.checkpoint))
    trained = sum(sum(mask) for _, mask, _ in held["sequences"])
    print(f"{len(held['sequences'])} sequences, {trained} of {len(held['ids'])} tokens trained")
    print(json.dumps(held))


if __name__ == "__main__":
    main()
