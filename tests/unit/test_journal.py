"""What the journal is made of: bytes, the file, and the thread that writes it."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import struct
import threading
import zlib
from contextlib import closing, suppress
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from slime_router.archive.database import SharedDatabase
from slime_router.archive.port import Kept
from slime_router.errors import SetupError
from slime_router.journal import writer as writer_module
from slime_router.journal.codec import (
    Damaged,
    SessionState,
    packed_opening,
    packed_session,
    packed_turn,
    unpacked_opening,
    unpacked_session,
    unpacked_turn,
)
from slime_router.journal.database import (
    MAX_DELETED,
    SCHEMA,
    Change,
    Database,
    Drop,
    MarkUndelivered,
    Put,
    PutTurn,
    as_text,
)
from slime_router.journal.writer import JournalWriter
from slime_router.trajectory.measures.distribution import Distribution, distribution
from slime_router.trajectory.measures.scores import Scores, TeacherScore
from slime_router.trajectory.measures.top_logprobs import TopLogprobs, of_nested
from slime_router.trajectory.routed_experts import RoutedExperts
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Account, Turn, logprob_array, packed_words
from slime_router.types import (
    Finish,
    Grammar,
    Pins,
    Receipt,
    Sampling,
    Speculation,
    VersionSpan,
    token_ids,
)
from tests.archives.older import write

ACCOUNT = Account(
    started=1_795_953_600.25,
    duration_s=1.5,
    queued_s=0.25,
    prompt_s=0.125,
    first_token_s=0.5,
    workers=("http://a", "http://b"),
    door="/v1/chat/completions",
    key="ann",
    request_id="req",
    rid="chatcmpl",
    words=packed_words([{"role": "user", "content": "\ud83d"}], {"role": "assistant"}),
    goes_on=True,
)
TURN = Turn(
    id="t2",
    base="t1",
    base_len=3,
    prompt_ids=token_ids([4, 5]),
    output_ids=token_ids([6, 7, 8]),
    logprobs=logprob_array([-0.5, None, -0.1]),
    weight_versions=(VersionSpan("v1", 0, 2), VersionSpan(2, 2, 3)),
    finish=Finish("stop", matched=7, message="é", status_code=200),
    keys=(b"\x00key", b"other"),
    spelling=b"spelled",
    asked=b"asked",
    calls=(("call_1", "name\ud800"),),
    handles=("call_1",),
    session_id="owner\x00s",
    scope="adapter",
    date="2026-01-02",
    request_id="r",
    receipt=Receipt("extended", 3, 2, "t2", "why", ("a note",)),
    routed_experts=RoutedExperts(1, np.arange(12, dtype=np.int16).reshape(6, 2)),
    seq=9,
    account=ACCOUNT,
)
# The same turn without its account, as version 0.1 wrote it.
OF_BEFORE = base64.b64decode(
    "97TkGAQCAAB7ImlkIjoidDIiLCJiYXNlIjoidDEiLCJiYXNlX2xlbiI6Mywid2VpZ2h0X3ZlcnNpb25zIjpbWyJ2MS"
    "IsMCwyXSxbMiwyLDNdXSwiZmluaXNoIjpbInN0b3AiLDcsIlx1MDBlOSIsMjAwXSwia2V5cyI6WyIwMDZiNjU3OSIs"
    "IjZmNzQ2ODY1NzIiXSwic3BlbGxpbmciOiI3MzcwNjU2YzZjNjU2NCIsImFza2VkIjoiNjE3MzZiNjU2NCIsImNhbG"
    "xzIjpbWyJjYWxsXzEiLCJuYW1lXHVkODAwIl1dLCJoYW5kbGVzIjpbImNhbGxfMSJdLCJzZXNzaW9uX2lkIjoib3du"
    "ZXJcdTAwMDBzIiwic2NvcGUiOiJhZGFwdGVyIiwiZGF0ZSI6IjIwMjYtMDEtMDIiLCJyZXF1ZXN0X2lkIjoiciIsIn"
    "JlY2VpcHQiOnsic3RhdHVzIjoiZXh0ZW5kZWQiLCJyZXVzZWQiOjMsImVuY29kZWQiOjIsInR1cm4iOiJ0MiIsInJl"
    "YXNvbiI6IndoeSIsIm5vdGVzIjpbImEgbm90ZSJdfSwiZXhwZXJ0c19zdGFydCI6MSwic2VxIjo5LCJhcnJheXMiOl"
    "tbIjxpNCIsWzJdXSxbIjxpNCIsWzNdXSxbIjxmOCIsWzNdXSxbIjxpMiIsWzYsMl1dXX0EAAAABQAAAAYAAAAHAAAA"
    "CAAAAAAAAAAAAOC/AAAAAAAA+H+amZmZmZm5vwAAAQACAAMABAAFAAYABwAIAAkACgALAA=="
)
MASKS = distribution(
    np.array([2, 0, 1], np.int32), token_ids([6, 9, 8]), np.array([-0.5, np.nan, 0.0], np.float32)
)
TOPS = of_nested([[(-0.5, 6), (-1.5, 7)], [], [(-2.0, 8)]])
SCORE = TeacherScore(
    np.array([np.nan, -0.5, -1.0], np.float32),
    np.array([[-1, -1], [3, 4], [5, 6]], np.int32),
    np.array([[np.nan] * 2, [-0.5, -1.5], [-1.0, -2.0]], np.float32),
    "wise",
)
CSR = ("offsets", "ids", "logprobs")
SESSION = SessionState(
    spec=SessionSpec(
        id="owner\x00s",
        group_id="g",
        rollout_id="r",
        metadata={"half": "\ud83d", "nested": [1, {"a": None}]},
        sampling=Sampling(
            temperature=0.5,
            stop=("a", "b"),
            stop_token_ids=(1,),
            grammar=Grammar("regex", "x+"),
            logit_bias={"5": 1.5},
        ),
        sampling_pins=Pins(names=("top_p", "stop"), sampling=Sampling(top_p=0.5, stop=("c",))),
        lora_path="adapter",
        extra_key="key",
        priority=-3,
        return_routed_experts=True,
        return_indexer_topk=True,
        top_logprobs=8,
        max_turns=4,
        max_tokens=5,
    ),
    was_opened=True,
    is_closed=True,
    was_exported=True,
    reward={"score": 0.5},
    dropped_turns=1,
    dropped_tokens=2,
)


def same(left: Turn, right: Turn) -> bool:
    """Arrays compare by element, NaN equal to NaN; types of arrays count."""
    for field in fields(Turn):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, RoutedExperts) and isinstance(b, RoutedExperts):
            if a.start != b.start:
                return False
            a, b = a.ids, b.ids
        if isinstance(a, Distribution | TopLogprobs) and isinstance(b, type(a)):
            if not all(same_array(getattr(a, name), getattr(b, name)) for name in CSR):
                return False
        elif field.name == "scores":
            if not same_scores(a, b):
                return False
        elif isinstance(a, np.ndarray):
            if not same_array(a, b):
                return False
        elif a != b:
            return False
    return True


def same_scores(left: Scores, right: Scores) -> bool:
    names = ("logprobs", "top_ids", "top_logprobs")
    return left.keys() == right.keys() and all(
        left[group].version == right[group].version
        and all(same_array(getattr(left[group], n), getattr(right[group], n)) for n in names)
        for group in left
    )


def same_array(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


# Bytes


@pytest.mark.parametrize(
    "turn",
    [
        TURN,
        replace(TURN, logprobs=None, routed_experts=None, receipt=None, asked=None, base=None),
        replace(TURN, logprobs=logprob_array([1e-300, -1.0, -2.0]), date=None, session_id=None),
        replace(TURN, prompt_ids=token_ids([]), output_ids=token_ids([]), logprobs=None),
        replace(TURN, distribution=MASKS, uncaptured="refused"),
        replace(TURN, indexer_topk=RoutedExperts(2, np.array([[-1, 300]], np.int16))),
        replace(TURN, uncaptured="no_top_k"),
        replace(TURN, pictures=((1, "0" * 32), (4, "f" * 32))),
        replace(TURN, session_id=None, conversation="\x1eturn_1"),
        replace(TURN, top_logprobs=TOPS),
        replace(TURN, top_logprobs=TOPS, distribution=MASKS),
        replace(TURN, scores={"teacher": SCORE, "\ud800": replace(SCORE, version=7)}),
        replace(TURN, scores={"teacher": SCORE}, top_logprobs=TOPS, account=None),
        replace(TURN, account=None),
        replace(TURN, account=Account(started=0.0, duration_s=0.0)),
        replace(TURN, account=replace(ACCOUNT, words=b"", first_token_s=None)),
        replace(
            TURN,
            said_kind="compaction",
            speculation=Speculation(3, 9, 4),
            reward=-0.1,
            tags=("a", "\ud800"),
        ),
    ],
)
def test_a_turn_comes_back_bit_for_bit(turn):
    again = unpacked_turn(packed_turn(turn))
    assert same(again, turn)
    assert not again.output_ids.flags.writeable


def test_data_of_another_turn_are_damaged():
    assert same(Kept(TURN.id, TURN.seq, False, packed_turn(TURN)).turn(), TURN)
    for data in (packed_turn(replace(TURN, id="other")), None):
        with pytest.raises(Damaged):
            Kept(TURN.id, TURN.seq, False, data).turn()


def test_the_order_of_bytes_in_memory_is_not_that_of_the_journal():
    turned = replace(TURN, prompt_ids=TURN.prompt_ids.astype(">i4"))
    assert packed_turn(turned) == packed_turn(TURN)


def test_a_turn_of_before_accounts_is_read():
    assert same(unpacked_turn(OF_BEFORE), replace(TURN, account=None))


def test_a_router_of_before_accounts_reads_a_turn_that_has_one():
    """It takes the head whole, and of the rest as much as the head says."""
    data = packed_turn(TURN)
    crc, length = struct.unpack_from("<II", data)
    assert crc == zlib.crc32(data[4:])
    known, before = json.loads(data[8 : 8 + length]), len(OF_BEFORE)
    assert data[8:before] == OF_BEFORE[8:], "the account comes after everything else"
    assert known == json.loads(OF_BEFORE[8 : 8 + length])


def test_what_a_newer_router_adds_to_an_account_is_left_out():
    data = packed_turn(replace(TURN, account=replace(ACCOUNT, words=None)))
    end = len(OF_BEFORE)
    known = json.loads(data[end + 4 :])
    text = json.dumps({**known, "of_the_future": [1]}).encode()
    body = data[4:end] + len(text).to_bytes(4, "little") + text
    again = unpacked_turn(zlib.crc32(body).to_bytes(4, "little") + body)
    assert same(again, replace(TURN, account=replace(ACCOUNT, words=None)))


def test_names_that_a_newer_router_wrote_are_passed_over():
    """And what few turns have takes no room in the others."""
    data = packed_turn(TURN)
    assert b"reward" not in data
    length = int.from_bytes(data[4:8], "little")
    head = b'{"of_a_newer_router":{"a":1},' + data[9 : 8 + length]
    body = len(head).to_bytes(4, "little") + head + data[8 + length :]
    newer = zlib.crc32(body).to_bytes(4, "little") + body
    assert same(unpacked_turn(newer), TURN)


def test_every_bit_of_a_turn_is_under_its_checksum():
    data = packed_turn(TURN)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 4
        with pytest.raises(Damaged):
            unpacked_turn(bytes(broken))
    for length in range(len(data)):
        with pytest.raises(Damaged):
            unpacked_turn(data[:length])


def test_a_turn_without_masks_is_written_as_before_there_were_any():
    """So an older journal is read, too: its turns have four arrays."""
    data = packed_turn(TURN)
    head = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "little")])
    assert len(head["arrays"]) == 4
    assert not {"uncaptured", "indexer_start"} & head.keys()


def test_a_session_of_an_older_journal_has_no_pins():
    body = json.loads(packed_session(SESSION)[4:])
    new = ("sampling_pins", "lora_path", "extra_key", "priority", "return_indexer_topk")
    for name in new:
        del body["spec"][name]
    raw = json.dumps(body).encode()
    again = unpacked_session(zlib.crc32(raw).to_bytes(4, "little") + raw)
    assert again.spec == replace(
        SESSION.spec,
        sampling_pins=Pins(),
        lora_path=None,
        extra_key=None,
        priority=None,
        return_indexer_topk=False,
    )


def sealed(body: bytes) -> bytes:
    """With its checksum in front."""
    return zlib.crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "place", [(), ("spec",), ("spec", "sampling"), ("spec", "sampling_pins", "sampling")], ids=str
)
def test_what_a_newer_router_says_of_a_session_is_passed_over(place):
    """Routers of two versions may share a store while they are brought up to date."""
    body = json.loads(packed_session(SESSION)[4:])
    holder = body
    for name in place:
        holder = holder[name]
    holder["of_a_newer_router"] = {"a": 1}
    assert unpacked_session(sealed(json.dumps(body).encode())) == SESSION


def test_what_a_newer_router_says_of_a_receipt_is_passed_over():
    data = packed_turn(TURN)
    length = int.from_bytes(data[4:8], "little")
    head = json.loads(data[8 : 8 + length])
    head["receipt"]["of_a_newer_router"] = 1
    told = json.dumps(head).encode()
    body = len(told).to_bytes(4, "little") + told + data[8 + length :]
    assert same(unpacked_turn(sealed(body)), TURN)


@pytest.mark.parametrize(
    "raw", [b"5", b"[]", b"{}", b"nonsense", b'{"spec":5}', b'{"spec":{}}', b"\xff"], ids=repr
)
def test_what_others_wrote_is_damaged_whatever_it_is(raw):
    with pytest.raises(Damaged):
        unpacked_session(sealed(raw))
    with pytest.raises(Damaged):
        unpacked_turn(sealed(len(raw).to_bytes(4, "little") + raw))


@pytest.mark.parametrize("found", [5, 0.5, "text", None], ids=repr)
def test_what_is_no_bytes_is_damaged(found):
    """SQLite keeps what it is given, whatever a column is for."""
    with pytest.raises(Damaged):
        unpacked_session(found)
    with pytest.raises(Damaged):
        unpacked_turn(found)


def test_a_session_comes_back_whole():
    assert unpacked_session(packed_session(SESSION)) == SESSION
    bare = replace(SESSION, spec=SessionSpec(id="s"), reward=None)
    assert unpacked_session(packed_session(bare)) == bare
    data = bytearray(packed_session(SESSION))
    data[-2] ^= 1
    with pytest.raises(Damaged):
        unpacked_session(bytes(data))


# The file


def put(seq: int, name: str = "", session: str | None = None) -> PutTurn:
    return PutTurn(seq, name or f"t{seq}", session, b"data")


def said(name: str, **state: Any) -> Put:
    spec = SessionSpec(id=name)
    return Put("sessions", name, packed_session(replace(SESSION, spec=spec, **state)))


def deleted(database: Database) -> list[str]:
    """Names of sessions that were deleted, the oldest first."""
    rows = database._sql.execute("SELECT id FROM deleted ORDER BY number")
    return [as_text(name) for (name,) in rows]


def test_changes_are_made_whole_or_not_at_all(tmp_path):
    database = SharedDatabase(tmp_path)
    database.apply([put(1), put(2)])
    with pytest.raises(sqlite3.Error):
        database.apply([put(3), put(4, "t1")])  # the id is taken
    assert [seq for seq, *_ in database.turns()] == [1, 2]
    database.close()


def test_what_was_applied_is_there_when_it_is_opened_again(tmp_path):
    database = SharedDatabase(tmp_path)
    database.apply(
        [
            put(1),
            put(2, session="s\ud800"),
            MarkUndelivered(2),
            said("b", reward=1.0),
            said("a"),
            said("b", reward=3.0),
            said("gone"),
            Drop("sessions", "gone", is_deleted=True),
            Put("workers", "http://w", b"{}"),
        ]
    )
    database.close()
    database = SharedDatabase(tmp_path)
    assert list(database.turns()) == [(1, False, b"data"), (2, True, b"data")]
    assert [name for name, _ in database.named("sessions")] == ["b", "a"]
    assert ("b", said("b", reward=3.0).data) in database.named("sessions")
    assert deleted(database) == ["gone"]
    assert list(database.named("workers")) == [("http://w", b"{}")]
    assert database.faults() == []
    database.apply([said("gone")])
    assert deleted(database) == []
    database.close()


def test_a_journal_of_before_openings_gets_their_table_and_stays_of_its_schema(tmp_path):
    database = Database(tmp_path)
    write(database, put(1), Put("sessions", "s", b"1"))
    database.close()
    with closing(sqlite3.connect(database.path)) as sql:
        sql.execute("DROP TABLE openings")
        assert sql.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    database = Database(tmp_path)
    assert list(database.named("openings")) == []
    write(database, Put("openings", "s", packed_opening(1.5)))
    assert [(name, unpacked_opening(d)) for name, d in database.named("openings")] == [("s", 1.5)]
    database.close()
    with closing(sqlite3.connect(database.path)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (SCHEMA,), (
            "an earlier router reads it"
        )


def test_a_journal_of_the_first_schema_is_brought_up_to_date(tmp_path):
    database = Database(tmp_path)
    write(database, put(1), Put("sessions", "s", b"1"), Drop("sessions", "gone", is_deleted=True))
    database.close()
    with closing(sqlite3.connect(database.path)) as sql:
        sql.execute("DROP INDEX homes")
        sql.execute("DROP INDEX session_versions")
        for table, column in (
            *(("turns", name) for name in ("home", "changed", "version")),
            *(("sessions", name) for name in ("version", "born", "is_closed")),
            ("deleted", "version"),
        ):
            sql.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for table in ("names", "counters"):
            sql.execute(f"DROP TABLE {table}")
        sql.execute("PRAGMA user_version = 1")
    database = Database(tmp_path, is_new_allowed=False)
    assert list(database.turns()) == [(1, False, b"data")]
    assert list(database.named("sessions")) == [("s", b"1")]
    assert deleted(database) == ["gone"]
    database.close()
    database = SharedDatabase(tmp_path)
    database.apply([put(2), said("t")])
    assert database.faults() == []
    database.close()


def test_an_opening_that_is_not_a_time_is_damaged():
    for data in (b"", b"[]", b"x", b"null"):
        with pytest.raises(Damaged):
            unpacked_opening(data)


@pytest.mark.slow
def test_so_many_names_of_deleted_sessions_are_kept(tmp_path):
    database = SharedDatabase(tmp_path)
    names = [f"s{number}" for number in range(MAX_DELETED + 5)]
    database.apply([Drop("sessions", name, is_deleted=True) for name in names])
    assert deleted(database) == names[5:]
    database.close()


def test_none_is_made_where_one_is_to_be_read(tmp_path):
    with pytest.raises(SetupError, match="there is no journal"):
        Database(tmp_path / "none", is_new_allowed=False)
    assert not (tmp_path / "none").exists()


# The thread that writes


class Target:
    """Notes what it is given; fails while `trouble` is set, waits while `gate` is shut."""

    def __init__(self) -> None:
        self.batches: list[list[Change]] = []
        self.trouble: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def apply(self, changes: list[Change]) -> None:
        self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.batches.append(changes)

    @property
    def seqs(self) -> list[int]:
        return [
            change.seq for batch in self.batches for change in batch if isinstance(change, PutTurn)
        ]


async def soon(holds) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a poll needs nothing of what is watched
            await asyncio.sleep(0.001)


async def test_what_gathers_during_one_commit_goes_into_the_next_one():
    target = Target()
    writer = JournalWriter(target)
    writer.start()
    target.gate.clear()
    waits = []
    for seq in range(100):
        writer.put(partial(put, seq))
        waits.append(asyncio.create_task(writer.written()))
        await asyncio.sleep(0)
    assert not any(each.done() for each in waits)
    target.gate.set()
    assert await asyncio.gather(*waits) == [None] * 100
    assert target.seqs == list(range(100))
    assert len(target.batches) <= 2
    await writer.close()


async def test_what_comes_in_one_turn_of_the_loop_is_written_together(monkeypatch):
    """A thread that is woken for the first of it would have a commit of that alone."""
    target, woken = Target(), list[int]()
    writer = JournalWriter(target)
    writer.start()
    notify = writer._wakeup.notify

    def noted() -> None:
        woken.append(writer.waiting)
        notify()

    monkeypatch.setattr(writer._wakeup, "notify", noted)
    for seq in range(10):
        writer.put(partial(put, seq))
    assert woken == []
    assert await writer.written() is None
    assert woken == [10]
    assert target.seqs == list(range(10))
    await writer.close()


class Upkeep:
    """Counts its steps; `waits_s` are between them."""

    def __init__(self, *waits_s: float | Exception) -> None:
        self.waits_s = list(waits_s)
        self.steps = 0

    def step(self) -> float:
        self.steps += 1
        wait_s = self.waits_s.pop(0) if self.waits_s else 1e6
        if isinstance(wait_s, Exception):
            raise wait_s
        return wait_s


async def test_upkeep_has_its_turn_beside_writing_and_ends_with_it():
    target, upkeep = Target(), Upkeep(0.0, 0.0)
    writer = JournalWriter(target, upkeep=upkeep)
    writer.start()
    await soon(lambda: upkeep.steps == 3)  # though nothing is written
    writer.put(partial(put, 1))
    assert await writer.written() is None
    await writer.close()
    assert (target.seqs, upkeep.steps) == ([1], 3)


async def test_upkeep_that_fails_keeps_nothing_from_being_written(caplog, monkeypatch):
    monkeypatch.setattr(writer_module, "UPKEEP_RETRY_S", 0.0)
    target = Target()
    upkeep = Upkeep(sqlite3.OperationalError("locked"), OSError("full"), 0.0, OSError("again"))
    writer = JournalWriter(target, upkeep=upkeep)
    writer.start()
    await soon(lambda: upkeep.steps == 5)
    writer.put(partial(put, 1))
    assert await writer.written() is None
    await writer.close()
    assert target.seqs == [1]
    assert [r.getMessage() for r in caplog.records] == [
        "nothing is dropped from the journal at present: locked",
        "nothing is dropped from the journal at present: again",
    ]


async def test_a_wait_is_for_what_was_put_before_and_no_more():
    target = Target()
    writer = JournalWriter(target)
    writer.start()
    assert await writer.written() is None
    target.gate.clear()
    writer.put(lambda: put(1))
    wait = asyncio.create_task(writer.written())
    await soon(lambda: writer.waiting == 1)
    wait.cancel()
    with suppress(asyncio.CancelledError):
        await wait
    target.gate.set()
    assert await writer.written() is None
    await writer.close()
    assert target.seqs == [1]


async def test_after_a_failure_nobody_waits_and_nothing_is_lost(caplog):
    target = Target()
    writer = JournalWriter(target, retry_s=0.001)
    writer.start()
    target.trouble = sqlite3.OperationalError("disk is full")
    writer.put(lambda: put(1))
    assert await writer.written() == "disk is full"
    writer.put(lambda: put(2))
    assert await writer.written() == "disk is full"
    await soon(lambda: writer.counts.failures > 3)
    assert [r.message for r in caplog.records] == ["the journal cannot be written: disk is full"]
    target.trouble = None
    await soon(lambda: writer.trouble is None)
    await writer.close()
    assert target.seqs == [1, 2]
    assert (writer.waiting, writer.counts.lost) == (0, 0)


async def test_a_commit_that_takes_too_long_is_trouble_until_it_has_succeeded(caplog):
    """A store that hangs must not keep replies for as long as a write may take."""
    target = Target()
    writer = JournalWriter(target, patience_s=0.0)
    writer.start()
    target.gate.clear()
    writer.put(lambda: put(1))
    waits = [asyncio.create_task(writer.written()) for _ in range(3)]
    assert await asyncio.gather(*waits) == ["no answer within 0 s"] * 3
    writer.put(lambda: put(2))
    assert await writer.written() == "no answer within 0 s"
    written = "the journal cannot be written: no answer within 0 s"
    assert [r.message for r in caplog.records] == [written]
    target.gate.set()
    await soon(lambda: writer.waiting == 0)
    assert writer.trouble is None
    await writer.close()
    assert (target.seqs, writer.counts.lost) == ([1, 2], 0)


async def test_a_fault_of_the_router_ends_no_thread_and_nobody_waits_for_ever(caplog):
    """A thread that ends would keep all replies waiting, and nobody would know."""
    target, upkeep = Target(), Upkeep(RuntimeError("a fault"), 1e6)
    writer = JournalWriter(target, retry_s=0.01, upkeep=upkeep)
    target.trouble = KeyError("a fault")
    writer.start()
    writer.put(partial(put, 1))
    async with asyncio.timeout(60):
        assert await writer.written() == "KeyError: 'a fault'"
    assert "Traceback" in caplog.text
    target.trouble = None
    await soon(lambda: writer.trouble is None)
    assert target.seqs == [1]
    await soon(lambda: upkeep.steps)
    writer.put(partial(put, 2))
    async with asyncio.timeout(60):
        assert await writer.written() is None
    assert target.seqs == [1, 2]
    await writer.close()


async def test_more_than_may_wait_is_lost_and_counted(caplog):
    target = Target()
    lost: list[str] = []
    writer = JournalWriter(target, retry_s=0.001, max_waiting=10, on_lost=lost.append)
    writer.start()
    target.trouble = OSError("gone")
    writer.put(lambda: put(0))
    assert await writer.written() == "gone"
    for seq in range(1, 15):
        writer.put(partial(put, seq))
    assert writer.is_lost
    assert len(lost) == 1
    target.trouble = None
    writer.put(lambda: put(99))
    assert "more than may" in (await writer.written() or "")
    await writer.close()
    assert target.seqs == []
    assert writer.counts.lost == 16
    assert "until a restart" in caplog.text


async def test_where_nothing_may_be_missing_the_first_failure_is_the_last():
    target = Target()
    lost: list[str] = []
    writer = JournalWriter(target, stops_on_error=True, on_lost=lost.append)
    writer.start()
    target.trouble = OSError("gone")
    writer.put(lambda: put(0))
    assert await writer.written() == "gone"
    assert lost == ["gone"]
    await writer.close()


async def test_one_change_that_cannot_be_packed_keeps_no_other_from_being_written():
    target = Target()
    writer = JournalWriter(target)

    def fails() -> PutTurn:
        raise TypeError("no JSON")

    writer.put(lambda: put(1))
    writer.put(fails)
    writer.put(lambda: put(2))
    writer.start()
    assert await writer.written() is None
    await writer.close()
    assert target.seqs == [1, 2]
    assert writer.counts.lost == 1


async def test_closing_writes_what_waits_and_tries_once_more_where_that_failed(caplog):
    target = Target()
    writer = JournalWriter(target, retry_s=1000.0)
    writer.start()
    target.trouble = OSError("gone")
    writer.put(lambda: put(1))
    assert await writer.written() == "gone"
    target.trouble = None
    await writer.close()
    assert target.seqs == [1]
    assert "lacks" not in caplog.text


async def test_what_cannot_be_written_at_the_end_is_said(caplog):
    target = Target()
    writer = JournalWriter(target, retry_s=1000.0)
    writer.start()
    target.trouble = OSError("gone")
    writer.put(lambda: put(1))
    await writer.written()
    await writer.close()
    assert "the journal lacks the last 1 changes: gone" in caplog.text
