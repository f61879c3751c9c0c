"""One worker as the pool knows it: what it starts as, reports and went through."""

from __future__ import annotations

from slime_router.pool.worker import Worker

URL = "http://a:1"


def test_nothing_is_known_of_a_worker_that_nobody_has_asked() -> None:
    worker = Worker(URL)
    assert (worker.queued, worker.pauses, worker.updates) == (0, 0, 0)
    assert (worker.kv_tokens, worker.context_len, worker.is_token_exact) == (None, None, None)
    assert worker.preferred_sampling == {}
    assert worker.was_greeted is False
    assert worker.is_draining is False


def test_a_report_that_leaves_something_out_changes_nothing_of_that() -> None:
    worker = Worker(URL)
    worker.reported(queued=3, kv_tokens=1000, context_len=50, preferred_sampling={"top_p": 0.5})
    worker.reported()
    assert (worker.queued, worker.kv_tokens, worker.context_len) == (3, 1000, 50)
    assert worker.preferred_sampling == {"top_p": 0.5}
    worker.reported(queued=0, preferred_sampling={})
    assert (worker.queued, worker.preferred_sampling) == (0, {})


def test_every_pause_and_every_update_is_counted_once() -> None:
    worker = Worker(URL)
    for is_paused, is_asleep, pauses in (
        (True, False, 1), (True, True, 1), (False, True, 1), (False, False, 1), (False, True, 2)
    ):  # fmt: skip
        worker.rested(is_paused=is_paused, is_asleep=is_asleep)
        assert worker.pauses == pauses
    for number in (1, 2, 3):
        worker.update_started()
        assert worker.updates == number


def test_a_worker_that_is_down_says_why() -> None:
    worker = Worker(URL)
    assert worker.went_down()
    assert worker.reason == "it cannot be reached"
    assert not worker.went_down("it refuses connections")
    assert worker.reason == "it refuses connections"


def test_one_that_is_registered_again_no_longer_leaves() -> None:
    worker = Worker(URL)
    worker.asked_to_leave()
    assert worker.is_draining is True
    worker.register()
    assert worker.is_draining is False


def test_what_another_process_no_longer_has_counts_no_more() -> None:
    worker = Worker(URL)
    worker.has_elsewhere(1, 4)
    worker.has_elsewhere(2, 1)
    assert worker.busy_with == 5
    worker.has_elsewhere(1, 0)
    assert worker.busy_with == 1
