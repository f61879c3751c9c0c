"""What all tests share: a log as it was, and who runs which tests where several processes do."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Whoever starts a router sets the log's level and handlers; the next test meets neither."""
    root, ours = logging.getLogger(), logging.getLogger("slime_router")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)
