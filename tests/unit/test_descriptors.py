"""The watch over file descriptors: a line when there are no more, and one when there are again."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from slime_router.edge.descriptors import MIN_CLIENTS, DescriptorWatch
from tests.sglang.child import ROOT


def test_it_says_once_that_none_are_left_and_once_that_there_are(caplog):
    failure: list[OSError] = []

    def probe() -> None:
        if failure:
            raise failure[0]

    watch = DescriptorWatch(64, probe)
    watch.look()
    assert not caplog.records
    failure.append(OSError(errno.EMFILE, "Too many open files"))
    for _ in range(5):
        watch.look()
    [line] = [record.getMessage() for record in caplog.records]
    assert "limit 64" in line
    assert "ulimit -n" in line
    assert watch.times_out == 1
    failure.clear()
    watch.look()
    watch.look()
    assert "again" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 2


def test_another_failure_is_not_hidden():
    def probe() -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        DescriptorWatch(None, probe).look()


def test_clients_get_half_of_what_is_left_and_a_pause_is_said_once(caplog):
    watch = DescriptorWatch(100_000)
    most = watch.most_clients()
    assert most is not None
    assert 40_000 < most < 50_000
    assert DescriptorWatch(8).most_clients() == MIN_CLIENTS
    assert DescriptorWatch(None).most_clients() is None
    watch.note_pause(most)
    watch.note_pause(most)
    assert (watch.pauses, watch.times_out) == (2, 0)
    [line] = caplog.messages
    assert f"{most} are connected" in line


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_the_limit_is_raised_and_its_end_is_noticed():
    """In its own process, whose limit is lowered first."""
    code = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 40))
from slime_router.edge.descriptors import DescriptorWatch, raise_limit
assert raise_limit() == 40
watch = DescriptorWatch(40)
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
watch.look()
assert watch.times_out == 1
os.close(taken.pop())
watch.look()
print(repr(watch))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "<DescriptorWatch well, limit 40>", done.stderr
