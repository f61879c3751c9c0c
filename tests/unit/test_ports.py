"""Free ports: no two processes of one test run look at the same."""

from __future__ import annotations

import socket

import pytest

from tests.ports import HOST, free_port, own_ports


def test_each_process_of_a_run_has_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    taken: set[int] = set()
    for number in range(3):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{number}")
        ports = set(own_ports())
        assert len(ports) > 1000
        assert not ports & taken
        assert free_port() in ports
        taken |= ports
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT")
    assert taken == set(own_ports())


def test_a_port_can_be_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, free_port()))
