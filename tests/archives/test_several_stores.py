"""Several stores over one archive are one store: whatever is done on any of them, all know."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slime_router.archive.fetching import filling
from slime_router.archive.fetching.filling import PART_TURNS, Filler
from slime_router.archive.homes import name_of_key
from slime_router.archive.port import NOTHING_SEEN, Archive, Kept, News
from slime_router.archive.sqlite import SqliteArchive
from slime_router.archive.store import ArchivedStore
from slime_router.errors import Conflict, NotFound
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, token_ids
from tests.archives.archives import Straight
from tests.archives.memory import MemoryArchive
from tests.examples import examples
from tests.stack import chat_template, tiny_tokenizer
from tests.unit.test_journal import same

NAMES = ("s", "t")
KEYS = (b"k", b"l")
ROUTERS = 3

T = TypeVar("T")
numbers = st.integers(0, 1000)
routers = st.integers(0, ROUTERS - 1)
names = st.sampled_from(NAMES)
tokens = st.lists(st.integers(0, 9), max_size=3)


@dataclass
class KnownSession:
    metadata: dict[str, Any] = field(default_factory=dict)
    is_closed: bool = False
    was_exported: bool = False
    was_opened: bool = False
    reward: float | None = None


class Router:
    """One store, with what fills it."""

    def __init__(self, archive: Archive, number: int, budget: int) -> None:
        self.archive = archive
        self.store = ArchivedStore(Straight(archive), budget)
        self.store.number = number
        self.fetch = Filler(archive, self.store, chat_template(tiny_tokenizer()), self.written)

    async def written(self) -> None:
        """`Straight` writes at once."""


class SeveralStores(RuleBasedStateMachine):
    @initialize(budgets=st.lists(st.integers(0, 60), min_size=ROUTERS, max_size=ROUTERS))
    def open_all(self, budgets: list[int]) -> None:
        self.runner = asyncio.Runner()
        self.pieces = patch.object(filling, "PART_TURNS", 2)
        self.pieces.start()
        self.begin()
        self.count = 0
        self.budgets = budgets
        self.routers = [self.new_router(number) for number in range(ROUTERS)]
        self.turns: dict[str, Turn] = {}
        self.held: dict[str, list[int]] = {}
        self.undelivered: set[str] = set()
        self.sessions: dict[str, KnownSession] = {}
        self.deleted: set[str] = set()

    def begin(self) -> None:
        self.archive = MemoryArchive()

    def opened(self) -> Archive:
        return self.archive

    def new_router(self, number: int) -> Router:
        archive = self.opened()
        return Router(archive, self.run(archive.number()), self.budgets[number])

    def run(self, what: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await what

        return self.runner.run(awaited())

    def some(self, number: int) -> Turn | None:
        known = list(self.turns.values())
        return known[number % len(known)] if known else None

    @rule(at=routers)
    def restart(self, at: int) -> None:
        self.close(self.routers[at])
        self.routers[at] = self.new_router(at)

    @rule(
        at=routers,
        session=st.one_of(st.none(), names),
        base=st.one_of(st.none(), numbers),
        cut=st.one_of(st.none(), numbers),
        prompt=tokens,
        output=tokens,
        keys=st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
    )
    def add(self, at, session, base, cut, prompt, output, keys) -> None:
        under = None if base is None else self.some(base)
        if under is not None and session is not None and under.session_id != session:
            under = None
        held = self.held[under.id] if under else []
        base_len = len(held) if cut is None else cut % (len(held) + 1)
        self.count += 1
        turn = Turn(
            id=f"turn{self.count}",
            base=under.id if under else None,
            base_len=base_len,
            prompt_ids=token_ids(prompt),
            output_ids=token_ids(output),
            logprobs=None,
            weight_versions=(),
            finish=Finish("stop"),
            keys=tuple(keys),
            session_id=session,
        )
        router = self.routers[at]
        fetched = (
            router.fetch.of_session(session)
            if session is not None
            else router.fetch.of_turn(turn.base or "none")
        )
        with self.run(fetched):
            if session in self.deleted and session not in self.sessions:
                with pytest.raises(NotFound):
                    router.store.add(turn)
                return
            recorded = router.store.add(turn)
        assert under is None or recorded.seq > self.turns[under.id].seq
        assert recorded.seq not in {each.seq for each in self.turns.values()}
        self.turns[turn.id] = recorded
        self.held[turn.id] = held[:base_len] + prompt + output
        if session is not None:
            self.sessions.setdefault(session, KnownSession())

    @rule(at=routers, key=st.sampled_from(KEYS), session=st.one_of(st.none(), names))
    def find(self, at: int, key: bytes, session: str | None) -> None:
        router = self.routers[at]
        if session is None:
            fetched = router.fetch._held(lambda held: router.fetch._named(held, {name_of_key(key)}))
        else:
            fetched = router.fetch.of_session(session)
        with self.run(fetched):
            found = router.store.find(key, session)
            wanted = max(
                (
                    turn
                    for turn in self.turns.values()
                    if key in turn.keys and session in (None, turn.session_id)
                ),
                key=lambda turn: turn.seq,
                default=None,
            )
            assert (found and found.id) == (wanted and wanted.id)
            if found is not None:
                assert router.store.held_ids(found.id).tolist() == self.held[found.id]

    @rule(at=routers, number=numbers)
    def look_at_a_turn(self, at: int, number: int) -> None:
        turn, router = self.some(number), self.routers[at]
        if turn is None:
            return
        with self.run(router.fetch.of_turn(turn.id)):
            found = router.store.get(turn.id)
            assert found is not None
            assert same(replace(found, epoch=0), turn)
            assert router.store.held_ids(turn.id).tolist() == self.held[turn.id]
            assert router.store.is_delivered(turn.id) is (turn.id not in self.undelivered)

    @rule(at=routers, number=numbers, reward=st.floats(0, 1))
    def mark(self, at: int, number: int, reward: float) -> None:
        turn, router = self.some(number), self.routers[at]
        if turn is None:
            return
        with self.run(router.fetch.of_turn(turn.id)):
            router.store.mark(turn.id, reward=reward)
        self.turns[turn.id] = replace(turn, reward=reward)

    @rule(at=routers, number=numbers)
    def leave(self, at: int, number: int) -> None:
        turn, router = self.some(number), self.routers[at]
        if turn is None:
            return
        with self.run(router.fetch.of_turn(turn.id)):
            router.store.mark_undelivered(turn.id)
        self.undelivered.add(turn.id)

    @rule(at=routers, name=names)
    def open_session(self, at: int, name: str) -> None:
        router = self.routers[at]
        spec = SessionSpec(id=name, metadata={"n": self.count})
        with self.run(router.fetch.of_session(name)):
            if name in self.sessions:
                with pytest.raises(Conflict):
                    router.store.open_session(spec)
                return
            session = router.store.open_session(spec)
            self.run(router.fetch.confirm_opened(session))
        self.sessions[name] = KnownSession(dict(spec.metadata), was_opened=True)

    @rule(at=st.tuples(routers, routers), name=names)
    def open_twice_at_once(self, at: tuple[int, int], name: str) -> None:
        """Both look before either has opened it: the one that wrote first has."""
        if name in self.sessions or at[0] == at[1]:
            return
        one, other = (self.routers[number] for number in at)
        with self.run(one.fetch.of_session(name)), self.run(other.fetch.of_session(name)):
            first = one.store.open_session(SessionSpec(id=name, metadata={"by": 1}))
            second = other.store.open_session(SessionSpec(id=name, metadata={"by": 2}))
            with pytest.raises(Conflict):
                self.run(other.fetch.confirm_opened(second))
            self.run(one.fetch.confirm_opened(first))
        self.sessions[name] = KnownSession({"by": 1}, was_opened=True)

    @rule(at=routers, name=names, what=st.sampled_from(("close", "export", "reward")), r=numbers)
    def happen(self, at: int, name: str, what: str, r: int) -> None:
        router, known = self.routers[at], self.sessions.get(name)
        with self.run(router.fetch.of_session(name)):
            session = router.store.sessions.find(name)
            assert (session is None) == (known is None)
            if session is None or known is None:
                return
            if what == "close":
                router.store.freeze(session)
                known.is_closed = known.was_opened = True
            elif what == "export":
                router.store.mark_exported(name)
                known.was_exported = known.was_exported or known.is_closed
            else:
                router.store.sessions.set_reward(name, float(r))
                known.reward = float(r)

    @rule(at=routers, name=names)
    def delete(self, at: int, name: str) -> None:
        router = self.routers[at]
        with self.run(router.fetch.of_session(name)):
            if name not in self.sessions:
                with pytest.raises(NotFound):
                    router.store.delete_session(name)
                return
            router.store.delete_session(name)
        del self.sessions[name]
        self.deleted.add(name)
        for turn in sorted(self.turns.values(), key=lambda turn: -turn.seq):
            if turn.session_id == name:
                self.turns[turn.id] = replace(turn, session_id=None)
                if not any(each.base == turn.id for each in self.turns.values()):
                    del self.turns[turn.id]
                    self.undelivered.discard(turn.id)

    @rule(at=routers, ages=st.integers(1, 3))
    def sweep(self, at: int, ages: int) -> None:
        for _ in self.routers[at].store.sweep(ages):
            pass

    @rule(at=routers)
    def list_sessions(self, at: int) -> None:
        router = self.routers[at]
        listed = self.run(router.fetch.of_sessions())
        assert [each.id for each in listed] == list({each.id: None for each in listed})
        assert {each.id for each in listed} == set(self.sessions)
        for session in listed:
            own = [turn for turn in self.turns.values() if turn.session_id == session.id]
            assert session.turn_count == len(own)
            if router.store.sessions.find(session.id) is session:  # else it has no names of turns
                assert set(session.turns) == {turn.id for turn in own}
            assert session.state == (
                "closed" if self.sessions[session.id].is_closed else "open"
            ) or (not self.sessions[session.id].was_opened)

    @rule(at=routers, name=names)
    def look_at_a_session(self, at: int, name: str) -> None:
        router, known = self.routers[at], self.sessions.get(name)
        with self.run(router.fetch.of_session(name)):
            session = router.store.sessions.find(name)
            assert (session is None) == (known is None)
            if session is None or known is None:
                return
            own = [turn for turn in self.turns.values() if turn.session_id == name]
            own.sort(key=lambda turn: turn.seq)
            assert list(session.turns) == [turn.id for turn in own]
            assert session.held_tokens == sum(turn.own_len for turn in own)
            found = (session.state == "closed", session.was_exported, session.was_opened)
            assert found == (known.is_closed, known.was_exported, known.was_opened)
            assert (session.reward, dict(session.metadata)) == (known.reward, known.metadata)

    @invariant()
    def the_stores_are_whole(self) -> None:
        for router in self.routers:
            router.store.check_integrity()
            assert router.fetch.counts.failures == 0
            assert router.store.skipped_turns == 0

    def close(self, router: Router) -> None:
        """What a router that ends lets go of."""

    def teardown(self) -> None:
        for router in self.routers:
            self.close(router)
        self.runner.close()
        self.pieces.stop()


class SeveralStoresInAFile(SeveralStores):
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="archive-"))

    def opened(self) -> Archive:
        return SqliteArchive(self.directory)

    def close(self, router: Router) -> None:
        self.run(router.archive.close())

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


TestSeveralStores = SeveralStores.TestCase
TestSeveralStores.settings = settings(max_examples=examples(60), stateful_step_count=30)
TestSeveralStoresInAFile = SeveralStoresInAFile.TestCase
TestSeveralStoresInAFile.settings = settings(max_examples=examples(30), stateful_step_count=25)


async def test_a_long_session_is_read_back_in_pieces_and_whole_for_all_who_ask():
    archive = MemoryArchive()
    writer = Router(archive, await archive.number(), 10_000)
    reader = Router(archive, await archive.number(), 10_000)
    writer.store.open_session(SessionSpec(id="s"))
    count = 3 * PART_TURNS
    base: Turn | None = None
    for number in range(count):
        turn = Turn(
            id=f"turn{number}",
            base=base.id if base else None,
            base_len=base.held_len if base else 0,
            prompt_ids=token_ids([1]),
            output_ids=token_ids([2]),
            logprobs=None,
            weight_versions=(),
            finish=Finish("stop"),
            session_id="s",
        )
        base = writer.store.add(turn)
    seen: list[int] = []

    async def ask() -> None:
        with await reader.fetch.of_session("s"):
            seen.append(len(reader.store.sessions.get("s").turns))

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    partly = set()
    while not all(task.done() for task in asking):
        partly.add(len(reader.store))
        await asyncio.sleep(0)
    await asyncio.gather(*asking)
    assert seen == [count] * 3
    assert partly & set(range(1, count)), "others ran while it was read"
    reader.store.check_integrity()
    assert reader.store.fetched_turns == count


@given(st.integers(0, 9), st.integers(1, 4), st.booleans(), st.booleans())
def test_news_in_parts_are_the_same_news(turns, size, is_deleted, is_gone):
    kept = tuple(Kept(f"t{n}", n, is_undelivered=False, data=b"") for n in range(turns))
    news = News("s", "9", kept, None, is_deleted=is_deleted, is_gone=is_gone)
    parts = list(news.in_parts(NOTHING_SEEN, size))
    assert tuple(each for part in parts for each in part.turns) == kept
    assert [part.cursor for part in parts[:-1]] == [NOTHING_SEEN] * (len(parts) - 1)
    assert parts[-1].cursor == news.cursor
    if is_deleted or is_gone:
        assert parts == [news]
    else:
        assert all(len(part.turns) <= size for part in parts)
