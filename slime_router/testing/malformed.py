"""Items of a worker that lies: one thing in each of them is what no worker may send.

`slime_router.testing.FakeWorker` behaves like SGLang. This is for the opposite: `malformed` takes
an item that it would send, and spoils it in one of many ways.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

from slime_router.testing.fake_worker import FakeWorker

Item: TypeAlias = dict[str, Any]
Spoil: TypeAlias = Callable[[Item, Random], None]

BAD_IDS: tuple[Any, ...] = (-1, 2**31, 2**63, 10**30, 7.5, 8.0, "7", True, None, [7], {}, "\ud83d")
BAD_LOGPROBS: tuple[Any, ...] = (1e300, -1e300, 10**400, 0.5, True, "x", [], {})
BAD_COUNTS: tuple[Any, ...] = ("x", {}, [], -1, 1.5, 2**40, True)
BAD_VERSIONS: tuple[Any, ...] = ([], {}, 1.5, True, "v" * 10_000, 2**80)
BAD_TEXTS: tuple[Any, ...] = (5, [], {}, True, "\ud83d")
DEPTH = 200_000
NOT_OBJECTS = (
    b"{", b"null", b"[1]", b"5", b'"x"', b"\xff\xfe", b"[" * DEPTH, b'{"a":' * DEPTH,
    b"<html>", b"{}", b'{"meta_info":{}}', b'{"text":"x","output_ids":[1]}',
)  # fmt: skip


def malformed(item: Item, random: Random) -> bytes:
    """`item`, which samples at least one token and has logprobs, spoiled in one way."""
    if random.random() < 0.1:
        return random.choice(NOT_OBJECTS)
    spoiled = copy.deepcopy(item)
    random.choice(SPOILERS)(spoiled, random)
    return _dumps(spoiled)


def _dumps(item: Item) -> bytes:
    """JSON as a careless worker writes it: lone surrogates escaped, ints of any size, `NaN`."""
    return json.dumps(item, separators=(",", ":")).encode()


def _bad_id(item: Item, random: Random) -> None:
    ids = item["output_ids"]
    ids[random.randrange(len(ids))] = random.choice(BAD_IDS)


def _bad_id_twice(item: Item, random: Random) -> None:
    """The logprobs agree with it."""
    place, bad = random.randrange(len(item["output_ids"])), random.choice(BAD_IDS)
    item["output_ids"][place] = bad
    item["meta_info"]["output_token_logprobs"][place][1] = bad


def _bad_logprob(item: Item, random: Random) -> None:
    entries = item["meta_info"]["output_token_logprobs"]
    random.choice(entries)[0] = random.choice(BAD_LOGPROBS)


def _other_entries(item: Item, random: Random) -> None:
    entries = item["meta_info"]["output_token_logprobs"]
    kind = random.randrange(4)
    if kind == 0:
        entries.append([-1.0, 1, None])
    elif kind == 1:
        random.choice(entries)[1] += 1
    elif kind == 2:
        entries[random.randrange(len(entries))] = random.choice([None, 5, "x", [], [-1.0]])
    else:
        item["meta_info"]["output_token_logprobs"] = random.choice(["x", 5, {"a": 1}])


def _bad_count(item: Item, random: Random) -> None:
    name = random.choice(("prompt_tokens", "cached_tokens", "completion_tokens"))
    item["meta_info"][name] = random.choice(BAD_COUNTS)


def _bad_version(item: Item, random: Random) -> None:
    item["meta_info"]["weight_version"] = random.choice(BAD_VERSIONS)


def _bad_spans(item: Item, random: Random) -> None:
    item["meta_info"]["weight_versions"] = random.choice(
        (
            "x",
            [5],
            [{}],
            [{"version": "1", "start": 0, "end": 10**6}],
            [{"version": "1", "start": 3, "end": 1}],
            [{"version": "1", "start": -1, "end": 1}],
        )
    )


def _bad_finish(item: Item, random: Random) -> None:
    item["meta_info"]["finish_reason"] = random.choice(
        (
            "length",
            5,
            [],
            {"type": "tired"},
            {"type": None},
            {"type": {}},
            {"type": "abort", "status_code": "abc"},
            {"type": "abort", "status_code": 10**9},
            {"type": "abort", "message": ["x"]},
            {"type": "stop", "matched": "x" * 100_000},
        )
    )


def _bad_text(item: Item, random: Random) -> None:
    item["text"] = random.choice(BAD_TEXTS)


def _missing(item: Item, random: Random) -> None:
    if random.random() < 0.5:
        del item["meta_info"]
    else:
        item["meta_info"] = random.choice([None, 5, [], "x"])


def _bad_shape(item: Item, random: Random) -> None:
    item["output_ids"] = random.choice([5, "xy", {}, [[]], {"0": 1}])


SPOILERS: tuple[Spoil, ...] = (
    _bad_id,
    _bad_id_twice,
    _bad_logprob,
    _other_entries,
    _bad_count,
    _bad_version,
    _bad_spans,
    _bad_finish,
    _bad_text,
    _missing,
    _bad_shape,
)


class LyingWorker(FakeWorker):
    """A fake worker that spoils some of its items.

    `share` of them, at random; `random` decides which, and how.
    """

    def __init__(self, random: Random, *, share: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.spoiled = 0
        self._random = random
        self._share = share

    async def __aenter__(self) -> LyingWorker:
        await super().__aenter__()
        return self

    def write(self, item: Any) -> bytes:
        """The item, spoiled or not; one without tokens or logprobs stays as it is."""
        is_fit = isinstance(item, dict) and item["output_ids"]
        is_fit = is_fit and "output_token_logprobs" in item["meta_info"]
        if not is_fit or self._random.random() >= self._share:
            return super().write(item)
        self.spoiled += 1
        return malformed(item, self._random)
