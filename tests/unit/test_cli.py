"""The command line: what users type, what they see, and how the process ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

import slime_router.__main__ as module_entry
from slime_router import __version__
from slime_router.cli.flags import read_config
from slime_router.cli.main import main
from slime_router.cli.processes.exit_codes import EXIT_INTERRUPTED
from slime_router.cli.run import _run, serving
from slime_router.config import Config
from slime_router.errors import SetupError
from slime_router.server.app import Gateway
from slime_router.server.signals import end_now
from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, checkpoint, tiny_worker, until, user
from tests.integration.scripted import events
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 100.0  # a process that imports transformers beside other work
STOP_TIMEOUT_S = 60.0
SURE_TO_WAIT_S = 1.0  # who does not wait ends in a fraction of it


def config(*flags: str) -> Config:
    return read_config(["--hf-checkpoint", "m", *flags])


def test_a_user_who_says_nothing_gets_the_defaults_of_the_config():
    assert config() == Config(hf_checkpoint="m")


@pytest.mark.parametrize("flag", ["--hf-checkpoint", "--model-path", "--tokenizer-path"])
def test_the_checkpoint_has_three_names(flag):
    assert read_config([flag, "m"]) == read_config([f"{flag}=m"]) == Config(hf_checkpoint="m")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--host 0.0.0.0 --port 1", {"host": "0.0.0.0", "port": 1}),
        ("--sglang-router-ip ::1 --sglang-router-port 65535", {"host": "::1", "port": 65535}),
        ("--host [::1]", {"host": "::1"}),
        ("--worker-urls http://a http://b", {"worker_urls": ("http://a", "http://b")}),
        ("--worker-urls", {"worker_urls": ()}),
        ("--history template", {"history": "template"}),
        ("--radix-tree-max-size 7", {"radix_tree_max_size": 7}),
        ("--middleware-paths a:b c.d", {"middleware_paths": ("a:b", "c.d")}),
        ("--slime-router-middleware-paths a:b", {"middleware_paths": ("a:b",)}),
        ("--chat-template t.jinja", {"chat_template": "t.jinja"}),
        ("--trust-remote-code", {"trust_remote_code": True}),
        ("--served-model-name x", {"served_model_name": "x"}),
        ("--capture off", {"capture": "off"}),
        ("--strict-model", {"strict_model": True}),
        ("--enable-multimodal", {"enable_multimodal": True}),
        ("--no-enable-multimodal", {"enable_multimodal": False}),
        ("--tool-call-parser none", {"tool_call_parser": "none"}),
        ("--sglang-tool-call-parser qwen25", {"tool_call_parser": "qwen25"}),
        ("--reasoning-parser auto", {}),
        ("--sglang-reasoning-parser qwen3", {"reasoning_parser": "qwen3"}),
        ("--reasoning-field both", {"reasoning_field": "both"}),
        ("--enable-openai-chat-completion", {"enable_openai_chat_completion": True}),
        ("--no-enable-openai-chat-completion", {"enable_openai_chat_completion": False}),
        ("--openai-chat-completion-path /c", {"openai_chat_completion_path": "/c"}),
        ("--openai-default-model x", {"openai_default_model": "x"}),
        ("--openai-max-concurrent-requests 7", {"openai_max_concurrent_requests": 7}),
        ("--max-concurrent-requests 7", {"max_concurrent_requests": 7}),
        ("--queue-size 0", {"queue_size": 0}),
        ("--queue-timeout-secs 1.5", {"queue_timeout_s": 1.5}),
        ("--client-timeout-secs 1.5", {"client_timeout_s": 1.5}),
        ("--sse-keepalive-secs 0", {"sse_keepalive_s": 0.0}),
        ("--strip-reasoning-newlines", {"strip_reasoning_newlines": True}),
        ("--request-timeout-secs 1.5", {"request_timeout_s": 1.5}),
        ("--slime-router-timeout 1.5", {"request_timeout_s": 1.5}),
        ("--sglang-router-request-timeout-secs 1.5", {"request_timeout_s": 1.5}),
        ("--max-payload-size 1000", {"max_payload_size": 1000}),
        ("--shutdown-grace-period-secs 0", {"shutdown_grace_period_s": 0.0}),
        ("--log-level WARNING", {"log_level": "warning"}),
        ("--verbose", {"log_level": "debug"}),
    ],
)
def test_each_flag_sets_its_setting_and_no_other(flags, expected):
    assert config(*flags.split()) == Config(hf_checkpoint="m", **expected)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prot", "1"], "unknown argument --prot: did you mean --port?"),
        (["--worker-url=x"], None),  # an abbreviation that only one flag has is that flag
        (["--workers-urls=x"], "unknown argument --workers-urls: did you mean --worker-urls?"),
        (["--qqqq"], "unknown argument --qqqq"),
        (["stray"], "unknown argument stray"),
        (["--host", ""], "argument --host/--sglang-router-ip: it is empty"),  # all addresses
        (["--journal", ""], "argument --journal: it is empty"),  # the working directory
        (["--worker-api-key", ""], "argument --worker-api-key: it is empty"),
        (["--port", "0"], "argument --port/--sglang-router-port: 0 is not in [1, 65535]"),
        (["--port", "x"], "argument --port/--sglang-router-port: invalid int value: 'x'"),
        (["--port"], "argument --port/--sglang-router-port: expected one argument"),
        (["--radix-tree-max-size", "0"], "0 is not in"),
        (["--request-timeout-secs", "nan"], "nan is not in"),
        (["--request-timeout-secs", "0"], "0 is not in"),
        (["--shutdown-grace-period-secs", "-1"], "-1 is not in"),
        (["--history", "all"], "invalid choice: 'all'"),
        (["--capture", "on"], "invalid choice: 'on'"),
        (["--openai-chat-completion-path", "v1"], "must begin with /"),
        (["--openai-chat-completion-path=--"], "expected one argument"),
        (["--host", "[]"], "argument --host/--sglang-router-ip: it is empty"),
        (["--host=--"], "argument --host/--sglang-router-ip: expected one argument"),
        (["--version-policy", "a\nb"], r"a\nb is not any"),
        (["--version-policy", "max-staleness:" + "9" * 5000], r"9 is not any, latest or max-"),
        (["--history", "x" * 100_000], "..."),
    ],
)
def test_a_wrong_argument_ends_with_2_and_one_line(flags, told, capsys):
    if told is None:
        assert config(*flags).worker_urls == ("x",)
        return
    with pytest.raises(SystemExit) as caught:
        config(*flags)
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("slime-router: error: ")
    assert told in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--hf-checkpoint is required"),
        (["--hf-checkpoint", ""], "--hf-checkpoint is required"),
        (["--hf-checkpont", "m"], "did you mean --hf-checkpoint?"),
        (["sesions"], "unknown argument sesions: did you mean the command sessions?"),
        (["--port", "30001", "top"], "unknown argument top: a command is the first argument"),
    ],
)
def test_without_a_checkpoint_the_user_is_told_which_flag_is_meant(flags, told, capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(flags)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--hf-checkpoint", "/no/such/checkpoint"], "/no/such/checkpoint"),
        (["--chat-template", "/no/template.jinja"], "/no/template.jinja"),
        (["--chat-template", "{% if %}"], "{% if %}"),
        (["--middleware-paths", "no.such:plugin"], "no.such:plugin"),
        (["--worker-urls", "localhost:30000"], "localhost:30000"),
        (["--openai-chat-completion-path", "/generate"], "/generate"),
        (["--openai-chat-completion-path", "/{"], "/{"),
        (["--openai-chat-completion-path", "/v1/{x:.*}"], "/v1/{x:.*}"),
        (["--openai-chat-completion-path", "/v1/chat?a=b"], "/v1/chat?a=b"),
        (["--openai-chat-completion-path", "/v1//chat"], "/v1//chat"),
        (["--openai-chat-completion-path", "/v1/../chat"], "/v1/../chat"),
        (["--openai-chat-completion-path", "/"], "chat cannot be served at '/'"),
        (["--host", "a..b"], "cannot listen on a..b"),
        (["--host", "a" * 64], "cannot listen on aaa"),
        (["--hf-checkpoint", "a" * 300], "File name too long"),
        (["--journal", "a" * 300], "cannot be opened"),
        (["--allowed-hosts", "http://router.example"], "http://router.example"),
        (["--allowed-hosts", "*.router.example"], "*.router.example"),
        (["--otlp-endpoint", "localhost:4318"], "localhost:4318"),
        (["--otlp-endpoint", "http://"], "http://"),
        (["--cors-allowed-origins", "https://*.example"], "https://*.example"),
        (["--cors-allowed-origins", "https://a:99999"], "https://a:99999"),
        (["--store-wait-replicas", "1"], "--store-wait-replicas needs --store"),
        (["--store", "redis+cluster://h:1", "--store-prefix", "a{b}"], "--store-prefix 'a{b}'"),
        (["--store", "redis+cluster://h:1", "--store-prefix", "a{"], "--store-prefix 'a{'"),
        (["--capture", "tokens", "--keep-top-logprobs", "1"], "--keep-top-logprobs"),
    ],
)
def test_what_is_missing_ends_with_1_and_one_line_that_names_it(flags, named, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:  # who goes on by mistake ends there
        port = str(taken.getsockname()[1])
        assert main(["--hf-checkpoint", str(checkpoint()), "--port", port, *flags]) == 1
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("slime-router: error: ")
    assert named in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "path",
    [
        "slime_router.generation.caching:RadixTreeMiddleware",
        "slime.router.middleware_hub.radix_tree_middleware.RadixTreeMiddleware",
    ],
)
def test_whoever_names_the_radix_tree_as_slimes_guide_does_gets_a_router(path, capsys, caplog):
    flags = ["--hf-checkpoint", str(checkpoint()), "--slime-router-middleware-paths", path]
    with socket.create_server(("127.0.0.1", 0)) as taken:  # it comes as far as listening
        assert main([*flags, "--port", str(taken.getsockname()[1])]) == 1
    _, line = capsys.readouterr()
    assert line.startswith("slime-router: error: cannot listen on")
    assert caplog.text.count(f"{path}: the radix tree is built in") == 1


def test_garbage_is_collected_while_it_serves_and_not_while_it_loads(monkeypatch):
    seen: list[object] = []

    class Collector:
        def __init__(self, is_calm: Callable[[], bool]) -> None:
            self._is_calm = is_calm

        @contextmanager
        def collecting(self) -> Iterator[None]:
            seen.append(("collects", self._is_calm()))
            try:
                yield
            finally:
                seen.append("ends")

    class Witness:
        def up(self, banner: str) -> None:
            seen.append(banner.partition("\n")[0])
            raise web.GracefulExit

        def failed(self, message: str) -> None:
            seen.append(message)

    def new_gateway() -> Gateway:
        seen.append(gc.isenabled())
        return Gateway(config("--hf-checkpoint", str(checkpoint()), "--port", str(free_port())))

    def no_gateway() -> Gateway:
        raise SetupError("gone")

    monkeypatch.setattr("slime_router.cli.run.GarbageCollector", Collector)
    assert serving(new_gateway, Witness()) == 0
    assert seen == [False, ("collects", True), "slime_router is up", "ends"]
    assert serving(no_gateway, Witness()) == 1
    assert gc.isenabled()


def test_what_serves_has_its_memory_put_into_huge_pages_once_it_is_loaded(monkeypatch):
    seen: list[object] = []
    made: list[Gateway] = []

    class Pages:
        async def gather(self) -> None:
            seen.append(made[0].encoder_choice.done())
            asyncio.get_running_loop().call_soon(end_now)

    class Witness:
        def up(self, banner: str) -> None:
            seen.append("up")

        def failed(self, message: str) -> None:
            seen.append(message)

    def new_gateway() -> Gateway:
        made.append(
            Gateway(config("--hf-checkpoint", str(checkpoint()), "--port", str(free_port())))
        )
        return made[0]

    monkeypatch.setattr("slime_router.cli.run.HugePages", Pages)
    assert serving(new_gateway, Witness()) == 0
    assert seen == ["up", True]


@pytest.mark.parametrize("asked", [["--version"], ["--version", "--port", "1"]])
def test_the_version_is_said(asked, capsys):
    with pytest.raises(SystemExit) as caught:
        main(asked)
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"slime-router {__version__}\n"


def test_all_entry_points_are_one():
    assert vars(module_entry)["main"] is main
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["slime-router"].partition(":")
    assert getattr(import_module(module), name) is module_entry.run


# In its own process


IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from slime_router.cli.main import main
sys.exit(main(["--hf-checkpoint", sys.argv[1], "--port", sys.argv[2]]))
"""


