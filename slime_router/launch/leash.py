"""Holds a worker: runs a command that ends, with all that it started, when the router does.

    python leash.py COMMAND ...

The router holds the other end of standard input. A byte from there is SIGTERM for the worker's
process group, an "h" is SIGHUP, and the end of it is SIGKILL: the kernel closes a pipe however its
owner ended, where no `finally` runs. The exit code is the worker's, as a shell says it.

A separate program, without the rest of the package: it has to start at once and stay small.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PR_SET_PDEATHSIG = 1
STDIN = 0


def main() -> None:
    """Run the command until it ends; its process group does not outlive it."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:  # should the leash itself be killed
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    worker = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        process_group=0,  # else the leash would kill itself, and the exit code were lost
        preexec_fn=die_with_parent,
    )
    threading.Thread(target=_obey, args=(worker.pid,), daemon=True).start()
    code = worker.wait()
    _signal(worker.pid, signal.SIGKILL)  # a worker that crashed leaves processes on its GPU
    sys.exit(code if code >= 0 else 128 - code)


def _obey(group: int) -> None:
    while byte := os.read(STDIN, 1):
        _signal(group, signal.SIGHUP if byte == b"h" else signal.SIGTERM)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS forbids it for one that is dead
        os.killpg(group, number)


if __name__ == "__main__":
    main()
