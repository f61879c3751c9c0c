"""The turn of a session that tokens begin with: how much work it is to find."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.trajectory import prefixes
from slime_router.trajectory.prefixes import PrefixIndex
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import token_ids
from tests.effort import opcodes
from tests.turns import bare_turn

turn = partial(bare_turn, session_id="s")


@pytest.mark.parametrize("kind", ["equal", "other replies", "branches of one turn"])
def test_a_prompt_sampled_ten_thousand_times_costs_what_it_cost_after_a_hundred(kind):
    store = TrajectoryStore(10**9)
    store.add(turn("first", [1, 2], [3]))

    def add(number: int) -> None:
        output = [3, 4] if kind == "equal" else [3, number]
        if kind == "branches of one turn":
            store.add(turn(f"t{number}", [], output, base="first", base_len=2))
        else:
            store.add(turn(f"t{number}", [1, 2], output))

    def look() -> None:
        found = store.deepest_prefix(token_ids([1, 2, 3, 4, 5]), "s")
        assert found is not None
        assert found.held_len == 4

    add(4)
    for number in range(100, 200):
        add(number)
    adding, looking = opcodes(lambda: add(200)), opcodes(look)
    for number in range(201, 10_000):
        add(number)
    assert opcodes(lambda: add(10_000)) <= 1.1 * adding
    assert opcodes(look) <= 1.1 * looking


def test_of_equal_turns_the_newest_that_is_left_is_found():
    store = TrajectoryStore(100)
    for name in ("a", "b", "c"):
        store.add(turn(name, [1], [2]))
    found = store.deepest_prefix(token_ids([1, 2, 9]), "s")
    assert found is not None
    assert found.id == "c"
    store.delete_session("s")
    assert store.deepest_prefix(token_ids([1, 2, 9]), "s") is None
    store.check_integrity()


def test_equal_digests_are_not_taken_for_equal_tokens(monkeypatch):
    """Nobody knows the secret, but a coincidence is possible: the tokens decide."""
    store = TrajectoryStore(100)
    monkeypatch.setattr(store._prefixes, "_mixed", lambda ids, start: (0 * ids).astype("uint64"))
    store.add(turn("short", [1], [2]))
    store.add(turn("long", [1, 2], [7]))
    found = store.deepest_prefix(token_ids([1, 2, 3]), "s")
    assert found is not None
    assert found.id == "short"


def test_turns_of_old_weights_go_in_one_pass_however_long_their_conversation():
    def work(depth: int) -> int:
        store = TrajectoryStore(10**9)
        store.add(turn("t0", [1], [2], session_id=None))
        for number in range(1, depth):
            base = store.get(f"t{number - 1}")
            assert base is not None
            fields = {"base": base.id, "base_len": base.held_len, "session_id": None}
            store.add(turn(f"t{number}", [1], [2], **fields))
        for number in range(depth):
            store.add(turn(f"new{number}", [1], [2], epoch=1, session_id=None))
        return opcodes(lambda: list(store.drop_older(1)))

    assert work(400) <= 4.5 * work(100)


@pytest.mark.parametrize("kind", ["a conversation", "replies of all lengths"])
def test_a_session_with_many_turns_is_looked_through_at_the_cost_of_one_with_few(kind):
    prompt = token_ids(range(4_000))

    def filled(turns: int) -> TrajectoryStore:
        store = TrajectoryStore(10**9)
        for number in range(turns):
            length = 1 + number % 3_000
            if kind == "a conversation" and number:
                base = f"t{number - 1}"
                fields = {"base": base, "base_len": number, "prompt_ids": prompt[number:][:1]}
                store.add(turn(f"t{number}", [], [], **fields))
            else:
                run = prompt[:1] if kind == "a conversation" else prompt[:length]
                store.add(turn(f"t{number}", [], [], prompt_ids=run))
        return store

    few, many = filled(100), filled(2_000)
    for store, name in ((few, "t99"), (many, "t1999")):
        found = store.deepest_prefix(prompt, "s")
        assert found is not None
        assert found.id == name
    looks = [opcodes(partial(store.deepest_prefix, prompt, "s")) for store in (few, many)]
    assert looks[1] <= 2 * looks[0]


def test_a_prompt_that_leaves_all_turns_early_is_looked_up_at_the_cost_of_one_among_few():
    """The sieve stays sparse: hardly any of the prompt's prefixes is looked for by itself."""
    prompt = token_ids([*range(10), *range(5_000, 9_000)])

    def filled(turns: int) -> TrajectoryStore:
        store = TrajectoryStore(10**9)
        for number in range(turns):
            store.add(turn(f"t{number}", [], [], prompt_ids=token_ids(range(1 + number))))
        return store

    few, many = filled(100), filled(3_000)
    for store in (few, many):
        found = store.deepest_prefix(prompt, "s")
        assert found is not None
        assert found.id == "t9"
    looks = [opcodes(partial(store.deepest_prefix, prompt, "s")) for store in (few, many)]
    assert looks[1] <= 4 * looks[0]


@given(
    steps=st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=9), st.booleans()), max_size=60)
)
def test_with_a_sieve_or_without_the_longest_is_found(steps):
    """Against a plain list; turns also go, and the sieve is made before there are many."""
    index = PrefixIndex(lambda turn_id, length: turns[turn_id].prompt_ids[:length])
    turns: dict[str, Turn] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "FEW", 3)
        for number, (ids, goes) in enumerate(steps):
            made = turn(f"t{number}", ids, [])
            turns[made.id] = made
            index.add(made, None)
            if goes and number % 2:
                index.remove(turns.pop(next(iter(turns))))
            index.check_integrity(turns)
            for asked in (ids, [*ids, 1, 0, 1], ids[1:], steps[number // 2][0]):
                fitting = [
                    t for t in turns.values() if asked[: t.held_len] == t.prompt_ids.tolist()
                ]
                wanted = max(fitting, key=lambda t: (t.held_len, int(t.id[1:])), default=None)
                found = index.deepest(token_ids(asked), "s", "")
                assert found == (None if wanted is None else wanted.id)


def test_the_turn_that_was_recorded_last_is_found_without_a_digest(monkeypatch):
    store = TrajectoryStore(10**9)
    store.add(turn("first", [1, 2], [3]))
    store.add(turn("second", [], [4], base="first", base_len=3))
    monkeypatch.setattr(store._prefixes, "_mixed", None)
    found = store.deepest_prefix(token_ids([1, 2, 3, 4, 5]), "s")
    assert found is not None
    assert found.id == "second"