def started(
    *flags: str, port: int, path: Path = ROOT, api_key_file: str | None = None
) -> subprocess.Popen[str]:
    """The router as a process; `path` is where its plug-ins are found."""
    secrets = {} if api_key_file is None else {"SLIME_ROUTER_API_KEY_FILE": api_key_file}
    command = [sys.executable, "-m", "slime_router", "--hf-checkpoint", str(checkpoint())]
    return subprocess.Popen(
        [*command, "--port", str(port), *flags],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(path), **secrets},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell may have made the tests ignore Ctrl-C, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def read_banner(process: subprocess.Popen[str]) -> str:
    """The banner; its end is the line about the template."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("  template"):
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended: {process.stderr.read()}"  # type: ignore[union-attr]
    return "".join(lines)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what stands on stderr."""
    _, err = process.communicate(timeout=STOP_TIMEOUT_S)
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_sigterm_lets_a_running_reply_finish_and_takes_no_new_request():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with tiny_worker() as worker:
        process = started("--worker-urls", worker.url, "--served-model-name", "tiny-1", port=port)
        try:
            banner = await asyncio.to_thread(read_banner, process)
            assert url in banner
            assert "tiny-1" in banner
            assert worker.url in banner
            assert (
                "tools     qwen (reads the calls that the template prints; none is detected)"
                in banner
            )
            assert "reasoning deepseek-r1 (detected)" in banner
            assert "turns close with <|im_end|>" in banner
            worker.hold(after_tokens=2)
            body = {"messages": [user("hi")], "stream": True}
            async with aiohttp.ClientSession(url) as http, http.post(CHAT, json=body) as reply:
                begin = await reply.content.readany()
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_closed, port)
                with pytest.raises(subprocess.TimeoutExpired):  # it waits for the reply
                    await asyncio.to_thread(process.wait, SURE_TO_WAIT_S)
                worker.release()
                whole = events(begin + await reply.read())
            assert whole[-1] == "[DONE]"
            assert whole[-2]["choices"][0]["finish_reason"] == "stop"
            code, err = await asyncio.to_thread(ended, process)
        finally:
            process.kill()
            process.wait()
    assert code == 0
    assert "Traceback" not in err
    assert f"POST {CHAT} 200 " in err


