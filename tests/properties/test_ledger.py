"""The ledger against a list of turns that is looked through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slime_router.trajectory.ledger import Ledger
from slime_router.trajectory.turn import Account, Turn
from slime_router.types import Finish, token_ids

names = st.sampled_from(["", "a", "b", "c"])
accounts = st.one_of(
    st.none(),
    st.builds(
        lambda rid, request_id, words: Account(
            started=0.0, duration_s=0.0, rid=rid, request_id=request_id, words=words
        ),
        names,
        names,
        st.one_of(st.none(), st.binary(max_size=20)),
    ),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("file"), names, accounts, st.lists(names, max_size=2)),
        st.tuples(st.just("unfile"), st.integers(0, 9)),
    ),
    max_size=20,
)


@given(steps=steps, budget=st.sampled_from([0, 10, 30, 1000]))
def test_turns_are_found_by_all_their_names_and_the_oldest_words_go_first(steps, budget):
    turns: dict[str, Turn] = {}
    ledger = Ledger(turns, budget)
    words: list[tuple[str, bytes]] = []  # of the turns that have any, oldest first
    dropped = 0
    for number, (kind, *given_) in enumerate(steps):
        if kind == "unfile":
            if turns:
                gone = list(turns)[given_[0] % len(turns)]
                ledger.unfile(turns.pop(gone))
                words = [each for each in words if each[0] != gone]
            continue
        request_id, account, calls = given_
        turn = Turn(
            id=f"t{number}", base=None, base_len=0, prompt_ids=token_ids([1]),
            output_ids=token_ids([2]), logprobs=None, weight_versions=(), finish=Finish("stop"),
            request_id=request_id, account=account, calls=tuple((call, "f") for call in calls),
        )  # fmt: skip
        turns[turn.id] = turn
        ledger.file(turn)
        if account is not None and account.words is not None:
            words.append((turn.id, account.words))
        while sum(len(each) for _, each in words) > budget:
            words.pop(0)
            dropped += 1
    ledger.check_integrity(turns)
    assert ledger.dropped_words == dropped
    kept = [(t.id, t.account.words) for t in turns.values() if t.account is not None]
    assert [each for each in kept if each[1] is not None] == words
    for name in ("a", "b", "c"):
        named = []
        for turn in turns.values():
            known = [turn.request_id, *(call for call, _ in turn.calls)]
            if turn.account is not None:
                known += [turn.account.rid, turn.account.request_id]
            named += [turn.id] if name in known else []
        assert list(ledger.find(name)) == named
    assert list(ledger.find("")) == []
