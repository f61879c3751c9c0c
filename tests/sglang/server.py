"""A real SGLang server on this machine's CPU.

    python -m tests.sglang.server prepare                   install it, build its models
    python -m tests.sglang.server run [--port P] [FLAG ...]   serve until Ctrl-C

Unknown flags go to SGLang as they are, for example `--incremental-streaming-output`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.ports import HOST, free_port
from tests.sglang.child import Child, ChildFailed, say
from tests.sglang.environment import CACHE, VENV_PYTHON, WORKER_ENV, checkpoint, prepare

START_TIMEOUT_S = 300.0  # about half a minute; several times that on a busy machine
PROBE_TIMEOUT_S = 5.0
FLAGS = (
    *("--device", "cpu"),
    *("--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch"),
    *("--grammar-backend", "xgrammar"),
    *("--dtype", "float32"),
    *("--tool-call-parser", "qwen25"),
    *("--max-total-tokens", "16384"),  # else the KV cache takes 19 GB
    *("--max-running-requests", "32"),
    *("--cuda-graph-backend-decode", "disabled"),
    *("--cuda-graph-backend-prefill", "disabled"),
    "--enable-return-routed-experts",  # to those who ask
    "--disable-overlap-schedule",
    "--skip-server-warmup",
    "--sleep-on-idle",  # else the scheduler keeps one core busy
)


class SGLangServer:
    """A worker for the length of a `with` block.

    `WORKER_URL` in the environment names one that runs already: it is used, and not stopped.
    `url` is the worker's base URL; `checkpoint` is the folder of its model.
    """

    def __init__(self, flags: Sequence[str] = (), *, port: int | None = None) -> None:
        self.flags = tuple(flags)
        self.port = port
        self.url = os.environ.get("WORKER_URL", "").rstrip("/")
        self.checkpoint = checkpoint()
        self._stack = ExitStack()
        self._child: Child | None = None

    def __enter__(self) -> SGLangServer:
        if self.url:
            self.checkpoint = _checkpoint_of(self.url)
            say(f"sglang: using {self.url}")
        else:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def kill(self) -> None:
        """SIGKILL, as a crash; `start` brings it back under its URL."""
        assert self._child is not None, "only one that was started here can be killed"
        self._child.kill()
        self._stack.close()

    def start(self) -> None:
        """Starts it; returns when it answers."""
        prepare()
        port = self.port = self.port or free_port()
        self.url = f"http://{HOST}:{port}"
        command = [str(VENV_PYTHON), "-m", "sglang.launch_server", *FLAGS, *self.flags]
        command += ["--model-path", str(self.checkpoint), "--host", HOST, "--port", str(port)]
        log = CACHE / f"server-{port}.log"
        with ExitStack() as stack:
            server = stack.enter_context(Child("sglang", command, log=log, env=WORKER_ENV))
            server.wait_until(
                lambda: answers(f"{self.url}/health"),
                f"starting on port {port}",
                timeout_s=START_TIMEOUT_S,
            )
            self._child = server
            self._stack = stack.pop_all()  # from here on the server lives until __exit__


def answers(url: str) -> bool:
    """Whether GET `url` gives a 200."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _checkpoint_of(url: str) -> Path:
    with urllib.request.urlopen(f"{url}/model_info", timeout=PROBE_TIMEOUT_S) as response:
        model_info: dict[str, Any] = json.load(response)
    directory = Path(model_info["model_path"])
    if not directory.is_dir():
        raise ChildFailed(f"WORKER_URL serves {directory}, which is not a folder on this machine")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A real SGLang server on a CPU. Other flags go to SGLang."
    )
    parser.add_argument("command", choices=["prepare", "run"])
    parser.add_argument("--port", type=int)
    args, flags = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks end
    try:
        if args.command == "prepare":
            prepare()
        else:
            _serve(flags, args.port)
    except ChildFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _serve(flags: Sequence[str], port: int | None) -> None:
    with SGLangServer(flags, port=port) as server:
        say(f"serving {server.checkpoint} at {server.url}; Ctrl-C ends it")
        while answers(f"{server.url}/health"):
            time.sleep(1)
        raise ChildFailed(f"{server.url} answers no more")


if __name__ == "__main__":
    main()
