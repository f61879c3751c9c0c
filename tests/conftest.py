"""What all tests share: what they need, a log as it was, and which tests share a process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.needs import NEEDS, Need

ONE_PROCESS = {  # what tests share besides the file that they stand in
    "tests/e2e/test_sglang_launch.py": "the range in which launchers look for ports",
    "tests/integration/test_launcher.py": "the range in which launchers look for ports",
    "tests/e2e/": "one SGLang",
}


class Shares(LoadScopeScheduling):  # type: ignore[misc]  # it brings no types
    """The tests of one file share what it loads; `ONE_PROCESS` says which files go together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        together = (name for start, name in ONE_PROCESS.items() if file.startswith(start))
        return next(together, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    """The hook of pytest-xdist by which it takes another scheduler."""
    return Shares(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What CI asks for: that nothing is left out."""
    parser.addoption(
        "--require-all", action="store_true", help="fail where a test lacks what it needs"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Each need is a marker."""
    for name, need in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {need.line}")
    config.stash[_UNMET] = {name: need for name, need in NEEDS.items() if not need.is_met()}


_UNMET = pytest.StashKey[dict[str, Need]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before its fixtures, a test without what it needs is skipped, from one line for all."""
    lacking = [n.line for name, n in item.config.stash[_UNMET].items() if item.get_closest_marker(name)]
    if lacking and item.config.getoption("--require-all"):
        pytest.fail(lacking[0], pytrace=False)
    if lacking:
        pytest.skip(lacking[0])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Whoever starts a router sets the log's level and handlers; the next test meets neither."""
    root, ours = logging.getLogger(), logging.getLogger("slime_router")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)
