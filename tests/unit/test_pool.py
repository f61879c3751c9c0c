"""The pool: which workers are registered, which is next, and that every lease comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.errors import BadRequest, NotFound, NoWorker
from slime_router.pool.adapters import MAX_NAMES
from slime_router.pool.policy import least_in_flight
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from tests.loads import load

A, B, C = "http://a:1", "http://b:2", "http://c:3"
LONGEST = "http://" + ".".join([63 * "x", 63 * "x", 63 * "x", 61 * "x"])  # 253 of a name


def test_adding_twice_in_any_spelling_is_one_worker():
    pool = WorkerPool()
    worker = pool.add(A)
    assert pool.add("HTTP://A:1/") is worker
    assert pool.list() == (worker,)


@pytest.mark.parametrize(
    "url",
    ["", "a:1", "ftp://a:1", "http://", "http://a:x", "http://a:99999", "http://a/?q=1",
     "http://a/#f", "http://me:pw@a", "http://a b", "http://[::1", "http://a?", "http://a#",
     "http://@a", "http://:@a", "http://a:0", "http://a/v1", "http://a/v1/", "http://a//x",
     "http://a/..", "http://gpu7..cluster:30000", "http://.gpu7:1", "http://gpu7..", "http://.",
     LONGEST + "x", f"http://{'x' * 64}:1", f"http://a.{'x' * 64}.b:1", f"http://{'x.' * 130}x", "http://a\ufffd:1",
     "http://\ufffd", "http://a\tb", "http://a\n:1", "http://a\x00", "http://a\u200b:1", "http://a%20b",
     "http://a\\b", "http://-a:1", "http://a-:1", "http://1.2.3:1", "http://1.2.3.256",
     "http://0x7f.1", "http://[1.2.3.4]:1", "http://[::g]:1", "http://[v1.x]:1", "http:///x", "file:///x",
     "unix:/tmp/x", "//a:1", "http:a:1", "http://a:-1", "http://a:1.5", "http://a,b", "http://a;b",
     "http://*:1", "http://a" + "/" * 3000],
)  # fmt: skip
def test_what_is_no_worker_url_is_refused_and_changes_nothing(url):
    pool = WorkerPool()
    with pytest.raises(BadRequest) as caught:
        pool.add(url)
    assert caught.value.param == "url"
    assert pool.list() == ()


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("https://A/", "https://a"),
        ("http://[::1]:9/", "http://[::1]:9"),
        ("http://[0:0:0:0:0:0:0:1]:9", "http://[::1]:9"),
        ("http://[FE80::1%25eth0]:9", "http://[fe80::1%eth0]:9"),  # as RFC 6874 has it
        ("http://[fe80::1%Eth0]:9", "http://[fe80::1%Eth0]:9"),
        (" http://a/ ", "http://a"),
        ("http://a//", "http://a"),
        ("http://gpu-7.rack_2.cluster.:30000", "http://gpu-7.rack_2.cluster.:30000"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://b\u00fccher.example:1", "http://xn--bcher-kva.example:1"),
        (f"http://{'x' * 63}:65535", f"http://{'x' * 63}:65535"),
        ("http://a:", "http://a"),
        (LONGEST, LONGEST),
    ],
)
def test_a_url_keeps_what_counts(url, normalised):
    assert WorkerPool([url]).list()[0].url == normalised


def test_a_worker_is_found_and_removed_by_url_or_id():
    pool = WorkerPool([A, B])
    a, b = pool.list()
    assert pool.get(a.id) is a
    assert pool.get("http://B:2/") is b
    assert pool.remove(a.id) is a
    assert pool.remove(B + "/") is b
    for unknown in (a.id, B, "nonsense"):
        with pytest.raises(NotFound):
            pool.remove(unknown)


def test_a_worker_that_nobody_has_looked_at_is_asked_after_the_others():
    pool = WorkerPool([A, B])
    a, b = pool.list()
    b.greeted()
    with pool.lease() as first, pool.lease() as second, pool.lease(exclude={B}) as third:
        assert [lease.worker for lease in (first, second, third)] == [b, b, a]
    a.greeted()
    with pool.lease() as fourth, pool.lease() as fifth:
        assert {fourth.worker, fifth.worker} == {a, b}


def test_the_least_loaded_takes_the_next_request():
    pool = WorkerPool([A, B])
    with pool.lease() as first, pool.lease() as second, pool.lease(exclude={A}) as third:
        assert [lease.worker.url for lease in (first, second, third)] == [A, B, B]
        assert pool.loads == {A: 1, B: 2}
        with pool.lease() as fourth:
            assert fourth.worker.url == A


def test_an_idle_fleet_is_spread():
    """Requests one after the other go round: no worker serves all of a quiet hour."""
    pool = WorkerPool([A, B, C])
    urls = []
    for _ in range(6):
        with pool.lease() as lease:
            urls.append(lease.worker.url)
    assert urls == [A, B, C] * 2


def test_a_lease_comes_back_whatever_happens_in_it():
    pool = WorkerPool([A])
    with pytest.raises(ZeroDivisionError), pool.lease():
        raise ZeroDivisionError
    assert pool.loads == {A: 0}
    assert pool.total_in_flight == 0


def test_a_removed_worker_gives_its_leases_back():
    """A worker that is registered again while an old request runs starts from zero."""
    pool = WorkerPool([A])
    with pool.lease():
        pool.remove(A)
        assert pool.total_in_flight == 1
        assert pool.add(A).in_flight == 0
    assert pool.total_in_flight == 0
    assert pool.loads == {A: 0}


@pytest.mark.parametrize(("urls", "exclude"), [([], ()), ([A], [A]), ([A, B], {A, B})])
def test_no_worker_left_is_said(urls, exclude):
    pool = WorkerPool(urls)
    with pytest.raises(NoWorker), pool.lease(exclude=exclude):
        pass
    assert pool.total_in_flight == 0


def test_repr_tells_the_state():
    pool = WorkerPool([A, B])
    with pool.lease():
        assert repr(pool) == "<WorkerPool 2 workers, 1 in flight>"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_the_policy_takes_the_least_loaded_then_the_longest_idle(loads):
    workers = [
        load(Worker(f"http://w{i}"), in_flight=n, last_lease=at) for i, (n, at) in enumerate(loads)
    ]
    chosen = least_in_flight(workers)
    assert (chosen.in_flight, chosen.last_lease) == min(loads)


def test_what_a_worker_had_loaded_is_forgotten_when_it_leaves():
    pool = WorkerPool()
    for number in range(20):
        worker = pool.add(f"http://worker-{number}:1")
        pool.adapters.loaded(worker, "sql")
        assert pool.adapters.at([worker]) == ["sql"]
        pool.remove(worker.url)
        pool.adapters.listed(worker, ["sql"])  # its answer came too late
        assert pool.adapters.at([pool.add(worker.url)]) == []
        pool.remove(worker.url)
    assert pool.adapters.names == ("sql",), "a name outlives its workers"
    known = [vars(pool.adapters), vars(pool)]
    assert not [name for each in known for name, value in each.items() if "worker-" in repr(value)]


def test_a_worker_has_no_more_names_than_are_known():
    pool = WorkerPool([A])
    [worker] = pool.list()
    for number in range(MAX_NAMES + 20):
        pool.adapters.loaded(worker, f"step-{number}")
    pool.adapters.listed(worker, ["step-1050", 7, "base:sql", None])
    assert worker.adapters == {"step-1050"}
    for number in range(MAX_NAMES + 20):
        pool.adapters.loaded(worker, f"another-{number}")
    assert len(worker.adapters) == MAX_NAMES
    assert pool.adapters.at([worker]) == list(pool.adapters.names)
