"""A GRPO rollout of an agent with a tool: what a trainer does with the router, from end to end.

    python examples/grpo_rollout.py --router http://127.0.0.1:30001

For each prompt a group of sessions is opened. In each of them an ordinary OpenAI agent solves a
sum with a calculator, all at the same time. Then each rollout gets its reward, and the rows of
the group come back, ready to train on: tokens, loss mask, logprobs, weight versions, advantage.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import operator
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from openai import APIStatusError, AsyncOpenAI

from slime_router.client import AsyncClient, AsyncSession, ClientError, Export, group_advantages

SYSTEM = (
    "Solve the task with a calculator. Write CALC(<expression>) and you get its value. "
    "When you know the result, write ANSWER(<number>)."
)
TASKS = (("What is 12 * 7 + 5?", 89), ("What is 144 / 9?", 16), ("What is 3 * (8 + 14)?", 66))
NUDGE = "Write CALC(<expression>) or ANSWER(<number>)."
CALC = re.compile(r"CALC\((.{1,80}?)\)(?:\s|$)")
ANSWER = re.compile(r"ANSWER\(\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*\)")
OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
REPLY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One try at one task: what the agent said, and how many tokens the API reported to it."""

    session: AsyncSession
    replies: tuple[str, ...]
    sampled_tokens: int
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is rolled out."""

    group_size: int
    max_turns: int
    max_tokens: int  # of one reply


async def act(base_url: str, task: str, settings: Settings) -> tuple[list[str], int]:
    """The agent. It knows nothing of the router but a base URL.

    Returns:
        Its replies, and the completion tokens that the API reported for them.
    """
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": task},
    ]
    replies: list[str] = []
    sampled_tokens = 0
    async with AsyncOpenAI(
        base_url=base_url, api_key="none", timeout=REPLY_TIMEOUT_S, max_retries=0
    ) as llm:
        for _ in range(settings.max_turns):
            try:
                answer = await llm.chat.completions.create(
                    model="policy", messages=messages, max_tokens=settings.max_tokens
                )
            except APIStatusError as error:  # the context is full, say: what there is still counts
                print(f"an agent ends early: {error.message}", file=sys.stderr)
                break
            replies.append(answer.choices[0].message.content or "")
            sampled_tokens += answer.usage.completion_tokens if answer.usage else 0
            if ANSWER.search(replies[-1]):
                break
            messages.append({"role": "assistant", "content": replies[-1]})
            messages.append({"role": "user", "content": observe(replies[-1])})
    return replies, sampled_tokens


def observe(reply: str) -> str:
    """What the environment says to a reply, whatever is in it."""
    asked = CALC.search(reply)
    if asked is None:
        return NUDGE
    try:
        return f"{asked[1]} = {evaluate(ast.parse(asked[1].strip(), mode='eval').body):g}"
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return f"{asked[1]!r} is not a sum. {NUDGE}"


def evaluate(node: ast.expr) -> float:
    """The value of a sum.

    Raises:
        ValueError: it is something else.
    """
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand)
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate(node.left), evaluate(node.right))
    raise ValueError("not a sum")


def score(replies: Sequence[str], result: float) -> float:
    """1 for the right answer; else up to a half for letters, where a model of noise begins."""
    answers = [float(found[1]) for reply in replies if (found := ANSWER.search(reply))]
    if answers and answers[-1] == result:
        return 1.0
    text = "".join(replies)
    letters = sum(char.isascii() and char.isalpha() for char in text)
    return 0.5 * letters / max(len(text), 1)


async def roll_out(
    client: AsyncClient, group_id: str, number: int, task: tuple[str, float], settings: Settings
) -> Rollout:
    """One session from its opening to its reward."""
    question, result = task
    session = await client.open_session(
        group_id=group_id,
        rollout_id=f"{group_id}/{number}",
        metadata={"question": question},
        sampling={"temperature": 1.0},
        max_turns=settings.max_turns,
    )
    async with session:  # leaving it waits for what is in flight, and freezes the session
        replies, sampled_tokens = await act(session.base_url, question, settings)
    reward = score(replies, result)
    await session.set_reward(reward)
    return Rollout(session, tuple(replies), sampled_tokens, reward)


async def roll_out_all(client: AsyncClient, settings: Settings) -> bool:
    """Roll out a group for each task, and print the batch; True when every token is there."""
    run = uuid.uuid4().hex[:8]
    group_ids = [f"{run}/{number}" for number in range(len(TASKS))]
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(roll_out(client, group_id, number, task, settings))
            for group_id, task in zip(group_ids, TASKS, strict=True)
            for number in range(settings.group_size)
        ]
    rollouts = [task.result() for task in running]
    exports = [export for group_id in group_ids async for export in client.rows(group_id=group_id)]
    show_batch(exports)
    is_whole = show_proof(exports, rollouts)
    for rollout in rollouts:
        await rollout.session.delete()  # the trainer has its rows
    return is_whole


def show_batch(exports: Iterable[Export]) -> None:
    """The batch as a trainer would take it, row by row."""
    rows = [row for export in exports for row in export.rows]
    print(f"{'rollout':<14}{'tokens':>7}{'trained':>9}{'reward':>9}{'advantage':>11}  versions")
    for row, advantage in zip(rows, group_advantages(rows), strict=True):
        versions = ", ".join(map(str, dict.fromkeys(row.turn_versions))) or "-"
        print(
            f"{row.rollout_id:<14}{len(row.tokens):>7}{row.trained_tokens:>9}"
            f"{row.reward:>9.3f}{advantage:>+11.3f}  {versions}"
        )


def show_proof(exports: Sequence[Export], rollouts: Sequence[Rollout]) -> bool:
    """Whether each sampled token that was reported to an agent is trained, once."""
    reported = sum(rollout.sampled_tokens for rollout in rollouts)
    sampled = sum(export.stats.sampled_tokens for export in exports)
    trained = sum(row.trained_tokens for export in exports for row in export.rows)
    left_out = [(why, lost) for export in exports for why, lost in export.stats.left_out.items()]
    print(f"\ntokens: {reported} reported, {sampled} sampled, {trained} trained", end="")
    print("".join(f", {lost.tokens} left out ({why})" for why, lost in left_out if lost.tokens))
    is_whole = reported == sampled == trained
    print("Every sampled token is trained, once." if is_whole else "DIFFERENT: see left_out.")
    return is_whole


async def main() -> None:
    """Read the command line and roll out."""
    parser = argparse.ArgumentParser(description="A GRPO rollout through slime_router.")
    parser.add_argument("--router", default="http://127.0.0.1:30001", help="where it listens")
    parser.add_argument("--group-size", type=int, default=4, help="rollouts of each prompt")
    parser.add_argument("--max-turns", type=int, default=3, help="turns of a rollout")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens of a reply")
    args = parser.parse_args()
    settings = Settings(
        group_size=args.group_size, max_turns=args.max_turns, max_tokens=args.max_tokens
    )
    try:
        async with AsyncClient(args.router) as client:
            is_whole = await roll_out_all(client, settings)
    except BaseExceptionGroup as group:
        error = first_of(group)
        if not isinstance(error, ClientError):
            raise
        sys.exit(f"grpo_rollout: {error}")
    except ClientError as error:
        sys.exit(f"grpo_rollout: {error}")
    sys.exit(0 if is_whole else 1)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; most likely the other rollouts failed of the same."""
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    asyncio.run(main())
