"""The revision of a session: another one after each change of its rows, the same otherwise."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from slime_router.rows.revision import revision_of
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from tests.archives.archives import Shelf
from tests.turns import bare_turn

turn = partial(bare_turn, session_id="s")


def revision(store: TrajectoryStore) -> str:
    return revision_of(store, store.sessions.get("s"))


def history(store: TrajectoryStore) -> list[str]:
    """After each change of the rows."""
    found = [revision_of(store, store.open_session(SessionSpec(id="s", metadata={"b": 1, "a": 2})))]
    for change in (
        lambda: store.add(turn("one")),
        lambda: store.add(turn("two")),
        lambda: store.mark("one", reward=0.5, tags=()),
        lambda: store.mark("one", reward=0.5, tags=("draft",)),
        lambda: store.mark_undelivered("two"),
        lambda: store.sessions.set_reward("s", 1.0),
        lambda: store.sessions.set_reward("s", {"y": 1, "x": "\ud800"}),
    ):
        change()
        found.append(revision(store))
    return found


def test_each_change_makes_another_one_and_nothing_else_does():
    store = TrajectoryStore(1_000)
    found = history(store)
    assert len(set(found)) == len(found)
    store.freeze(store.sessions.get("s"))
    store.mark_exported("s")
    assert revision(store) == found[-1]


def test_it_is_the_same_after_a_restart(tmp_path: Path):
    shelf = Shelf(tmp_path)
    found = history(shelf.opened())
    assert revision(shelf.opened()) == found[-1]
    shelf.close()
