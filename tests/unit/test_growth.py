"""What a request costs does not depend on how many came before it: counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest

from slime_router.types import Finish, GenerateCall
from tests.effort import opcodes
from tests.stack import Sample, Stack

pytestmark = pytest.mark.slow  # thousands of requests

STOP = 514  # <|im_end|>
REPLY = [72, 105, STOP]


def again(stack: Stack, number: int) -> GenerateCall:
    """Evaluations and probes: one prompt with one reply."""
    return stack.call(["Hi"])


def in_a_session(stack: Stack, number: int) -> GenerateCall:
    return stack.call(["Hi"], session_id="s")


def as_text(stack: Stack, number: int) -> GenerateCall:
    return stack.call("Once upon a time", session_id="s")


def another(stack: Stack, number: int) -> GenerateCall:
    """Trajectories that share a system prompt only."""
    return stack.call([f"Question {10_000 + number}"], session_id=f"s{number}")


def other_salts(stack: Stack, number: int) -> GenerateCall:
    return stack.call(["Hi"], scope=f"salt{number}")


@pytest.mark.parametrize("history", ["held", "template"])
@pytest.mark.parametrize("kind", [again, in_a_session, as_text, another, other_salts])
def test_the_two_thousandth_request_costs_what_the_hundredth_did(
    kind: Callable[[Stack, int], GenerateCall], history: Any
) -> None:
    stack = Stack(history=history, budget_tokens=20_000)  # what comes later displaces the first
    numbers = count()
    with asyncio.Runner() as runner:

        def one() -> None:
            reply = Sample(REPLY, Finish("stop", STOP))
            runner.run(stack.generate(kind(stack, next(numbers)), reply))

        def typical() -> int:
            return sorted(opcodes(partial(one)) for _ in range(9))[4]

        for _ in range(100):
            one()
        early = typical()
        for _ in range(2_000):
            one()
        late = typical()
    stack.store.check_integrity()
    stack.cache.check_integrity()
    assert late <= 1.25 * early  # eviction has its share by then
