"""The order of weight versions: names that nobody can compare."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.generation.weight_versions import MAX_KNOWN, WeightVersions


def test_before_any_version_is_known_the_epoch_is_zero():
    weights = WeightVersions()
    assert (weights.current, weights.epoch) == (None, 0)
    assert weights.epoch_of([]) == 0


def test_the_first_version_and_each_new_one_begin_an_epoch():
    """Strings and numbers side by side: SGLang's first is called "default"."""
    weights = WeightVersions()
    assert [weights.note(version) for version in ("default", 7, "7", "a")] == [1, 2, 3, 4]
    assert (weights.current, weights.epoch) == ("a", 4)


def test_a_reply_that_lags_behind_does_not_turn_back():
    weights = WeightVersions()
    epochs = [weights.note(version) for version in ("v1", "v2", "v1", "v2", "v1")]
    assert epochs == [1, 2, 1, 2, 1]
    assert (weights.current, weights.epoch) == ("v2", 2)


def test_weights_that_come_in_parts_and_to_many_workers_are_one_update():
    weights = WeightVersions()
    weights.note("v1")
    assert [weights.set_current("v2") for _ in range(6)] == [2] * 6
    assert weights.note("v2") == 2
    assert weights.note("v1") == 1


def test_going_back_to_an_older_version_is_an_update():
    weights = WeightVersions()
    for version in ("v1", "v2"):
        weights.set_current(version)
    assert weights.set_current("v1") == 3
    assert (weights.current, weights.epoch_of(["v1"]), weights.epoch_of(["v2"])) == ("v1", 3, 2)
    assert weights.note("v1") == 3


def test_a_turn_is_as_new_as_the_newest_of_its_versions():
    weights = WeightVersions()
    for version in ("v1", 2, "v3"):
        weights.note(version)
    assert weights.epoch_of(["v1"]) == 1
    assert weights.epoch_of([2, "v1"]) == 2
    assert weights.epoch_of(["nobody noted it"]) == 0
    assert weights.epoch_of([]) == 3, "a worker that names none: nothing says that it is old"


def test_names_are_forgotten_oldest_first_and_the_current_never():
    weights = WeightVersions()
    weights.set_current("first")
    for number in range(10 * MAX_KNOWN):
        weights.note(number)
    assert len(weights._epochs) == MAX_KNOWN
    assert weights.note(9 * MAX_KNOWN) == 9 * MAX_KNOWN + 2, "one of the last is known"
    assert weights.current == 10 * MAX_KNOWN - 1
    assert weights.note("first") == 10 * MAX_KNOWN + 2, "forgotten, so new"


def test_a_name_that_comes_back_is_not_forgotten_for_its_age():
    weights = WeightVersions(max_known=2)
    for version in ("a", "b", "a", "c"):
        weights.set_current(version)
    assert weights.epoch_of(["b"]) == 0
    assert weights.epoch_of(["a"]) == 3


steps = st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "1", 1, 2, "default"])))


@given(steps, st.integers(1, 4))
def test_epochs_never_go_back_and_the_current_version_has_the_newest(taken, max_known):
    weights = WeightVersions(max_known=max_known)
    before = 0
    for is_told, version in taken:
        epoch = weights.set_current(version) if is_told else weights.note(version)
        assert before <= weights.epoch <= before + 1
        assert 0 < epoch <= weights.epoch
        assert weights.current is not None
        assert weights.epoch_of([weights.current]) == weights.epoch
        assert not is_told or (weights.current, epoch) == (version, weights.epoch)
        before = weights.epoch


@pytest.mark.parametrize("version", ["v9", 9])
def test_what_it_knows_is_shown(version):
    weights = WeightVersions()
    weights.note(version)
    assert repr(weights) == f"<WeightVersions {version!r} in epoch 1>"
