"""Files that settings name: a wrong one never holds the router, and is refused with its reason."""

from __future__ import annotations

import errno
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from slime_router.auth.keys_file import read_keys_file
from slime_router.auth.tls import tls_context
from slime_router.configured_file import MAX_BYTES, configured_text
from slime_router.errors import SetupError


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(path := tmp_path / "pipe")
    return path


def test_a_pipe_that_nobody_writes_to_ends(pipe):
    with pytest.raises(OSError, match=re.escape("did not end within 0.01 s")):
        configured_text(pipe, pipe_timeout_s=0.01)


def test_a_pipe_that_stays_open_ends(pipe):
    kept = os.open(pipe, os.O_RDWR)
    os.write(kept, b"one: key")
    with pytest.raises(OSError, match=re.escape("did not end within 0.01 s")):
        configured_text(pipe, pipe_timeout_s=0.01)
    os.close(kept)


def test_a_pipe_without_end_is_refused_for_its_length(pipe):
    def write():
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 2**16)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(OSError, match="longer than") as caught:
        configured_text(pipe)
    writer.join()
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("text", ["one: a-long-enough-key\n", "", "x" * 100_000])
def test_what_comes_through_a_pipe_is_read_to_its_end(pipe, text):
    writer = threading.Thread(target=pipe.write_text, args=[text])
    writer.start()
    assert configured_text(pipe) == text
    writer.join()


def test_a_shell_may_substitute_a_process():
    reading, writing = os.pipe()
    os.write(writing, text := b"one: a-long-enough-key")
    os.close(writing)
    assert configured_text(Path(f"/dev/fd/{reading}")) == text.decode()
    os.close(reading)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/dev/zero", "neither a regular file nor a pipe"), ("/", "Is a directory")],
)
def test_what_is_no_file_keeps_the_router_from_starting(path, reason):
    with pytest.raises(SetupError, match=reason):
        read_keys_file(Path(path))


def test_a_file_beyond_the_limit_is_refused(tmp_path):
    with (path := tmp_path / "long").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(SetupError, match="longer than"):
        read_keys_file(path)


def test_a_certificate_is_a_regular_file(pipe, tmp_path):
    for path in (pipe, tmp_path, "/dev/zero"):
        with pytest.raises(SetupError, match=r"--tls-cert-path .*: it is not a regular file"):
            tls_context(str(path), str(path))
