"""A journal of an older router, which had all of it in memory, is indexed and then as any other."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slime_router.archive.homes import home_of_session, name_of_id
from slime_router.archive.port import NOTHING_SEEN
from slime_router.archive.sqlite import SqliteArchive
from slime_router.errors import SetupError
from slime_router.journal.codec import packed_opening, packed_session, packed_turn
from slime_router.journal.database import Change, Database, Drop, Put, PutTurn
from slime_router.journal.progress import Progress
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, token_ids
from tests.archives.older import write
from tests.archives.test_conformance import state
from tests.archives.test_several_stores import Router
from tests.unit.test_journal import same

OPENED_AT = 1_700_000_000.0
LOST: dict[str, Any] = {"dropped_turns": 3, "dropped_tokens": 9}


def turn(name: str, base: Turn | None = None, session_id: str | None = None) -> Turn:
    return Turn(
        id=name,
        base=None if base is None else base.id,
        base_len=0 if base is None else base.held_len,
        prompt_ids=token_ids([1]),
        output_ids=token_ids([2, 3]),
        logprobs=None,
        weight_versions=(),
        finish=Finish("stop"),
        session_id=session_id,
    )


def written(directory: Path, *, after: int = 0) -> dict[str, Turn]:
    """As an older router writes: an opened session, a mere name, and a tree without a session."""
    turns: dict[str, Turn] = {}
    opened = replace(state(""), spec=SessionSpec(id="opened", metadata={"a": 1}), **LOST)
    changes: list[Change] = [
        Put("sessions", "opened", packed_session(opened)),
        Put("openings", "opened", packed_opening(OPENED_AT)),
    ]
    for session in ("opened", "named", None):
        base = None
        for number in range(2):
            after += 1
            base = replace(turn(f"{session} {number}", base, session), seq=after)
            turns[base.id] = base
            changes.append(PutTurn(base.seq, base.id, base.session_id, packed_turn(base)))
    changes.append(Drop("sessions", "deleted", is_deleted=True))
    with closing(Database(directory)) as database:
        write(database, *changes)
    return turns


async def opened(directory: Path) -> tuple[SqliteArchive, Progress]:
    archive, progress = SqliteArchive(directory, is_shared=False), Progress(0, 0)
    await archive.prepare(progress)
    return archive, progress


async def test_all_of_it_is_found_again(tmp_path):
    before = written(tmp_path)
    archive, progress = await opened(tmp_path)
    assert (progress.turns, progress.of) == (6, 6)
    router = Router(archive, await archive.number(), 10**6)
    listed = {session.id: session for session in await router.fetch.of_sessions()}
    assert listed.keys() == {"opened", "named"}
    opened_one = listed["opened"]
    assert (opened_one.started, opened_one.metadata) == (OPENED_AT, {"a": 1})
    assert {name: getattr(opened_one, name) for name in LOST} == LOST
    with await router.fetch.of_session("deleted"), pytest.raises(Exception, match="was deleted"):
        router.store.sessions.name("deleted")
    for session in ("opened", "named", None):
        assert await archive.find([name_of_id(f"{session} 1")])
        with await router.fetch.of_turn(f"{session} 1"):
            for name in (f"{session} 0", f"{session} 1"):
                found = router.store.get(name)
                assert found is not None
                assert same(found, before[name])
    router.store.check_integrity()
    await archive.close()


async def test_it_is_indexed_once(tmp_path):
    written(tmp_path)
    await (await opened(tmp_path))[0].close()
    archive, progress = await opened(tmp_path)
    assert (progress.turns, progress.of) == (0, 0)
    await archive.close()


async def test_no_new_turn_takes_the_number_of_an_old_one(tmp_path):
    """Numbers of several routers begin at 65536; one router alone counted on beyond that."""
    written(tmp_path, after=1 << 16)
    archive, _ = await opened(tmp_path)
    router = Router(archive, await archive.number(), 10**6)
    router.store.number_after(await archive.last_seq())
    for number in range(3):
        router.store.add(turn(f"new {number}", session_id="new"))
    news = await archive.news(home_of_session("opened"), NOTHING_SEEN, lambda _: False)
    assert [kept.id for kept in news.turns] == ["opened 0", "opened 1"]
    assert archive.database.count("turns") == 9
    await archive.close()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
async def test_a_router_has_a_journal_to_itself_unless_both_share_it(tmp_path, first, second):
    archive = SqliteArchive(tmp_path, is_shared=first)
    if first and second:
        await SqliteArchive(tmp_path, is_shared=second).close()
    else:
        with pytest.raises(SetupError, match="in use by another router"):
            SqliteArchive(tmp_path, is_shared=second)
    await archive.close()
    await SqliteArchive(tmp_path, is_shared=second).close()
