"""Workers from a file and from a name: which join, which leave, and what a failure changes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.discovery.discovery import Discovery
from slime_router.discovery.sources import (
    MAX_FOUND,
    AddressInfo,
    FileSource,
    NameSource,
    SourceFailed,
    read_source,
)
from slime_router.errors import SetupError
from slime_router.pool.pool import WorkerPool
from slime_router.supervisor import Supervisor


class Listed:
    """A source that says what a test wants; an exception is raised."""

    name = "listed"

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience
        self.answer: frozenset[str] | SourceFailed = frozenset()

    async def find(self) -> frozenset[str]:
        if isinstance(self.answer, SourceFailed):
            raise self.answer
        return self.answer


def urls(*numbers: int) -> frozenset[str]:
    return frozenset(f"http://w{number}" for number in numbers)


def discovery(pool: WorkerPool, *sources: Listed) -> Discovery:
    return Discovery(pool, sources, Supervisor(), interval_s=1.0)


def members(pool: WorkerPool) -> set[str]:
    return {worker.url for worker in pool.list()}


# Joining and leaving


async def test_workers_join_when_they_are_found_and_leave_when_they_are_missing():
    pool, source = WorkerPool(), Listed()
    found = discovery(pool, source)
    for answer in (urls(1, 2), urls(2, 3), urls()):
        source.answer = answer
        await found.look()
        assert members(pool) == answer


async def test_one_that_leaves_finishes_what_it_has(caplog):
    pool, source = WorkerPool(), Listed()
    found = discovery(pool, source)
    source.answer = urls(1)
    await found.look()
    lease = pool.lease()
    source.answer = urls()
    with caplog.at_level(logging.INFO):
        await found.look()
    assert pool.list()[0].is_draining
    assert "worker http://w1 leaves: it is no longer in listed, 1 in flight" in caplog.text
    lease.close()
    assert members(pool) == set()


async def test_one_that_comes_back_while_it_leaves_stays():
    pool, source = WorkerPool(), Listed()
    found = discovery(pool, source)
    source.answer = urls(1)
    await found.look()
    with pool.lease():
        source.answer = urls()
        await found.look()
        source.answer = urls(1)
        await found.look()
    assert members(pool) == urls(1)


async def test_an_answer_without_a_worker_is_believed_only_when_it_is_repeated():
    pool, source = WorkerPool(), Listed(patience=3)
    found = discovery(pool, source)
    source.answer = urls(1, 2)
    await found.look()
    source.answer = urls(2)
    for _ in range(2):
        await found.look()
        assert members(pool) == urls(1, 2)
    source.answer = urls(1, 2)  # it counts from the beginning again
    await found.look()
    source.answer = urls(2)
    for _ in range(2):
        await found.look()
    assert members(pool) == urls(1, 2)
    await found.look()
    assert members(pool) == urls(2)


async def test_a_failure_removes_nobody_and_is_logged_once(caplog):
    pool, source = WorkerPool(), Listed()
    found = discovery(pool, source)
    source.answer = urls(1)
    await found.look()
    source.answer = SourceFailed("the name does not resolve")
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            await found.look()
        source.answer = urls(1)
        await found.look()
    assert members(pool) == urls(1)
    assert found.failures == 5
    assert [record.getMessage() for record in caplog.records] == [
        "listed: the name does not resolve; its 1 workers stay",
        "listed can be read again",
    ]


async def test_what_was_registered_before_stays():
    pool, source = WorkerPool(urls(1)), Listed()
    found = discovery(pool, source)
    source.answer = urls(1, 2)
    await found.look()
    source.answer = urls()
    await found.look()
    assert members(pool) == urls(1)


async def test_what_a_user_removes_stays_away_until_it_is_found_anew():
    pool, source = WorkerPool(), Listed()
    found = discovery(pool, source)
    source.answer = urls(1)
    await found.look()
    pool.remove("http://w1")
    await found.look()
    assert members(pool) == set()
    for answer in (urls(), urls(1)):
        source.answer = answer
        await found.look()
    assert members(pool) == urls(1)


async def test_a_worker_of_two_sources_leaves_with_the_last():
    pool, one, other = WorkerPool(), Listed(), Listed()
    found = discovery(pool, one, other)
    one.answer = other.answer = urls(1)
    await found.look()
    one.answer = urls()
    await found.look()
    assert members(pool) == urls(1)
    other.answer = urls()
    await found.look()
    assert members(pool) == set()


ANSWERS = st.lists(st.none() | st.frozensets(st.integers(0, 3)), max_size=12)


@given(ANSWERS, st.integers(1, 3))
async def test_it_holds_what_the_last_answers_name(answers, patience):
    """Beside a slow model: what was named in one of the last `patience` answers is there."""
    pool, source = WorkerPool(), Listed(patience)
    found = discovery(pool, source)
    heard: list[frozenset[int]] = []
    for answer in answers:
        if answer is None:
            source.answer = SourceFailed("silence")
        else:
            heard.append(answer)
            source.answer = urls(*answer)
        await found.look()
        assert members(pool) == urls(*{n for each in heard[-patience:] for n in each})


# Files


async def test_a_file_has_lines_with_urls_and_comments(tmp_path):
    path = tmp_path / "workers"
    path.write_text("# ours\nhttp://a:1/\n\n  http://b:2  # the new one\nhttp://a:1\n")
    assert await FileSource(path).find() == {"http://a:1", "http://b:2"}
    path.write_text("")
    assert await FileSource(path).find() == frozenset()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"http://a\nb:1\n", "line 2: A worker's URL looks like http://host:port."),
        (b"\xff", "it is not UTF-8"),
        (b"#" * (2**20 + 1), "it is longer than"),
        (b"".join(b"http://w%d\n" % n for n in range(MAX_FOUND + 1)), "more than the limit"),
        (None, "it cannot be read: No such file"),
    ],
)
async def test_a_file_that_is_not_right_says_why(content, said, tmp_path):
    path = tmp_path / "workers"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceFailed) as caught:
        await FileSource(path).find()
    assert said in str(caught.value)
    with pytest.raises(SourceFailed, match="not a file"):
        await FileSource(tmp_path).find()


async def test_a_file_that_is_being_written_over_removes_nobody(tmp_path):
    path, pool = tmp_path / "workers", WorkerPool()
    path.write_text("http://a:1\nhttp://b:2\n")
    discovery = Discovery(pool, [FileSource(path)], Supervisor(), interval_s=5)
    for content in (None, "", None, "http://a:1\nhtt", None, "http://a:1\n", None):
        path.write_text("http://a:1\nhttp://b:2\n" if content is None else content)
        await discovery.look()
        assert members(pool) == {"http://a:1", "http://b:2"}
    path.write_text("http://a:1\n")
    await discovery.look()
    await discovery.look()
    assert members(pool) == {"http://a:1"}


# Names


def resolving(*hosts: str, failure: Exception | None = None):
    async def resolve(host: str, port: int) -> Sequence[AddressInfo]:
        assert (host, port) == ("workers.ns.svc", 30000)
        if failure is not None:
            raise failure
        return [(None, None, 0, "", (each, port)) for each in hosts]

    return NameSource("workers.ns.svc", 30000, resolve=resolve)


async def test_each_address_of_a_name_is_a_worker():
    assert await resolving("10.0.0.1", "10.0.0.2", "10.0.0.1").find() == {
        "http://10.0.0.1:30000",
        "http://10.0.0.2:30000",
    }
    assert await resolving("fd00::1").find() == {"http://[fd00::1]:30000"}


async def test_a_pod_with_two_addresses_is_one_worker():
    assert await resolving("10.0.0.1", "fd00::1").find() == {"http://10.0.0.1:30000"}


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "does not resolve"),
        (TimeoutError(), "no answer in 10 s"),
        (None, "has no address"),
    ],
)
async def test_a_name_without_an_answer_fails(failure, said):
    with pytest.raises(SourceFailed) as caught:
        await resolving(failure=failure).find()
    assert said in str(caught.value)


async def test_a_name_is_looked_up_in_the_system():
    assert await NameSource("localhost", 7).find() == {"http://127.0.0.1:7"}


# What users write


def test_a_source_is_written_with_its_kind():
    assert read_source("file:/etc/workers").name == "file:/etc/workers"
    assert read_source("dns:workers.ns.svc:30000").name == "dns:workers.ns.svc:30000"


@pytest.mark.parametrize("text", ["file:", "dns:a", "dns::1", "dns:a:0", "dns:a:70000", "k8s:a"])
def test_what_is_not_a_source_is_refused(text):
    with pytest.raises(SetupError, match="file:PATH or dns:NAME:PORT"):
        read_source(text)


def test_a_port_of_any_number_of_digits_is_refused_in_one_line():
    with pytest.raises(SetupError, match="takes file:PATH or dns:NAME:PORT"):
        read_source("dns:workers:" + "1" * 5000)
