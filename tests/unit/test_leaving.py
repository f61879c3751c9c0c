"""How a process ends: by its code, at once, whatever a thread still loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LEAVE = """\
import logging, sys, threading
from slime_router.cli.processes.exit_codes import leave
logging.basicConfig(stream=sys.stderr, format="%(message)s")
threading.Thread(target=threading.Event().wait, daemon={daemon}).start()
print("out")
logging.error("err")
leave(3)
"""


@pytest.mark.parametrize("daemon", [True, False])
def test_no_thread_holds_up_the_end(daemon):
    command = [sys.executable, "-c", _LEAVE.format(daemon=daemon)]
    ended = subprocess.run(command, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")
