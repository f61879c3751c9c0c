"""Turns: one generation each, exactly as it was sampled. Values only.

With each, its account: when, where and for whom it was sampled, and the words around it.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeAlias, TypedDict, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from slime_router.json_text import cut_to_size
from slime_router.trajectory.measures.distribution import Distribution
from slime_router.trajectory.measures.scores import Scores
from slime_router.trajectory.measures.top_logprobs import TopLogprobs
from slime_router.trajectory.routed_experts import RoutedExperts
from slime_router.types import (
    Finish,
    Message,
    Receipt,
    Speculation,
    TokenIds,
    TurnKind,
    VersionSpan,
    WeightVersion,
)
from slime_router.values import replace, value

_FIXED_BYTES = 200  # of an account without its texts: numbers, and names that others share


@value(frozen=True, slots=True, kw_only=True)
class Account:
    """How one turn came about. Times are seconds, `started` is Unix time.

    `words` are the messages that came after those of its base (all of them where it continues no
    turn by its messages) and its reply, as JSON; None where they are not kept.
    """

    started: float
    duration_s: float  # until the whole reply was here
    queued_s: float = 0.0  # until it had a slot
    prompt_s: float = 0.0  # to make the prompt
    first_token_s: float | None = None  # from the start
    workers: tuple[str, ...] = ()  # URLs, in the order in which they sampled
    door: str = ""  # the path that it was asked at
    key: str = ""  # the name of the API key
    request_id: str = ""  # of the HTTP request
    rid: str = ""  # as the client knows it
    adapter: str = ""  # that sampled it; "": the model itself
    words: bytes | None = None
    goes_on: bool = False  # its words come after those of its base

    @property
    def size(self) -> int:
        """The bytes that it takes, about."""
        return _FIXED_BYTES + len(self.request_id) + len(self.rid) + len(self.words or b"")

    def without_words(self) -> Account:
        """The same with nothing that anybody said."""
        return replace(self, words=None)

    def said(self) -> tuple[list[Message], Message | None]:
        """The turn's own messages, and its reply; empty and None if words are not kept."""
        if self.words is None:
            return [], None
        known: dict[str, Any] = json.loads(self.words)
        return known["messages"], known["reply"]


def packed_words(messages: Sequence[Message], reply: Message) -> bytes:
    """Messages and reply as `Account.words`."""
    words = {"messages": messages, "reply": reply}
    try:
        return cut_to_size(orjson.dumps(words))
    except TypeError:  # halves of emojis, or deeper than orjson writes
        return json.dumps(words, separators=(",", ":")).encode()


Logprobs = NDArray[np.float32] | NDArray[np.float64]
Picture: TypeAlias = tuple[int, str]  # the place of its token among those held, and its digest
ByNumber: TypeAlias = dict[str, int]  # ids of turns to their numbers, the lowest first


def logprob_array(values: Sequence[float | None]) -> Logprobs:
    """Log-probabilities of shape `[tokens]`, NaN for a missing one, bit for bit as they came.

    SGLang computes them in float32, so half the memory keeps them exactly; where a worker gives
    more digits, float64 does.
    """
    if None in values:
        values = [math.nan if each is None else each for each in values]
    floats = cast("Sequence[float]", values)
    exact, small = array("d", floats), array("f", floats)
    is_exact = array("d", small).tobytes() == exact.tobytes()
    result: Logprobs = np.array(small if is_exact else exact)
    result.setflags(write=False)
    return result


def narrowed(exact: NDArray[np.float64]) -> Logprobs:
    """What `logprob_array` makes of the same values, for many that are in an array already."""
    with np.errstate(over="ignore"):
        small = exact.astype(np.float32)
    is_exact = small.astype(np.float64).tobytes() == exact.tobytes()
    result: Logprobs = small if is_exact else exact
    result.setflags(write=False)
    return result


