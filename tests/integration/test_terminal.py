"""`top`, `sessions`, `doctor` and `completion`, run as a user runs them, beside a real router."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from slime_router import __version__
from slime_router.cli.commands import COMMANDS
from slime_router.cli.main import main
from slime_router.cli.terminal import sessions, top
from slime_router.cli.terminal.figures import count, percent, plain
from tests.integration.gateway import CHAT, OtherWords, checkpoint, served, tiny_worker, user
from tests.ports import free_port


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which every table fits, and no key of whoever runs the tests."""
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("URL", "API_KEY", "ADMIN_API_KEY"):
        monkeypatch.delenv(f"SLIME_ROUTER_{name}", raising=False)


async def run(*argv: str) -> int:
    """A command in a thread, while the router serves in this one."""
    return await asyncio.to_thread(main, list(argv))


def drawn(shown: Any, *, width: int = 160) -> str:
    """With colours, as a terminal gets it."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="256", width=width)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# top


async def test_top_once_shows_workers_totals_and_sessions(capsys):
    async with served() as (router, worker):
        url = str(router.http._base_url)
        await router.chat([user("Hi")], path=f"/sessions/ep-7{CHAT}", max_tokens=4)
        assert await run("top", "--once", "--url", url) == 0
        shown = capsys.readouterr().out
    assert worker.url in shown
    assert "exact" in shown
    assert "ep-7" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["requests", "1"] in lines
    assert ["sampled", "tokens", "4"] in lines
    assert "1 turn in 1 session" in shown
    assert "1 sessions" not in shown


async def test_top_as_json_has_all_figures(capsys):
    async with served() as (router, worker):
        assert await run("top", "--once", "--json", "--url", str(router.http._base_url)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workers"][0]["url"] == worker.url
    assert found["metrics"]["chat_completion"]["started"] == 0
    assert found["sessions"] == []


async def test_the_key_comes_from_the_environment_and_what_it_may_not_see_is_said(
    capsys, monkeypatch
):
    async with served(api_key="CLIENT-key", admin_api_key="ADMIN-key") as (router, worker):
        url = str(router.http._base_url)
        assert await run("top", "--once", "--url", url) == 1
        assert capsys.readouterr().err.startswith("slime-router top: error: A valid API key")
        monkeypatch.setenv("SLIME_ROUTER_API_KEY", "CLIENT-key")
        assert await run("top", "--once", "--url", url) == 0
        shown = capsys.readouterr().out
        assert "This route needs the admin's API key." in shown
        assert worker.url not in shown
        monkeypatch.setenv("SLIME_ROUTER_ADMIN_API_KEY", "ADMIN-key")
        assert await run("top", "--once", "--url", url) == 0
        assert worker.url in capsys.readouterr().out


def test_an_empty_file_of_a_key_is_one_line(capsys, monkeypatch, tmp_path):
    """The router would only say that a key is needed."""
    (tmp_path / "key").write_text("\n")
    monkeypatch.setenv("SLIME_ROUTER_ADMIN_API_KEY_FILE", str(tmp_path / "key"))
    assert main(["top", "--once"]) == 2
    said = f"SLIME_ROUTER_ADMIN_API_KEY_FILE: {tmp_path / 'key'} is empty"
    assert capsys.readouterr().err == f"slime-router top: error: {said}\n"


def test_rates_are_what_happened_between_two_looks():
    def look(at_s: float, started: int, output: int) -> top.Look:
        door = {"started": started, "output_tokens": output, "reused_tokens": 30 * started}
        none = dict.fromkeys((*door, "encoded_tokens", "failed"), 0)
        metrics = {
            "chat_completion": {**none, **door, "encoded_tokens": 10 * started},
            "generate": none,
            "router": {"total_in_flight": 3},
            "admission": {"waiting": 0},
            "trajectories": {"turns": 7, "sessions": 2},
            "weights": {"current": "v1"},
        }
        return top.Look(at_s, metrics, [], [])

    shown = drawn(top.screen(look(14.0, 30, 4000), look(10.0, 10, 0), "http://r"))
    assert "5/s" in shown
    assert "1,000/s" in shown
    assert "75.0%" in shown
    assert "No worker is registered." in shown


@pytest.mark.parametrize("argv", [["--url", "ftp://x"], ["--interval", "0"], ["--interval", "x"]])
def test_wrong_use_of_top_is_one_line(argv, capsys):
    try:
        code = main(["top", "--once", *argv])
    except SystemExit as exc:
        code = int(str(exc.code))
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_json_is_for_one_look(capsys):
    """It was ignored: a program that reads the pipe got a screen."""
    with pytest.raises(SystemExit):
        main(["top", "--json"])
    assert capsys.readouterr().err == "slime-router top: error: --json needs --once\n"


def test_an_interval_that_is_no_number_is_answered_with_what_it_may_be(capsys):
    with pytest.raises(SystemExit):
        main(["top", "--interval", "x"])
    assert capsys.readouterr().err.rstrip().endswith("--interval: must be from 0.2 to 3600")


@pytest.mark.parametrize(
    "argv", [["top", "--once"], ["sessions"], ["sessions", "ep-7"], ["export"]]
)
@pytest.mark.parametrize("body", [{}, [], None, "text"])
async def test_json_of_another_server_is_one_line(argv, body, capsys, tmp_path):
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        where = [str(tmp_path)] if argv == ["export"] else []
        assert await run(*argv, *where, "--url", url) == 1
    said = capsys.readouterr().err
    assert said == f"slime-router {argv[0]}: error: {url} does not answer as a router does.\n"


def test_a_router_that_is_not_there_is_one_line(capsys):
    for command in ("top", "sessions"):
        argv = [command, "--url", f"http://127.0.0.1:{free_port()}"]
        assert main([*argv, "--once"] if command == "top" else argv) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "Connection refused" in line
        assert "--url says where to look" in line


# sessions


async def test_sessions_are_listed_and_searched(capsys):
    async with served() as (router, _):
        url = str(router.http._base_url)
        for name in ("apple", "pear"):
            await router.chat([user("Hi")], path=f"/sessions/{name}{CHAT}", max_tokens=4)
        assert await run("sessions", "--url", url) == 0
        shown = capsys.readouterr().out
        assert shown.index("pear") < shown.index("apple"), "the newest first"
        assert await run("sessions", "--url", url, "--search", "app") == 0
        shown = capsys.readouterr().out
        assert "apple" in shown
        assert "pear" not in shown


async def test_a_session_is_shown_with_turns_rows_and_tokens(capsys):
    async with served() as (router, worker):
        url = str(router.http._base_url)
        for ids, sampled in (([70], [71, 72]), ([70, 71, 72, 73], [74]), ([70, 71, 72, 75], [76])):
            worker.script(sampled)
            await router.post("/sessions/ep-7/generate", {"input_ids": ids})
        assert await run("sessions", "ep-7", "--url", url) == 0
        shown = capsys.readouterr().out
        assert await run("sessions", "ep-7", "--url", url, "--json") == 0
        found = json.loads(capsys.readouterr().out)
    for word in ("start", "extension", "fork", "4 sampled = 4 trained"):
        assert word in shown
    assert found["tokens"]["ids"] == [70, 71, 72, 75, 76]
    for row in found["tree"]["rows"]:
        assert row["row_id"] in shown


async def test_long_turns_are_put_together_from_parts(capsys, monkeypatch):
    monkeypatch.setattr(sessions, "PART", 2)
    async with served() as (router, worker):
        spans = [{"version": "v1", "start": 0, "end": 4}]
        worker.script([71, 72, 0x80, 74], weight_versions=spans)
        await router.post("/sessions/s/generate", {"input_ids": [70]})
        worker.script([75], weight_versions=[{"version": "v2", "start": 0, "end": 1}])
        await router.post("/sessions/s/generate", {"input_ids": [70, 71, 72, 0x80, 74, 73]})
        url = str(router.http._base_url)
        assert await run("sessions", "s", "--json", "--url", url) == 0
        in_parts = json.loads(capsys.readouterr().out)["tokens"]
        monkeypatch.setattr(sessions, "PART", 100)
        assert await run("sessions", "s", "--json", "--url", url) == 0
        whole = json.loads(capsys.readouterr().out)["tokens"]
    for key in ("ids", "pieces", "bytes", "sources", "loss_mask", "logprobs"):
        assert in_parts[key] == whole[key], key
    for of, names in (("turn_of", "turns"), ("version_of", "versions")):
        named = [[t[names][i] if i >= 0 else None for i in t[of]] for t in (in_parts, whole)]
        assert named[0] == named[1]


def tokens(*pieces: str) -> dict[str, Any]:
    return {
        "pieces": list(pieces),
        "bytes": {},
        "source_names": ["template", "message", "sampled"],
        "sources": [0, 1, 2, 2][: len(pieces)],
        "loss_mask": [0, 0, 1, 0][: len(pieces)],
        "logprobs": [None, None, -0.01, None][: len(pieces)],
        "versions": ["v1"],
        "version_of": [-1, -1, 0, -1][: len(pieces)],
    }


def test_each_way_of_colouring_tells_tokens_apart():
    styles = {
        by: [sessions.style_of(tokens("a", "b", "c", "d"), index, by) for index in range(4)]
        for by in ("source", "mask", "logprob", "version")
    }
    assert len(set(styles["source"])) == 3
    assert len(set(styles["mask"])) == 3
    assert styles["logprob"][2] != styles["logprob"][3]
    assert styles["version"][2] != styles["version"][3]
    for by in styles:
        assert "\x1b[" in drawn(sessions.coloured(tokens("a", "b", "c", "d"), by))
        assert drawn(sessions.legend(tokens("a"), by)).strip()


def test_a_token_cannot_speak_to_the_terminal():
    shown = drawn(sessions.coloured(tokens("\x1b]0;owned\x07", "[red]x[/]", "a\n"), "source"))
    assert "\x1b]0" not in shown
    assert "\\x1b]0;owned\\x07" in shown
    assert "[red]x[/]" in shown
    assert plain("a\tb\n").plain == "a⇥b⏎"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (12345, "12,345"), (2.5, "2.50"), (1_234_567, "1.2M"), (3e9, "3.0G")],
)
def test_numbers_are_short(value, shown):
    assert count(value) == shown


def test_a_part_of_nothing_is_a_dash():
    assert (percent(1, 0), percent(1, 8)) == ("–", "12.5%")


# doctor


async def test_a_fit_worker_and_configuration_pass(capsys, tmp_path):
    async with tiny_worker() as worker:
        file = tmp_path / "router.toml"
        file.write_text(
            f'hf_checkpoint = "{checkpoint()}"\nworker_urls = ["{worker.url}"]\n', encoding="utf-8"
        )
        assert await run("doctor", "--config", str(file)) == 0
        shown = capsys.readouterr().out
    assert "all fits" in shown
    assert "the same tokens for 4 texts" in shown
    assert "2,048 tokens" in shown


async def test_a_worker_with_another_vocabulary_does_not(capsys):
    async with tiny_worker(tokenizer=OtherWords()) as worker:
        argv = ("doctor", "--workers", worker.url, "--hf-checkpoint", str(checkpoint()))
        assert await run(*argv, "--json") == 1
        found = json.loads(capsys.readouterr().out)
    kinds = {sign["what"]: sign["kind"] for sign in found[worker.url]}
    assert kinds["vocabulary"] == "fault"
    assert kinds["answers"] == "fine"


async def test_workers_alone_are_looked_at_without_a_checkpoint(capsys):
    async with tiny_worker() as worker:
        gone = f"http://127.0.0.1:{free_port()}"
        assert await run("doctor", "--workers", worker.url, gone, "--json") == 1
        found = json.loads(capsys.readouterr().out)
    assert found["router"] == []
    assert {sign["what"]: sign["kind"] for sign in found[worker.url]}["context"] == "fine"
    assert [sign["kind"] for sign in found[gone]] == ["fault"]


def test_what_the_router_would_refuse_is_said(capsys, tmp_path):
    file = tmp_path / "router.toml"
    file.write_text('hf_checkpoint = "/nowhere"\n', encoding="utf-8")
    assert main(["doctor", "--config", str(file)]) == 1
    assert "/nowhere" in capsys.readouterr().out


def test_a_doctor_without_a_patient_says_what_to_give(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["doctor"])
    assert exit.value.code == 2
    assert "--config FILE or --workers URL is required" in capsys.readouterr().err


# completion and help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_flags(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "hf-checkpoint", "interval", "vacuum"):
        assert word in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: slime-router {name}")
    assert "examples:" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_version_and_says_in_one_line_what_is_wrong(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"slime-router {__version__}\n"
    with pytest.raises(SystemExit) as exit:
        main([name, "--nonsense"])
    assert exit.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"slime-router {name}: error: ")


@pytest.mark.parametrize(
    "argv", [["\udcff"], ["--search", "\udcff"], ["x", "--turn=\udcff"], ["x", "--row=\udcff"]]
)
def test_names_that_are_not_utf8_are_refused_in_one_line(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["sessions", *argv])
    assert exit.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("it is not UTF-8")


def test_the_help_of_the_router_names_all_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in COMMANDS.values():
        assert f"slime-router {command.usage}" in shown
