"""Runs a command that dies with the process that started it, however that one ends.

    python leash.py PARENT_PID COMMAND ...

A `finally` does not run when a parent is killed; the kernel's parent-death signal does.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent_pid):
        sys.exit("the parent is gone")  # it died before the leash was on
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
