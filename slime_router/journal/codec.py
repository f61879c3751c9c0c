"""Turns and sessions as bytes: little-endian, packed, with a checksum. Pure.

A turn is

    4 bytes   CRC-32 of everything after them
    4 bytes   length of the head
    head      JSON: every field that is not an array, and the type and shape of those that are;
              names that this router does not know are passed over
    arrays    prompt ids, output ids, logprobs, routed experts, one after the other; then, where
              it has any of them, indexer top-k, and lengths, ids and logprobs of its masks; then,
              where it has them, lengths, ids and logprobs of the likeliest tokens; then, of each
              worker group that scored its row, the logprobs, and ids and logprobs of the likeliest
    account   4 bytes: length of the JSON after them; that, and then the words; all of it may be
              missing, and an older router does not read it

A session is JSON, of which unknown names are passed over, too. Texts may hold halves of surrogate
pairs, as models sample them: JSON escapes them, so they come back as they were.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import chain, count
from operator import attrgetter
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from slime_router.trajectory.measures.distribution import distribution
from slime_router.trajectory.measures.scores import TeacherScore
from slime_router.trajectory.measures.top_logprobs import top_logprobs
from slime_router.trajectory.routed_experts import RoutedExperts
from slime_router.trajectory.session import Reward, Session, SessionSpec
from slime_router.trajectory.turn import Account, Turn
from slime_router.types import Finish, Grammar, Pins, Receipt, Sampling, Speculation, VersionSpan

_PREFIX = struct.Struct("<II")
_KNOWN = {each.name for each in fields(Turn)}
# What few turns have.
_MARKS = ("uncaptured", "said_kind", "speculation", "reward", "tags", "pictures")
_NO_MARKS = ("", None, None, None, (), ())
_OF_SPEC = tuple(each.name for each in fields(SessionSpec))
_OF_ACCOUNT = tuple(each.name for each in fields(Account))
# All fields at once: while a turn is packed, the loop waits for the interpreter.
_marks_of, _account_of = attrgetter(*_MARKS), attrgetter(*_OF_ACCOUNT)
_span_of = attrgetter("version", "start", "end")
_finish_of = attrgetter("type", "matched", "message", "status_code")
_ARRAYS = (  # in this order; the first routers knew four, those before top logprobs eight
    "prompt_ids",
    "output_ids",
    "logprobs",
    "experts",
    "indexer",
    "mask_lengths",
    "mask_ids",
    "mask_logprobs",
    "top_lengths",
    "top_ids",
    "top_logprobs",
)
_LITTLE = "=<|" if sys.byteorder == "little" else "<|"  # orders of bytes that stay as they are


class Damaged(ValueError):
    """The bytes are not those that were written."""


def packed_turn(turn: Turn) -> bytes:
    """A turn as bytes that `unpacked_turn` reads."""
    experts, indexer, receipt = turn.routed_experts, turn.indexer_topk, turn.receipt
    kinds, blobs = _written(_arrays_of(turn))
    head: dict[str, Any] = {
        "id": turn.id,
        "base": turn.base,
        "base_len": turn.base_len,
        "weight_versions": list(map(_span_of, turn.weight_versions)),
        "finish": _finish_of(turn.finish),
        "keys": list(map(bytes.hex, turn.keys)),
        "spelling": turn.spelling.hex(),
        "asked": None if turn.asked is None else turn.asked.hex(),
        "calls": turn.calls,
        "handles": turn.handles,
        "session_id": turn.session_id,
        "scope": turn.scope,
        "date": turn.date,
        "request_id": turn.request_id,
        "receipt": None if receipt is None else receipt.to_dict(),
        "experts_start": None if experts is None else experts.start,
        "seq": turn.seq,
    }
    if indexer is not None:
        head["indexer_start"] = indexer.start
    if turn.conversation:
        head["conversation"] = turn.conversation
    if (marks := _marks_of(turn)) != _NO_MARKS:
        named = zip(_MARKS, marks, strict=True)
        head |= {name: value for name, value in named if value not in (None, (), "")}
    if turn.scores:
        head["scores"] = [(name, each.version) for name, each in turn.scores.items()]
    head["arrays"] = kinds
    text = _json(head)
    account = b"" if turn.account is None else _packed_account(turn.account)
    body = b"".join([text, *blobs, account])
    length = len(text).to_bytes(4, "little")
    return _PREFIX.pack(zlib.crc32(body, zlib.crc32(length)), len(text)) + body


def _arrays_of(turn: Turn) -> list[NDArray[Any] | None]:
    """In the order of `_ARRAYS`; most turns have only those that the oldest router reads, too."""
    experts, indexer, masks = turn.routed_experts, turn.indexer_topk, turn.distribution
    tops, scores = turn.top_logprobs, turn.scores
    arrays: list[NDArray[Any] | None] = [
        turn.prompt_ids,
        turn.output_ids,
        turn.logprobs,
        None if experts is None else experts.ids,
    ]
    has_later = tops is not None or bool(scores)
    if has_later or indexer is not None or masks is not None:
        arrays.append(None if indexer is None else indexer.ids)
        arrays += (None,) * 3 if masks is None else (masks.lengths, masks.ids, masks.logprobs)
    if has_later:
        arrays += (None,) * 3 if tops is None else (tops.lengths, tops.ids, tops.logprobs)
        arrays += [part for each in scores.values() for part in _parts(each)]
    return arrays


def _written(
    arrays: Iterable[NDArray[Any] | None],
) -> tuple[list[tuple[str, tuple[int, ...]] | None], list[bytes]]:
    """Type and shape of each, and the bytes of those that are there."""
    kinds: list[tuple[str, tuple[int, ...]] | None] = []
    blobs = []
    for array in arrays:
        if array is None:
            kinds.append(None)
            continue
        dtype = array.dtype
        if dtype.byteorder not in _LITTLE:
            dtype = dtype.newbyteorder("<")
            array = array.astype(dtype)
        kinds.append((dtype.str, array.shape))
        blobs.append(array.tobytes())
    return kinds, blobs


def unpacked_turn(data: bytes) -> Turn:
    """The turn that `packed_turn` made these bytes of; its epoch is 0.

    Raises:
        Damaged: they are not as they were written.
    """
    with _of_its_form("a turn"):
        if len(data) < _PREFIX.size:
            raise Damaged(f"a turn of {len(data)} bytes")
        crc, length = _PREFIX.unpack_from(data)
        body = memoryview(data)[_PREFIX.size :]
        if zlib.crc32(body, zlib.crc32(data[4:8])) != crc:
            raise Damaged("a turn with a wrong checksum")
        return _turn(body, length)


@contextmanager
def _of_its_form(what: str) -> Iterator[None]:
    """Others may have written anything: bytes with a right checksum, in SQLite also numbers."""
    try:
        yield
    except Damaged:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as exc:
        raise Damaged(f"{what} that is not of its form ({type(exc).__name__}: {exc})") from exc


def _turn(body: memoryview, length: int) -> Turn:
    head = json.loads(bytes(body[:length]))
    arrays, end = _arrays(head.pop("arrays"), body[length:])
    prompt_ids, output_ids = arrays["prompt_ids"], arrays["output_ids"]
    assert prompt_ids is not None
    assert output_ids is not None
    start, experts = head.pop("experts_start"), arrays["experts"]
    receipt = head.pop("receipt")
    indexer_start, indexer = head.pop("indexer_start", 0), arrays.get("indexer")
    speculation, scorers = head.pop("speculation", None), head.pop("scores", ())
    return Turn(
        **{
            **{name: value for name, value in head.items() if name in _KNOWN},
            "weight_versions": tuple(VersionSpan(*span) for span in head["weight_versions"]),
            "finish": Finish(*head["finish"]),
            "keys": tuple(map(bytes.fromhex, head["keys"])),
            "spelling": bytes.fromhex(head["spelling"]),
            "asked": None if head["asked"] is None else bytes.fromhex(head["asked"]),
            "calls": tuple((call, name) for call, name in head["calls"]),
            "handles": tuple(head["handles"]),
            "tags": tuple(head.get("tags", ())),
            "pictures": tuple((place, digest) for place, digest in head.get("pictures", ())),
        },
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        logprobs=arrays["logprobs"],
        receipt=None if receipt is None else _receipt(receipt),
        speculation=None if speculation is None else Speculation(*speculation),
        routed_experts=None if experts is None else RoutedExperts(start, experts),
        indexer_topk=None if indexer is None else RoutedExperts(indexer_start, indexer),
        distribution=None if (masks := _csr(arrays, "mask")) is None else distribution(*masks),
        top_logprobs=None if (tops := _csr(arrays, "top")) is None else top_logprobs(*tops),
        scores=_scores(scorers, arrays),
        account=_unpacked_account(bytes(body[length + end :])),
    )


def _packed_account(account: Account) -> bytes:
    known = dict(zip(_OF_ACCOUNT, _account_of(account), strict=True))
    words = known.pop("words")
    known["has_words"] = words is not None
    text = _json(known)
    return len(text).to_bytes(4, "little") + text + (words or b"")


def _unpacked_account(data: bytes) -> Account | None:
    """The account at the end of a turn; what a newer router adds to it is left out."""
    if not data:
        return None
    end = 4 + int.from_bytes(data[:4], "little")
    known = json.loads(data[4:end])
    words = data[end:] if known.pop("has_words") else None
    known["workers"] = tuple(known["workers"])
    names = known.keys() & set(_OF_ACCOUNT)
    return Account(**{name: known[name] for name in names}, words=words)


def _json(known: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(known, default=tuple)  # as it writes no named tuples by itself
    except TypeError:  # halves of surrogate pairs, or an integer beyond 64 bits
        return json.dumps(known, separators=(",", ":")).encode()


def _arrays(kinds: list[Any], data: memoryview) -> tuple[dict[str, NDArray[Any] | None], int]:
    """The arrays by name, read-only, each in its own memory; and where they end."""
    arrays: dict[str, NDArray[Any] | None] = {}
    start = 0
    names = chain(_ARRAYS, map(str, count()))  # those of scores have numbers
    for name, kind in zip(names, kinds, strict=False):
        if kind is None:
            arrays[name] = None
            continue
        dtype, shape = np.dtype(kind[0]), tuple(kind[1])
        end = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(data[start:end], dtype).astype(dtype.newbyteorder("="))
        arrays[name] = array = array.reshape(shape)
        array.setflags(write=False)
        start = end
    return arrays, start


def _parts(score: TeacherScore) -> tuple[NDArray[Any], ...]:
    return score.logprobs, score.top_ids, score.top_logprobs


def _scores(
    scorers: Sequence[Sequence[Any]], arrays: Mapping[str, NDArray[Any] | None]
) -> dict[str, TeacherScore]:
    """The scores of these groups and versions, three arrays of each."""
    found = {}
    for index, (group, version) in enumerate(scorers):
        logprobs, ids, tops = (arrays[str(3 * index + each)] for each in range(3))
        assert logprobs is not None
        assert ids is not None
        assert tops is not None
        found[group] = TeacherScore(logprobs, ids, tops, version)
    return found


def _csr(
    arrays: Mapping[str, NDArray[Any] | None], name: str
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Lengths, ids and logprobs; None where there are none."""
    lengths, ids = arrays.get(f"{name}_lengths"), arrays.get(f"{name}_ids")
    logprobs = arrays.get(f"{name}_logprobs")
    if lengths is None or ids is None or logprobs is None:
        return None
    return lengths, ids, logprobs


