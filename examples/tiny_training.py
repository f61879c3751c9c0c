"""Trains the policy of `tiny_worker.py` on this CPU, from rollouts to better rollouts.

    python examples/tiny_training.py tiny-model --router http://127.0.0.1:30001

In each step groups of sessions are rolled out by an agent of two turns. The reward is the share of
lower-case letters in what it says. The rows come back from the router; REINFORCE with the group's
mean as its baseline makes the next weights; the worker gets them through the router.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from tiny_worker import FIRST_VERSION, log_softmax

from slime_router.client import Client, Row, group_advantages

QUESTIONS = ("Say something.", "Go on.")
GOOD = set("abcdefghijklmnopqrstuvwxyz")


def roll_out(client: Client, group_id: str) -> float:
    """One session: an agent that knows nothing but a base URL, and its reward."""
    messages: list[dict[str, str]] = []
    with client.open_session(group_id=group_id) as session:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            answer = post(f"{session.base_url}/chat/completions", {"messages": messages})
            messages.append(answer["choices"][0]["message"])
    said = "".join(each["content"] for each in messages if each["role"] == "assistant")
    reward = sum(char in GOOD for char in said) / max(len(said), 1)
    session.set_reward(reward)
    return reward


def rows_of(client: Client, group_ids: Sequence[str]) -> Iterator[Row]:
    """The rows of the groups, each session deleted when its rows are here."""
    for group_id in group_ids:
        for export in client.rows(group_id=group_id):
            yield from export.rows
        for summary in client.list_sessions(group_id=group_id):
            client.get_session(summary.session_id).delete()


def gradient(logits: Any, rows: Sequence[Row]) -> Any:
    """Of the mean of advantage times log-probability over all trained tokens.

    Raises:
        AssertionError: a row's log-probabilities are not those that the weights give its tokens.
    """
    logprobs = log_softmax(logits)
    total, count = np.zeros_like(logits), 0
    for row, advantage in zip(rows, group_advantages(rows, divide_by_std=True), strict=True):
        sampled = row.tokens[row.loss_mask == 1]
        assert row.logprobs is not None
        recorded = row.logprobs[row.loss_mask == 1]
        assert np.allclose(recorded, logprobs[sampled], atol=1e-4), "other weights sampled it"
        np.add.at(total, sampled, advantage)
        total -= advantage * len(sampled) * np.exp(logprobs)
        count += len(sampled)
    return total / max(count, 1)


def train(
    folder: Path, router: str, steps: int, groups: int, size: int, rate: float
) -> list[float]:
    """The mean reward of each step."""
    logits = np.load(folder / f"{FIRST_VERSION}.npy")
    rewards: list[float] = []
    with Client(router) as client, ThreadPoolExecutor(16) as threads:
        publish(router, FIRST_VERSION)
        for step in range(steps):
            group_ids = [f"step-{step}/{number}" for number in range(groups)]
            tasks = [group_id for group_id in group_ids for _ in range(size)]
            reward = float(np.mean(list(threads.map(lambda g: roll_out(client, g), tasks))))
            rows = list(rows_of(client, group_ids))
            logits += rate * gradient(logits, rows)
            version = f"step-{step + 1}"
            np.save(folder / f"{version}.npy", logits)
            publish(router, version)
            rewards.append(reward)
            trained = sum(row.trained_tokens for row in rows)
            print(f"step {step:>2}  reward {reward:.3f}  {trained} tokens in {len(rows)} rows")
    return rewards


def publish(router: str, version: str) -> None:
    """All workers get the weights of this version; running generations see none of it."""
    post(f"{router}/update_weight_version", {"new_version": version})


def post(url: str, body: dict[str, Any]) -> Any:
    """What is replied to a JSON body."""
    with urlopen(Request(url, json.dumps(body).encode()), timeout=60) as answer:
        return json.load(answer)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the checkpoint that the worker serves")
    parser.add_argument("--router", default="http://127.0.0.1:30001", help="where it listens")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--groups", type=int, default=4, help="prompts of a step")
    parser.add_argument("--size", type=int, default=8, help="rollouts of each prompt")
    parser.add_argument("--rate", type=float, default=120.0, help="the learning rate")
    args = parser.parse_args()
    rewards = train(args.folder, args.router, args.steps, args.groups, args.size, args.rate)
    better = rewards[-1] - rewards[0]
    print(f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}")
    sys.exit(0 if better > 0 else 1)


if __name__ == "__main__":
    main()
