"""What all tests share: what they need, a log as it was, and which tests share a process."""

from __future__ import annotations

import ctypes
import gc
import logging
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from aiohttp import web_app
from hypothesis import HealthCheck, Phase, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.examples import SCALE, examples
from tests.needs import NEEDS, required, skip_without
from tests.redis_fleet import RedisCluster, WatchedRedis
from tests.redis_server import RedisServer

FAMILIES = "the tokenizers of families"
ONE_PROCESS = {  # what tests share besides the file that they stand in
    "tests/e2e/test_sglang_launch.py": "the range in which launchers look for ports",
    "tests/integration/test_launcher.py": "the range in which launchers look for ports",
    "tests/e2e/": "one SGLang",
    "tests/families/": FAMILIES,
    "tests/properties/test_suffixes.py": FAMILIES,
    "tests/properties/test_transcripts.py": FAMILIES,
}

# How fast the machine is, or what else it does, says nothing about the code. The same examples are
# drawn each time, so that a change fails by what it changes; `make fuzz` draws others.
settings.register_profile(
    "any machine",
    max_examples=examples(settings().max_examples),
    deadline=None,
    derandomize=SCALE <= 1,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")
# `make mutants` asks only whether a test fails: looking for its smallest example takes longer than
# finding one.
settings.register_profile(
    "mutants",
    settings.get_profile("any machine"),
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)


# Gives free memory back to the system; other C libraries than glibc do so by themselves.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
MANY_OBJECTS = 200_000  # what a collection looks through in some 20 ms
MARKS_OF_A_FILE = re.compile(r"^pytestmark = (\[.*?\]$|.*?$)", re.MULTILINE | re.DOTALL)


class Shares(LoadScopeScheduling):  # type: ignore[misc]  # it brings no types
    """The tests of one file share what it loads; `ONE_PROCESS` says which files go together."""

    def _split_scope(self, nodeid: str) -> str:
        return _share(nodeid)


def _share(nodeid: str) -> str:
    """What goes to one process together with this test."""
    file = nodeid.partition("::")[0]
    return next((name for start, name in ONE_PROCESS.items() if file.startswith(start)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    """The hook of pytest-xdist by which it takes another scheduler."""
    return Shares(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make test` and CI ask for: that nothing is left out."""
    parser.addoption(
        "--require-all", action="store_true", help="refuse to start where a test would be skipped"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Each need is a marker.

    Raises:
        pytest.UsageError: all are required, and one is not met.
    """
    for name, need in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {need}")
    if config.getoption("--require-all") and (lacking := required()):
        raise pytest.UsageError("; ".join(f"the suite {need}" for need in lacking))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m "not (slow or ...)"`, a file that is slow as a whole is not even imported."""
    without = re.fullmatch(r"not \(?([\w ]+)\)?", config.option.markexpr)
    if without is None or not collection_path.match("test_*.py"):
        return None
    marks = MARKS_OF_A_FILE.search(collection_path.read_text(encoding="utf-8"))
    names = re.findall(r"pytest\.mark\.(\w+)", marks[0]) if marks else []
    return True if set(names) & set(without[1].split(" or ")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of one family follow each other, and families of one vocabulary: to load it takes a
    second, and few are kept.

    Those that name none come last: some look at what was found of every family.
    """
    places = [k for k, item in enumerate(items) if _share(item.nodeid) == FAMILIES]
    if not places:
        return
    from tests.families.catalogue import families  # reads templates that may not be there

    shuffled = [items[place] for place in places]
    made_of = {family.name: family.made_of for family in families()}
    names = list(map(_family, shuffled))
    files = [made_of.get(name) for name in names]
    order = {each: k for k, each in enumerate(dict.fromkeys([*files, *names]))}
    together = sorted(
        range(len(places)),
        key=lambda k: (files[k] is None, order[files[k]], order[names[k]]),
    )
    for place, k in zip(places, together, strict=True):
        items[place] = shuffled[k]


def _family(item: pytest.Item) -> str:
    """The family that a test has for a parameter; "" where it names its own."""
    callspec = getattr(item, "callspec", None)
    params = {} if callspec is None else callspec.params
    return str(params.get("name") or getattr(params.get("family"), "name", ""))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: the garbage collector need not look through it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test without what it needs is skipped before its fixtures are made."""
    if names := [mark.name for mark in item.iter_markers() if mark.name in NEEDS]:
        skip_without(*names)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Whoever starts a router sets the log's level and handlers; the next test meets neither.

    Nor does it keep the last one's applications, of which aiohttp remembers a thousand: a process
    would grow to 5 GB, through which the garbage collector looks again and again.
    """
    root, ours = logging.getLogger(), logging.getLogger("slime_router")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)
    web_app._cached_build_middleware.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def light() -> Iterator[None]:
    """What the tests of a file left goes: a process takes up to 2.3 GB, not 4.5.

    A router that ran in the test's process has set the collector for a long life. And what several
    threads allocated, as those of tokenizers do, glibc keeps when it is free again.
    """
    yield
    assert gc.isenabled(), "a test has left the garbage collector off"
    if len(gc.get_objects(generation=2)) > MANY_OBJECTS:  # to count what is frozen takes 0.1 s
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    TRIM(0)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server for all tests of this process: each takes its own prefix."""
    skip_without("redis")
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "no")
    server.start()
    try:
        server.wait_ready()
        yield server.url
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same of a cluster."""
    skip_without("redis")
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster.url
    finally:
        cluster.kill()


@pytest.fixture(scope="session")
def redis_sentinel_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same of a primary that a sentinel names."""
    skip_without("redis")
    watched = WatchedRedis(tmp_path_factory.mktemp("watched"))
    try:
        watched.start()
        yield watched.url
    finally:
        watched.kill()