@contextmanager
def hang_ups(disposition: signal.Handlers) -> Iterator[None]:
    """What a process that is started in the block does on SIGHUP, unless it says otherwise."""
    before = signal.signal(signal.SIGHUP, disposition)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_when_the_grace_period_is_over_a_stream_ends_with_an_error():
    port = free_port()
    async with tiny_worker() as worker:
        flags = ["--worker-urls", worker.url, "--shutdown-grace-period-secs", "0.5"]
        process = started(*flags, port=port)
        try:
            await asyncio.to_thread(read_banner, process)
            worker.hold(after_tokens=2)
            body = {"messages": [user("hi")], "stream": True}
            url = f"http://127.0.0.1:{port}"
            async with aiohttp.ClientSession(url) as http, http.post(CHAT, json=body) as reply:
                begin = await reply.content.readany()
                process.send_signal(signal.SIGTERM)
                whole = events(begin + await reply.read())
            code, err = await asyncio.to_thread(ended, process)
        finally:
            process.kill()
            process.wait()
    assert whole[-1] == "[DONE]"
    assert whole[-2]["error"]["code"] == "shutting_down"
    assert code == 0
    assert "Traceback" not in err
    assert "SIGTERM: the router ends" in err
    assert "grace period is over, 1 requests end" in err
    assert " 499 " not in err


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_a_hang_up_that_is_ignored_from_outside_stays_so():
    """As `nohup` has it."""
    port = free_port()
    with hang_ups(signal.SIG_IGN):
        process = started(port=port)
    try:
        await asyncio.to_thread(read_banner, process)
        process.send_signal(signal.SIGHUP)
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(url) as http, http.get("/health") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert (await asyncio.to_thread(ended, process))[0] == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("flags", [(), ("--processes", "2")], ids=["one", "two"])
async def test_signals_that_log_rotators_and_containers_send_drop_nobody(flags):
    port = free_port()
    async with tiny_worker() as worker:
        process = started(*flags, "--worker-urls", worker.url, port=port)
        try:
            await asyncio.to_thread(read_banner, process)
            worker.hold(after_tokens=0)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                asked = asyncio.create_task(http.post(CHAT, json={"messages": [user("hi")]}))
                await worker.wait_running(1)
                process.send_signal(signal.SIGUSR1)
                process.send_signal(signal.SIGUSR2)
                process.send_signal(signal.SIGQUIT)
                worker.release()
                async with await asked as answer:
                    assert answer.status == 200
            code, err = await asyncio.to_thread(ended, process)
        finally:
            process.kill()
            process.wait()
    assert code == 0
    assert "SIGUSR1: it means nothing" in err
    assert "SIGUSR2: it means nothing" in err
    assert "SIGQUIT: the router ends" in err


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_a_hang_up_reads_keys_and_workers_again(tmp_path):
    port = free_port()
    settings = tmp_path / "router.toml"
    secret = tmp_path / "key"
    settings.write_text("worker_urls = []\n")
    secret.write_text("one")
    async with tiny_worker() as worker:
        with hang_ups(signal.SIG_DFL):  # these tests may be run by `nohup`
            process = started("--config", str(settings), port=port, api_key_file=str(secret))
        try:
            await asyncio.to_thread(read_banner, process)
            settings.write_text(f'worker_urls = ["{worker.url}"]\nqueue_size = 7\n')
            secret.write_text("two")
            process.send_signal(signal.SIGHUP)
            url = f"http://127.0.0.1:{port}"
            async with aiohttp.ClientSession(url) as http:
                listed = await asyncio.wait_for(workers_of(http, key="two"), START_TIMEOUT_S)
            process.send_signal(signal.SIGTERM)
            code, err = await asyncio.to_thread(ended, process)
        finally:
            process.kill()
            process.wait()
    assert listed == [worker.url]
    assert code == 0
    assert "change only with a restart: --queue-size" in err


