"""A value behaves as the frozen dataclass that it is declared as."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.values import replace, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    number: int
    word: str = "none"
    rest: list[int] = field(default_factory=list)


@value(frozen=True, slots=True, kw_only=True)
class Fast:
    number: int
    word: str = "none"
    rest: list[int] = field(default_factory=list)


@value(frozen=True, slots=True, kw_only=True)
class Faster(Fast):
    more: int = 0


@value(frozen=True, slots=True)
class Pair:
    first: int
    second: int = 2


FIELDS = st.fixed_dictionaries(
    {"number": st.integers()},
    optional={"word": st.text(), "rest": st.lists(st.integers())},
)


@given(FIELDS, FIELDS)
def test_it_is_made_and_changed_as_a_frozen_dataclass_is(
    given_: dict[str, Any], changes: dict[str, Any]
) -> None:
    fast, slow = Fast(**given_), Slow(**given_)
    assert type(fast) is Fast
    assert dataclasses.asdict(fast) == dataclasses.asdict(slow)
    assert repr(fast) == repr(slow).replace("Slow", "Fast")
    changed = replace(fast, **changes)
    assert type(changed) is Fast
    assert dataclasses.asdict(changed) == dataclasses.asdict(dataclasses.replace(slow, **changes))
    assert changed == dataclasses.replace(fast, **changes)
    assert (changed == fast) is (dataclasses.replace(slow, **changes) == slow)


def test_it_cannot_be_written_to() -> None:
    made = Fast(number=1)
    for each in (made, replace(made, number=2), copy.copy(made), pickle.loads(pickle.dumps(made))):
        assert type(each) is Fast
        with pytest.raises(FrozenInstanceError):
            each.number = 3  # type: ignore[misc]
        with pytest.raises(FrozenInstanceError):
            del each.word


def test_each_has_its_own_defaults() -> None:
    assert Fast(number=1).rest is not Fast(number=1).rest


def test_a_subclass_is_made_whole() -> None:
    made = replace(Faster(number=1, more=5), word="two")
    assert type(made) is Faster
    assert (made.number, made.word, made.more) == (1, "two", 5)
    with pytest.raises(FrozenInstanceError):
        made.more = 6  # type: ignore[misc]


def test_it_has_a_hash_and_takes_arguments_by_place() -> None:
    assert hash(Pair(1)) == hash(Pair(1, 2))
    assert Pair(3, 4) == Pair(second=4, first=3)


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(TypeError):
        Fast(number=1, other=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Fast()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        replace(Fast(number=1), other=2)  # type: ignore[call-arg]


def test_other_dataclasses_are_changed_as_ever() -> None:
    assert replace(Slow(number=1), word="two") == Slow(number=1, word="two")


def test_only_values_are_declared_so() -> None:
    with pytest.raises(TypeError, match="frozen"):
        value(frozen=False, slots=True)

    class Late:
        def __post_init__(self) -> None:
            """Not run."""

    with pytest.raises(TypeError, match="__post_init__"):
        value(frozen=True, slots=True)(Late)
