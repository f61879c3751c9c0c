"""A real worker for the end-to-end tests, started once for all of them.

`WORKER_URL=http://...` uses a worker that runs already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.sglang.child import say
from tests.sglang.environment import prepare
from tests.sglang.recorder import RecordingProxy
from tests.sglang.server import SGLangServer


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install the worker before the first test: no test's time-out has room for that."""
    needs_worker = any(
        "sglang_server" in getattr(item, "fixturenames", ()) for item in session.items
    )
    if needs_worker and not session.config.option.collectonly and "WORKER_URL" not in os.environ:
        with _shown(session.config):
            prepare()


@pytest.fixture(scope="session")
def sglang_server(pytestconfig: pytest.Config) -> Iterator[SGLangServer]:
    """The worker itself. It takes a while to start, so its progress is shown."""
    with ExitStack() as stack:
        with _shown(pytestconfig):
            server = stack.enter_context(SGLangServer())
        yield server


@pytest.fixture(scope="session")
def sglang_url(sglang_server: SGLangServer) -> str:
    """The base URL of the worker."""
    return sglang_server.url


@pytest.fixture(scope="session")
def checkpoint_dir(sglang_server: SGLangServer) -> Path:
    """The folder of the worker's model: what a router is given as `--hf-checkpoint`."""
    return sglang_server.checkpoint


@pytest.fixture(scope="session")
def recording_proxy(sglang_url: str) -> Iterator[RecordingProxy]:
    """A proxy in front of the worker; `clear()` its record before use."""
    with RecordingProxy(sglang_url) as proxy:
        yield proxy


@contextmanager
def _shown(config: pytest.Config) -> Iterator[None]:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        say("")
        yield