@value(frozen=True, slots=True, kw_only=True)
class Turn:
    """One generation as it was sampled."""

    id: str
    base: str | None  # the turn whose held tokens the prompt begins with
    base_len: int  # how many of them
    prompt_ids: TokenIds  # the prompt after those
    output_ids: TokenIds
    logprobs: Logprobs | None  # of output_ids; None when they were not asked for
    weight_versions: tuple[VersionSpan, ...]
    finish: Finish
    keys: tuple[bytes, ...] = ()  # the conversation with the reply appended
    spelling: bytes = b""  # how its replies are spelled, white space included
    asked: bytes | None = None  # the key of the conversation that it answered
    calls: tuple[tuple[str, str], ...] = ()  # id and name of the tool calls in the reply
    handles: tuple[str, ...] = ()  # those of their ids that no other turn can have
    session_id: str | None = None
    conversation: str = ""  # without a session: what the turns of a conversation go together by
    scope: str = ""
    date: str | None = None  # pinned for the conversation
    request_id: str = ""  # shared by the samples that one request asked for
    receipt: Receipt | None = None
    routed_experts: RoutedExperts | None = None
    indexer_topk: RoutedExperts | None = None  # what a sparse attention's indexer chose, likewise
    distribution: Distribution | None = None  # what output_ids were sampled from
    top_logprobs: TopLogprobs | None = None  # the likeliest tokens at each of output_ids
    uncaptured: str = ""  # why some have no mask, though only a part of the vocabulary was left
    epoch: int = 0  # counts weight updates; see `slime_router.generation.weight_versions`
    seq: int = 0  # set by the store
    account: Account | None = None  # None: recorded by a router that kept none
    said_kind: TurnKind | None = None  # by the client; see `slime_router.rows.lineage`
    pictures: tuple[Picture, ...] = ()  # of its whole prompt
    speculation: Speculation | None = None  # where the worker reported it
    reward: float | None = None  # of this turn alone; a trainer may change it at any time
    tags: tuple[str, ...] = ()  # likewise
    scores: Scores = field(default_factory=dict)  # of the row that ends with it; likewise

    def check(self, base: Turn | None) -> None:
        """Whether its parts belong together, and to its base.

        Raises:
            ValueError: they do not.
        """
        if self.logprobs is not None and len(self.logprobs) != len(self.output_ids):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.output_ids)} tokens")
        if self.distribution is not None:
            self.distribution.check(len(self.output_ids))
        if self.top_logprobs is not None:
            self.top_logprobs.check(len(self.output_ids))
        if not 0 <= self.base_len <= (base.held_len if base else 0):
            raise ValueError(f"turn {self.id} reuses more than its base holds")

    @property
    def sample_id(self) -> str:
        """The id of the first try at this sample: a plug-in's further tries are `ID-2`, ..."""
        return self.id.partition("-")[0]

    @property
    def held_len(self) -> int:
        """Prompt and output tokens in all."""
        return self.base_len + len(self.prompt_ids) + len(self.output_ids)

    @property
    def own_len(self) -> int:
        """The tokens that it adds to its base."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def last_id(self) -> int | None:
        """The last held token that was sampled, whatever the worker says of the stop."""
        return int(self.output_ids[-1]) if len(self.output_ids) else None

    def output_versions(self) -> list[WeightVersion | None]:
        """The weight version of each output token, None where the worker gave none."""
        versions: list[WeightVersion | None] = [None] * len(self.output_ids)
        for span in self.weight_versions:
            start, end = max(span.start, 0), min(span.end, len(versions))
            versions[start:end] = [span.version] * max(end - start, 0)
        return versions


class Marks(TypedDict, total=False):
    """What a trainer says of a recorded turn; each may change at any time."""

    reward: float | None
    tags: tuple[str, ...]
    scores: Scores


@value(frozen=True, slots=True)
class Trace:
    """Tokens with what training needs of each; all of one length."""

    ids: TokenIds
    loss_mask: NDArray[np.int8]  # 1 where a model sampled the token
    logprobs: NDArray[np.float64]  # NaN where there is none
    weight_versions: tuple[WeightVersion | None, ...]


def put_by_number(turns: ByNumber, turn_id: str, seq: int) -> None:
    """Add a turn at its place: the last one, unless it comes from another router."""
    last = next(reversed(turns.values()), seq)
    turns[turn_id] = seq
    if seq < last:
        ordered = sorted(turns.items(), key=lambda item: item[1])
        turns.clear()
        turns.update(ordered)
