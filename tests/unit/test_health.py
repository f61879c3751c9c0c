"""What probes come to: when a worker counts as down, and how soon it is asked again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from slime_router.engine.exchange import WorkerAnswer
from slime_router.failover.health import ENDPOINT, Health, HealthSettings, _count, _State
from slime_router.pool.backoff import Backoff
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor

NO_HEADERS = CIMultiDictProxy(CIMultiDict[str]())


def state(**settings: object) -> _State:
    given = {"interval_s": 10.0, "failure_threshold": 3, "success_threshold": 2, **settings}
    backoff = Backoff(initial_s=1.0, factor=2.0, max_s=8.0, jitter=0.0)
    return _State(HealthSettings(**given), backoff, lambda: 0.5)  # type: ignore[arg-type]


def test_who_refuses_is_down_at_once_who_is_silent_after_some_probes():
    assert state().failed("refuses")
    silent = state()
    assert [silent.failed("silent") for _ in range(3)] == [False, False, True]


def test_an_answer_in_between_forgives():
    made = state()
    for _ in range(5):
        assert not made.failed("silent")
        assert not made.failed("silent")
        made.answered()


def test_the_first_answer_is_trusted_later_ones_after_a_failure_must_repeat():
    made = state()
    assert made.answered()
    made.failed("refuses")
    assert [made.answered(), made.answered()] == [False, True]


def test_probes_of_a_worker_that_is_down_come_further_and_further_apart():
    made, worker = state(), Worker("http://a")
    worker.went_down()
    rests = []
    for _ in range(5):
        rests.append(made.rest_s(worker))
        made.failed("refuses")
    assert rests == [1.0, 2.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize(("is_enabled", "rest_s"), [(True, 10.0), (False, None)])
def test_a_healthy_worker_is_asked_now_and_then_or_never(is_enabled, rest_s):
    made, worker = state(is_enabled=is_enabled), Worker("http://a")
    assert made.rest_s(worker) == rest_s
    made.failed("silent")
    assert made.rest_s(worker) == 1.0, "soon, whatever is switched off"
    made.answered()
    assert made.rest_s(worker) == rest_s
    worker.refuses(True)
    assert made.rest_s(worker) == 1.0, "it may take requests again"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"1", b"\xff"])
def test_an_answer_that_is_no_object_says_nothing(body):
    assert WorkerAnswer(200, NO_HEADERS, body).fields == {}


@pytest.mark.parametrize(("value", "count"), [(3, 3), (-1, 0), (None, 0), ("3", 0), (True, 0)])
def test_odd_counts_are_none(value, count):
    assert _count(value) == count


class _Updated:
    """A client whose worker is updated without the router while it is asked for its version."""

    def __init__(self, seen: str | None) -> None:
        self._seen = seen
        self.paths: list[str] = []

    async def ask(self, worker: Worker, _: str, path: str, **__: object) -> Any:
        self.paths.append(path)
        if self._seen is not None:
            worker.observed(self._seen, known=worker.weight_version)
        return WorkerAnswer(200, NO_HEADERS, b'{"weight_version": "old"}')


NAMELESS: Any = SimpleNamespace(named=lambda tokenizer_path: None)  # keeps no name


@pytest.mark.parametrize(("seen", "known"), [("new", "new"), (None, "old")])
async def test_an_answer_that_is_older_than_what_was_seen_meanwhile_counts_for_nothing(seen, known):
    worker = Worker("http://a")
    noted: list[str] = []
    pool: Any = SimpleNamespace(
        note_versions=lambda: noted.append(str(worker.weight_version)), subscribe=lambda look: None
    )
    client: Any = _Updated(seen)
    health = Health(pool, client, HealthSettings(), Supervisor())
    worker.observed("first", known=None)
    assert await health._probe(worker, NAMELESS) == "answers"
    assert worker.weight_version == known
    assert noted == ([] if seen else ["old"]), "requests may wait for workers of that version"


async def test_a_worker_that_rests_is_asked_what_it_answers_then():
    pool: Any = SimpleNamespace(note_versions=lambda: None, subscribe=lambda look: None)
    client: Any = _Updated(None)
    health = Health(pool, client, HealthSettings(endpoint="/v1/of/mine"), Supervisor())
    worker = Worker("http://a")
    await health._probe(worker, NAMELESS)
    worker.rested(is_paused=True, is_asleep=False)
    await health._probe(worker, NAMELESS)
    assert client.paths == ["/v1/of/mine", ENDPOINT]
