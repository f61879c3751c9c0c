"""A real worker for the end-to-end tests, started once for all of them.

`WORKER_URL=http://...` uses a worker that runs already.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.ports import HOST, free_port
from tests.sglang.child import Child, say
from tests.sglang.environment import CACHE
from tests.sglang.recorder import RecordingProxy
from tests.sglang.server import SGLangServer, answers


@pytest.fixture(scope="session")
def sglang_server(pytestconfig: pytest.Config) -> Iterator[SGLangServer]:
    """The worker itself. A person who waits for it sees that."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with ExitStack() as stack:
        with capture.global_and_fixture_disabled():
            say("")  # pytest's own line has no end yet
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
def routing(proxy: RecordingProxy, checkpoint_dir: Path, *flags: str) -> Iterator[str]:
    """The router as a user starts it, in front of the witness."""
    port = free_port()
    command = [sys.executable, "-m", "slime_router", "--hf-checkpoint", str(checkpoint_dir)]
    command += ["--worker-urls", proxy.url, "--port", str(port), *flags]
    with Child("router", command, log=CACHE / f"router-{port}.log") as child:
        child.wait_until(lambda: answers(f"http://{HOST}:{port}/health"), "starting", timeout_s=60)
        yield f"http://{HOST}:{port}"


@pytest.fixture(scope="session")
def router_url(recording_proxy: RecordingProxy, checkpoint_dir: Path) -> Iterator[str]:
    """A router without parsers."""
    flags = ("--tool-call-parser", "none", "--reasoning-parser", "none")
    with routing(recording_proxy, checkpoint_dir, *flags) as url:
        yield url


@pytest.fixture(scope="session")
def parsing_router_url(recording_proxy: RecordingProxy, checkpoint_dir: Path) -> Iterator[str]:
    """A router that reads tool calls and reasoning out of replies."""
    flags = ("--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3")
    with routing(recording_proxy, checkpoint_dir, *flags) as url:
        yield url


@pytest.fixture
def update_weights(router_url: str, checkpoint_dir: Path) -> Iterator[Callable[..., None]]:
    """Gives the worker other weights, through the router, under the version that is passed.

    The first weights come back after the test: others share the worker.
    """
    other_dir = checkpoint_dir.with_name("checkpoint-b")

    def update(version: str, model: Path = other_dir, *, flush: bool = True) -> None:
        fields = {"model_path": str(model), "weight_version": version, "flush_cache": flush}
        body = json.dumps(fields).encode()
        request = urllib.request.Request(
            f"{router_url}/update_weights_from_disk", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert json.load(reply)["success"]

    yield update
    update("default", checkpoint_dir)
