"""Several Redis servers for tests: a cluster, and a primary with a replica and a sentinel."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import redis

from tests.ports import HOST, free_port
from tests.redis_server import START_TIMEOUT_S, RedisServer

SLOTS = 16384
NODES = 3
NAME = "primary"


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Asks again and again; what cannot be asked yet does not hold. Blocking."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def client(server: RedisServer) -> Any:
    """Of this server alone."""
    return redis.Redis(host=HOST, port=server.port, decode_responses=True, socket_timeout=5.0)


class RedisCluster:
    """Three primaries, each with a third of the slots."""

    def __init__(self, directory: Path) -> None:
        self.nodes = []
        self._bus_ports = []
        for number in range(NODES):
            bus_port = free_port()
            flags = ("--cluster-enabled", "yes", "--cluster-port", str(bus_port))
            self.nodes.append(RedisServer(directory / str(number), *flags))
            self._bus_ports.append(bus_port)

    @property
    def url(self) -> str:
        """As `--store` takes it."""
        return f"redis+cluster://{HOST}:{self.nodes[0].port}"

    def start(self) -> None:
        """Returns when all slots are served; blocking."""
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes):
            node.wait_ready()
            first, end = SLOTS * number // NODES, SLOTS * (number + 1) // NODES
            client(node).execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            client(self.nodes[0]).execute_command("CLUSTER MEET", HOST, node.port, bus_port)
        for node in self.nodes:
            wait_until(partial(self._is_whole, node), "a cluster")

    def _is_whole(self, node: RedisServer) -> bool:
        info = client(node).execute_command("CLUSTER INFO")
        told = info if isinstance(info, dict) else dict(x.split(":") for x in info.split())
        is_ok: bool = told["cluster_state"] == "ok"
        return is_ok and told["cluster_known_nodes"] == str(NODES)

    def kill(self) -> None:
        """SIGKILL to all."""
        for node in self.nodes:
            node.kill()


class WatchedRedis:
    """A primary and a replica, and a sentinel that makes one of the other where it dies."""

    def __init__(self, directory: Path) -> None:
        self.servers = [RedisServer(directory / "0")]
        follow = ("--replicaof", f"{HOST} {self.servers[0].port}")
        self.servers.append(RedisServer(directory / "1", *follow))
        self.sentinel = RedisServer(directory / "sentinel", sentinel="sentinel.conf")
        config = (
            f"sentinel monitor {NAME} {HOST} {self.servers[0].port} 1\n"
            f"sentinel down-after-milliseconds {NAME} 300\n"
            f"sentinel failover-timeout {NAME} 2000\n"
        )
        (directory / "sentinel" / "sentinel.conf").write_text(config, encoding="utf-8")

    @property
    def url(self) -> str:
        """As `--store` takes it."""
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{NAME}"

    def start(self) -> None:
        """Returns when the replica follows, and the sentinel knows both; blocking."""
        for server in self.servers:
            server.start()
            server.wait_ready()
        wait_until(lambda: self._role(self.servers[1])[3] == "connected", "a replica")
        self.sentinel.start()
        self.sentinel.wait_ready()
        wait_until(lambda: self._told()["num-slaves"] == 1, "a sentinel that knows the replica")

    def primary(self) -> RedisServer:
        """The one that the sentinel names."""
        port = self._told()["port"]
        return next(each for each in self.servers if each.port == port)

    def fail_over(self) -> None:
        """Kills the primary; returns when the other one is the primary. Blocking."""
        before = self.primary()
        [other] = [each for each in self.servers if each is not before]
        before.kill()
        wait_until(lambda: self.primary() is other, "a failover")
        wait_until(lambda: self._role(other)[0] == "master", "a new primary")

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = client(self.sentinel).sentinel_master(NAME)
        return told

    def _role(self, server: RedisServer) -> list[Any]:
        role: list[Any] = client(server).role()
        return role

    def kill(self) -> None:
        """SIGKILL to all."""
        for server in (*self.servers, self.sentinel):
            server.kill()