def _receipt(known: Mapping[str, Any]) -> Receipt:
    return Receipt(**{**_named(Receipt, known), "notes": tuple(known.get("notes", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """A session without its turns; by default one that is a mere name."""

    spec: SessionSpec
    was_opened: bool = False
    is_closed: bool = False
    was_exported: bool = False
    reward: Reward | None = None
    dropped_turns: int = 0
    dropped_tokens: int = 0
    opener: str = ""
    started: float | None = None

    @classmethod
    def of(cls, session: Session) -> SessionState:
        """A session as it is now; one that is being closed is open until it is closed."""
        return cls(
            spec=SessionSpec(**{name: getattr(session, name) for name in _OF_SPEC}),
            was_opened=session.was_opened,
            is_closed=session.state == "closed",
            was_exported=session.was_exported,
            reward=session.reward,
            dropped_turns=session.dropped_turns,
            dropped_tokens=session.dropped_tokens,
            opener=session.opener,
            started=session.started,
        )


def packed_session(state: SessionState) -> bytes:
    """A session as bytes that `unpacked_session` reads."""
    spec = {name: getattr(state.spec, name) for name in _OF_SPEC}
    known = {each.name: getattr(state, each.name) for each in fields(SessionState)}
    spec["metadata"], spec["sampling"] = dict(state.spec.metadata), asdict(state.spec.sampling)
    spec["sampling_pins"] = asdict(state.spec.sampling_pins)
    body = json.dumps({**known, "spec": spec}, separators=(",", ":")).encode()
    return zlib.crc32(body).to_bytes(4, "little") + body


def unpacked_session(data: bytes) -> SessionState:
    """The session that `packed_session` made these bytes of.

    Raises:
        Damaged: they are not as they were written.
    """
    with _of_its_form("a session"):
        body = data[4:]
        if not body or zlib.crc32(body) != int.from_bytes(data[:4], "little"):
            raise Damaged("a session with a wrong checksum")
        return _session_state(json.loads(body))


def _session_state(known: dict[str, Any]) -> SessionState:
    spec = _named(SessionSpec, known["spec"])
    spec["sampling"] = _sampling(spec["sampling"])
    pins = spec.pop("sampling_pins", None)  # an older journal has none
    if pins is not None:
        names, pinned = tuple(pins["names"]), _sampling(pins["sampling"])
        spec["sampling_pins"] = Pins(names=names, sampling=pinned)
    return SessionState(**{**_named(SessionState, known), "spec": SessionSpec(**spec)})


def packed_opening(at: float) -> bytes:
    """When a session was opened, as bytes that `unpacked_opening` reads."""
    return json.dumps(at).encode()


def unpacked_opening(data: bytes) -> float:
    """The time that `packed_opening` made these bytes of.

    Raises:
        Damaged: they are not as they were written.
    """
    try:
        return float(json.loads(data))
    except (ValueError, TypeError) as exc:
        raise Damaged(f"an opening: {exc}") from exc


def _named(kind: type[Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the fields of a dataclass: newer routers may write more."""
    names = known.keys() & {each.name for each in fields(kind)}
    return {name: known[name] for name in names}


def _sampling(known: dict[str, Any]) -> Sampling:
    known = _named(Sampling, known)
    grammar = known.pop("grammar")
    tuples = {name: tuple(known[name]) for name in ("stop", "stop_token_ids", "stop_regex")}
    return Sampling(**{**known, **tuples}, grammar=None if grammar is None else Grammar(**grammar))