async def workers_of(http: aiohttp.ClientSession, *, key: str) -> list[str]:
    """The workers' URLs, once the key is one that the router knows."""
    while True:
        async with http.get("/list_workers", headers={"Authorization": f"Bearer {key}"}) as answer:
            if answer.status == 200:
                urls: list[str] = (await answer.json())["urls"]
                return urls
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_terminal_that_is_closed_ends_the_router(tmp_path):
    """As it does with everything that was started in it."""
    port = free_port()
    ours, theirs = os.openpty()
    log = tmp_path / "log"
    with hang_ups(signal.SIG_DFL), open(log, "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, str(checkpoint()), str(port)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            start_new_session=True,
        )
    try:
        os.close(theirs)
        read_banner(process)
        os.close(ours)
        ours = -1
        assert process.wait(STOP_TIMEOUT_S) == 0
    finally:
        process.kill()
        process.communicate()
        if ours >= 0:
            os.close(ours)
    assert "SIGHUP: the router ends" in log.read_text()


def wait_closed(port: int) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except ConnectionRefusedError:
            return
        except (TimeoutError, ConnectionResetError):
            pass  # the socket was closed between the two halves of the greeting
        time.sleep(0.01)
    raise TimeoutError("it still takes connections")


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_ctrl_c_ends_it_without_a_word_and_without_a_generation_left_behind():
    """No grace means none: what still runs is cancelled, and aborted on its worker."""
    port = free_port()
    flags = ("--shutdown-grace-period-secs", "0", "--log-level", "error")
    async with tiny_worker() as worker:
        process = started("--worker-urls", worker.url, *flags, port=port)
        try:
            await asyncio.to_thread(read_banner, process)
            worker.hold(after_tokens=1)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                await hold_a_reply(http, worker)  # and leave
                await until(lambda: len(worker.aborted) == 1)
                body = {"messages": [user("hi")], "stream": True}
                async with http.post(CHAT, json=body):
                    process.send_signal(signal.SIGINT)
                    result = await asyncio.to_thread(ended, process)
            assert result == (0, "")
            assert len(set(worker.aborted)) == 2
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once_what_the_first_lets_run(second):
    """Without a traceback, and with an abort for the worker."""
    port = free_port()
    flags = ("--shutdown-grace-period-secs", "3600", "--log-level", "error")
    async with tiny_worker() as worker:
        process = started("--worker-urls", worker.url, *flags, port=port)
        try:
            await asyncio.to_thread(read_banner, process)
            worker.hold(after_tokens=1)
            body = {"messages": [user("hi")], "stream": True}
            url = f"http://127.0.0.1:{port}"
            async with aiohttp.ClientSession(url) as http, http.post(CHAT, json=body):
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_closed, port)
                process.send_signal(second)
                result = await asyncio.to_thread(ended, process)
            assert result == (0, "")
            assert len(worker.aborted) == 1
        finally:
            process.kill()
            process.wait()


