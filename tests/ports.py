"""Free ports for processes that tests start."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from random import SystemRandom

HOST = "127.0.0.1"
TRIES = 1000
FIRST = 10_000


def free_port() -> int:
    """A port that nobody listens on now, outside the range that connections get theirs from.

    Else a connection could take the port of a server that is down, or connect to itself. It is
    random, and whoever seeds the tests' numbers does not make two processes find the same. Between
    the look and the server's start nobody else of this run takes it: each process of pytest-xdist
    has ports of its own.
    """
    ports = own_ports()
    for port in SystemRandom().sample(ports, k=min(TRIES, len(ports))):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
    raise OSError("no free port was found")


def own_ports() -> range:
    """Those of this process: every n-th below the first that a connection may get."""
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(path.read_text(encoding="utf-8").split()[0]) if path.exists() else 32768
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return range(FIRST + number, end, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
