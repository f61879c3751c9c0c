"""Whether rows are what was sampled, token by token. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from slime_router.conformance.adapter import HandedRow
from slime_router.conformance.worker import Exchange

TOLERANCE = 1e-6  # of a log-probability, which may have been a float32 in between


def find_faults(rows: Sequence[HandedRow], exchanges: Sequence[Exchange]) -> list[str]:
    """What is wrong with rows, a line each.

    A trained token must have been sampled right after all tokens before it, with its
    log-probability; and every sampled token must be trained, once.
    """
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, exchange in enumerate(exchanges):
        for index in range(len(exchange.ids)):
            before = exchange.prompt + exchange.ids[:index]
            places.setdefault(before, []).append((number, index))
    trained: set[tuple[int, int]] = set()
    strange = wrong = twice = 0
    for row in rows:
        tokens = tuple(row.tokens)
        for at, mask in enumerate(row.loss_mask):
            if not mask:
                continue
            found = [
                (number, index)
                for number, index in places.get(tokens[:at], ())
                if exchanges[number].ids[index] == tokens[at]
            ]
            exact = [place for place in found if _has_logprob(row, at, exchanges, place)]
            free = [place for place in exact if place not in trained]
            strange += not found
            wrong += bool(found) and not exact
            twice += bool(exact) and not free
            trained.update(free[:1])
    missing = sum(len(exchange.ids) for exchange in exchanges) - len(trained)
    return [*_counted(strange, wrong, twice, missing)]


def _has_logprob(
    row: HandedRow, at: int, exchanges: Sequence[Exchange], place: tuple[int, int]
) -> bool:
    if row.logprobs is None:
        return False
    number, index = place
    return abs(row.logprobs[at] - exchanges[number].logprobs[index]) <= TOLERANCE


def _counted(strange: int, wrong: int, twice: int, missing: int) -> Iterator[str]:
    if strange:
        yield f"{strange} trained tokens were never sampled after the tokens before them"
    if wrong:
        yield f"{wrong} trained tokens lack the log-probability that they were sampled with"
    if twice:
        yield f"{twice} sampled tokens are trained twice"
    if missing:
        yield f"{missing} sampled tokens are not trained"


def find_drift(exchanges: Sequence[Exchange]) -> list[str]:
    """Where a prompt departs from what was held before it, a line for each turn."""
    faults = []
    for turn, (before, after) in enumerate(pairwise(exchanges), 2):
        held = before.prompt + before.ids
        common = next(
            (at for at, (a, b) in enumerate(zip(held, after.prompt, strict=False)) if a != b),
            min(len(held), len(after.prompt)),
        )
        if common < len(held):
            faults.append(f"the prompt of turn {turn} departs from {common} of {len(held)} tokens")
    return faults