async def hold_a_reply(http: aiohttp.ClientSession, worker: FakeWorker) -> None:
    asked = asyncio.create_task(http.post(CHAT, json={"messages": [user("hi")]}))
    await worker.wait_running(1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_ctrl_c_while_it_loads_ends_it_without_a_traceback(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('loading', flush=True)\ntime.sleep(60)\n"
    )
    process = started("--middleware-paths", "slow:plugin", port=free_port(), path=tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == (EXIT_INTERRUPTED, "")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("given", [["--hf-checkpoint", "m"], ["check", "m"]])
def test_ctrl_c_while_its_code_is_loaded_ends_it_without_a_traceback(given, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("read_settings", "command"):
        monkeypatch.setattr(f"slime_router.cli.main.{name}", interrupted)
    assert main(given) == EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_port_in_use_is_told_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = started(port=port)
        code, err = ended_late(process)
    expected = f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert (code, err) == (1, f"slime-router: error: {expected}\n")


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_missing_checkpoint_is_told_in_one_line():
    process = started("--hf-checkpoint", "/no/such/checkpoint", port=1)
    expected = "slime-router: error: /no/such/checkpoint: no such directory\n"
    assert ended_late(process) == (1, expected)


def ended_late(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=START_TIMEOUT_S)
    return process.returncode, err


def test_what_a_plugin_started_cannot_end_the_router():
    """A SystemExit in a task or a callback ends its event loop, whoever waits for it."""
    noted: list[SystemExit] = []

    async def leave() -> None:
        raise SystemExit(3)

    async def serve_on() -> None:
        with pytest.raises(SystemExit):
            await asyncio.ensure_future(leave())
        asyncio.get_running_loop().call_soon(sys.exit, 4)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    _run(serve_on(), noted.append)
    assert [each.code for each in noted] == [3, 4]


def test_what_does_not_end_cannot_keep_the_router(monkeypatch):
    monkeypatch.setattr("slime_router.cli.run.FAREWELL_S", 0.01)
    tries: list[str] = []
    noted: list[SystemExit] = []

    async def stay() -> None:
        while len(tries) < 5:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                tries.append("cancelled")

    async def serve_on() -> None:
        task = asyncio.ensure_future(stay())
        await asyncio.sleep(0)
        assert not task.done()

    _run(serve_on(), noted.append)
    assert (tries, noted) == (["cancelled"], [])


def test_what_a_signal_asks_for_ends_the_loop():
    async def serve_on() -> None:
        asyncio.get_running_loop().call_soon(end_now)
        await asyncio.Event().wait()

    noted: list[SystemExit] = []
    _run(serve_on(), noted.append)
    assert noted == []
