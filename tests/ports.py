"""Free ports for processes that tests start."""

from __future__ import annotations

import socket
from pathlib import Path
from random import SystemRandom

HOST = "127.0.0.1"
TRIES = 1000


def free_port() -> int:
    """A port that nobody listens on now, outside the range that connections get theirs from.

    Else a connection could take the port of a server that is down, or connect to itself. It is
    random, and whoever seeds the tests' numbers does not make two processes find the same.
    """
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    begin = int(path.read_text(encoding="utf-8").split()[0]) if path.exists() else 32768
    for port in SystemRandom().sample(range(10_000, begin), k=TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
    raise OSError("no free port was found")
