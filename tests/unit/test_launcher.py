"""How workers are started: command lines, GPUs, ports, and what becomes of their output."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from pathlib import Path

import pytest

from slime_router.cli.flags import read_config
from slime_router.cli.processes.launched import ParentsWorkers
from slime_router.errors import SetupError
from slime_router.launch import command as commands
from slime_router.launch import machine
from slime_router.launch.command import gpu_slices, gpus_per_worker, sglang_commands
from slime_router.launch.output import MAX_LINE_LEN, TAIL_LINES, Output
from slime_router.launch.process import how_it_ended
from slime_router.siblings.place import LaunchedFile, LaunchedWorker, Place


def test_a_file_that_is_written_twice_in_a_tick_of_the_clock_has_changed_twice(tmp_path):
    file, known = LaunchedFile(tmp_path), set()
    for lives in (1, 2):
        file.write({"http://a:1": LaunchedWorker(is_up=True, lives=lives)})
        os.utime(tmp_path / "launched.json", ns=(7, 7))
        known |= {file.version}
        assert file.read()["http://a:1"].lives == lives
    assert len(known) == 2


def test_which_workers_are_up_is_written_again_after_a_full_disk(tmp_path, monkeypatch, caplog):
    def write_half(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text[:5].encode(encoding))
        raise OSError(errno.ENOSPC, "No space left on device")

    file = LaunchedFile(tmp_path)
    workers = ParentsWorkers(file, None)
    workers.note_up("http://a:1")
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", write_half)
        workers.note_down("http://a:1")
        workers.note_up("http://b:1")
        workers.catch_up()
    assert file.read() == {"http://a:1": LaunchedWorker(is_up=True, lives=1)}
    assert [path.name for path in tmp_path.iterdir()] == ["launched.json"], "no draft is left"
    assert caplog.text.count("No space left on device") == 1
    workers.catch_up()
    assert {url: worker.is_up for url, worker in file.read().items()} == {
        "http://a:1": False,
        "http://b:1": True,
    }


def test_a_process_on_a_full_disk_says_so(tmp_path, monkeypatch, caplog):
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = Place(tmp_path, 1, 2)
    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(SetupError, match=f"cannot write to {tmp_path}: No space left on device"):
        place.up("it serves")
    place.failed("it cannot listen")
    assert "it cannot listen" in caplog.text, "its parent cannot say it"


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def python(tmp_path):
    """A Python that has everything."""
    return program(tmp_path / "python", "exit 0")


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """`gpus(n)`: a machine with so many."""

    def have(number: int) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        names = "; ".join(f"echo 'GPU {i}: NVIDIA H200 (UUID: GPU-{i})'" for i in range(number))
        program(tmp_path / "nvidia-smi", names or "exit 9")
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return have


# The command line


def test_what_stands_behind_two_dashes_goes_to_the_workers_as_it_is():
    flags = ["--launch-workers", "2", "--port", "7", "--", "--tp", "1", "--port-is-no", "--", "x"]
    config = read_config(["--hf-checkpoint", "m", *flags])
    assert (config.launch_workers, config.port) == (2, 7)
    assert config.worker_flags == ("--tp", "1", "--port-is-no", "--", "x")


def test_the_flags_of_launched_workers_are_settings():
    flags = ["--worker-python", "p", "--worker-log-dir", "d", "--worker-startup-timeout-secs", "3"]
    config = read_config(["--hf-checkpoint", "m", *flags])
    assert (config.worker_python, config.worker_log_dir) == ("p", "d")
    assert config.worker_startup_timeout_s == 3.0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--", "--tp", "1"], "--launch-workers sets how many"),
        (["--launch-workers", "1", "--", "--port", "5"], "--port after --: the router chooses"),
        (["--launch-workers", "1", "--", "--host=::"], "--host=:: after --: the router chooses"),
        (["--launch-workers", "0"], "0 is not in"),
    ],
)
def test_flags_that_cannot_be_meant_so_are_refused(flags, told, capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(["--hf-checkpoint", "m", *flags])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_a_worker_serves_the_checkpoint_and_the_user_has_the_last_word(python, gpus):
    gpus(0)
    [command] = sglang_commands(
        1, "ckpt", ["--model-path", "other"], python=python, trust_remote_code=True
    )
    assert command.at(5) == (
        *(python, "-m", "sglang.launch_server", "--model-path", "ckpt", "--trust-remote-code"),
        *("--model-path", "other", "--host", "127.0.0.1", "--port", "5"),
    )
    assert command.env == {}


@pytest.mark.parametrize(
    ("flags", "key", "added"),
    [
        ([], "ours", ("--api-key=ours",)),
        (["--api-key", "theirs"], "theirs", ()),
        (["--api-key=first", "--api-key=theirs"], "theirs", ()),
        (["--api-key"], "ours", ("--api-key=ours",)),
    ],
)
def test_a_worker_has_the_routers_key_unless_the_user_gave_another(flags, key, added, python, gpus):
    gpus(0)
    [command] = sglang_commands(1, "ckpt", flags, python=python, api_key="ours")
    assert command.api_key == key
    assert command.at(5)[5:-4] == (*flags, *added)
    assert key not in repr(command)
    [command] = sglang_commands(1, "ckpt", [], python=python)
    assert command.api_key is None
    assert not any("api-key" in arg for arg in command.at(5))


def test_who_launches_no_worker_needs_no_sglang():
    assert sglang_commands(0, "ckpt", [], python="/no/such/python") == ()


def test_a_python_without_sglang_is_told_in_one_line_with_what_helps(tmp_path):
    python = program(tmp_path / "python", "exit 1")
    with pytest.raises(SetupError, match=r"no SGLang with torch.*slime-router\[sglang\]") as caught:
        sglang_commands(1, "ckpt", [], python=python)
    assert "\n" not in caught.value.message


def test_a_python_that_is_not_there_is_named():
    with pytest.raises(SetupError, match="/no/such/python: No such file"):
        sglang_commands(1, "ckpt", [], python="/no/such/python")


# GPUs


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", 1),
        ("--tp 4", 4),
        ("--tp-size=2 --mem-fraction-static 0.8", 2),
        ("--tensor-parallel-size 2 --pp-size 2", 4),
        ("--tp 2 --dp 2", 4),
        ("--tp 8 --dp 8 --enable-dp-attention", 8),
        ("--tp 1 --tp 2", 2),  # argparse takes the last
        ("--tp", 1),
        ("--tp x", 1),
    ],
)
def test_a_worker_takes_as_many_gpus_as_its_flags_say(flags, expected):
    assert gpus_per_worker(flags.split()) == expected


def test_gpus_are_dealt_out_without_overlap_and_shared_only_where_they_must_be():
    assert gpu_slices("0123", 2, 2) == ["0,1", "2,3"]
    assert gpu_slices("012", 2, 2) == ["0,1", "0,1"]
    assert gpu_slices("01", 1, 3) == ["0", "1", "0"]
    assert gpu_slices("0", 1, 2) == gpu_slices("", 4, 2) == [None, None]
    with pytest.raises(SetupError, match="needs 4 GPUs, there are 2"):
        gpu_slices("01", 4, 1)


def test_each_worker_sees_its_own_gpus(python, gpus):
    gpus(4)
    found = sglang_commands(2, "m", ["--tp", "2"], python=python)
    assert [c.env["CUDA_VISIBLE_DEVICES"] for c in found] == ["0,1", "2,3"]


@pytest.mark.parametrize("flag", ["--base-gpu-id=2", "--device=cpu", "--nnodes=2"])
def test_who_chooses_the_devices_is_not_overruled(flag, python, gpus):
    gpus(4)
    assert [c.env for c in sglang_commands(2, "m", [flag], python=python)] == [{}, {}]


def test_the_gpus_that_the_user_left_visible_are_all_there_are(monkeypatch, gpus):
    gpus(3)
    assert machine.visible_gpus() == ("0", "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-7")
    assert machine.visible_gpus() == ("5", "GPU-7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.visible_gpus() == ()


def test_sharing_gpus_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        commands.gpu_slices("01", 2, 2)
    assert "2 workers of 2 GPUs share 2 GPUs" in caplog.text


def test_a_free_port_is_one_that_nobody_has(monkeypatch):
    monkeypatch.setattr(machine, "PORT_TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as used, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        two = (used.getsockname()[1], other.getsockname()[1])
        monkeypatch.setattr(machine, "PORTS", two)
        with pytest.raises(OSError, match="no free port"):
            machine.free_port()
        other.close()
        assert machine.free_port() == two[1]
        with pytest.raises(OSError, match="no free port"):
            machine.free_port(taken={two[1]})


# What they print


def test_the_last_lines_are_kept_however_they_come(caplog):
    output = Output("worker 1", None)
    output.feed(b"old\n" * TAIL_LINES + b"fir")
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="slime_router"):
        output.feed(b"st\n\n10%\r20%\r\nl\xc3")
        output.feed(b"\xa4st \xff")
        output.end()
    assert output.tail[-4:] == ("first", "10%", "20%", "läst \ufffd")
    assert len(output.tail) == TAIL_LINES
    told = ["first", "10%", "20%", "läst \ufffd"]
    assert caplog.messages == [f"worker 1 | {line}" for line in told]
    output.begin()
    assert output.tail == ()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_workers_key_is_not_in_what_is_kept_of_its_output(size, tmp_path):
    """SGLang prints all of its arguments."""
    output = Output("worker 1", tmp_path, secret="kkey")
    said = b"api_key='kkkey', key\nkkkk\nkke"
    for start in range(0, len(said), size):
        output.feed(said[start : start + size])
    output.end()
    output.close()
    assert output.tail == ("api_key='k***', key", "kkkk", "kke")
    assert (tmp_path / "worker-1.log").read_bytes() == b"api_key='k***', key\nkkkk\nkke"


def test_a_line_without_an_end_does_not_fill_the_memory():
    output = Output("worker 1", None)
    for _ in range(100):
        output.feed(b"x" * MAX_LINE_LEN)
    output.end()
    assert len(output.tail) == TAIL_LINES
    assert set(map(len, output.tail)) == {MAX_LINE_LEN}


def test_a_long_line_that_ends_is_several_lines_too():
    output = Output("worker 1", None)
    output.feed(b"x" * (2 * MAX_LINE_LEN + 1) + b"\nnext\n\n")
    assert [*map(len, output.tail)] == [MAX_LINE_LEN, MAX_LINE_LEN, 1, 4]


def test_with_a_log_dir_each_worker_has_a_file_that_goes_on(tmp_path, caplog):
    for text in (b"one\npar", b"two\n"):
        output = Output("worker 1", tmp_path / "logs")
        with caplog.at_level(logging.DEBUG, logger="slime_router"):
            output.feed(text)
        output.close()
    assert (tmp_path / "logs" / "worker-1.log").read_bytes() == b"one\npartwo\n"
    assert output.tail == ("two",)
    assert caplog.messages == []


def test_a_log_dir_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"--worker-log-dir: .*file"):
        Output("worker 1", tmp_path / "file")


def test_a_full_disk_does_not_stop_the_worker(tmp_path, caplog):
    output = Output("worker 1", tmp_path)
    assert output._file is not None
    output._file.close()
    output._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 - the output closes it
    with caplog.at_level(logging.DEBUG, logger="slime_router"):
        output.feed(b"line\n")
        output.feed(b"next\n")
    assert "its output goes to this log now" in caplog.messages[0]
    assert caplog.messages[-1] == "worker 1 | next"
    assert output.tail == ("line", "next")


def test_an_exit_code_is_told_in_words():
    assert how_it_ended(137) == "was ended by SIGKILL"
    assert how_it_ended(1) == "ended with exit code 1"
    assert how_it_ended(128) == "ended with exit code 128"
