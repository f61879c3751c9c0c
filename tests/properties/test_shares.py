"""Shares of places, against a slow model: two tenants and one that has no name, in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.auth.shares import Shares
from tests.examples import examples

OWNERS = ["", "ann", "bob"]


@settings(max_examples=examples(200))
@given(
    limit=st.integers(0, 12),
    owners=st.sets(st.sampled_from(OWNERS)),
    deeds=st.lists(st.tuples(st.sampled_from(OWNERS), st.booleans()), max_size=60),
)
def test_nobody_takes_what_another_is_due(limit, owners, deeds):
    shares, has = Shares(limit, owners), dict.fromkeys(OWNERS, 0)
    share = max(1, limit // (2 * len(owners))) if 1 < len(owners) <= limit else 0
    for owner, comes in deeds:
        kept_free = sum(max(share - has[other], 0) for other in owners if other != owner)
        may = sum(has.values()) + kept_free < limit
        assert shares.has_room(owner) == may
        if comes and may:
            shares.take(owner)
            has[owner] += 1
        elif not comes and has[owner]:
            shares.give_back(owner)
            has[owner] -= 1
        assert shares.total == sum(has.values()) <= limit
        assert {name: shares.taken(name) for name in OWNERS} == has
        for name in owners:
            assert has[name] >= share or shares.has_room(name)


def test_an_owner_that_has_nothing_gives_nothing_back():
    shares = Shares(3, ["ann", "bob"])
    shares.take("ann")
    with pytest.raises(ValueError, match="bob"):
        shares.give_back("bob")


def test_one_owner_has_all_of_it():
    shares = Shares(3, ["ann"])
    for _ in range(3):
        assert shares.has_room("ann")
        shares.take("ann")
    assert not shares.has_room("ann")
