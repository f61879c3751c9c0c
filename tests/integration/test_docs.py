"""The documentation, held against the code: its blocks are run, its tables and links are read."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest

from slime_router import errors
from slime_router.api.request import SESSION_HEADERS
from slime_router.api.sessions.row_formats import FORMATS
from slime_router.auth.access import IN_SESSION
from slime_router.auth.keys import SESSION_KEY_PREFIX
from slime_router.cli.flags import parser
from slime_router.config import Config
from slime_router.conformance.kit import ADAPTERS
from slime_router.doctor.causes import Cause
from slime_router.errors import RouterError
from slime_router.generation.pipeline import Pipeline
from slime_router.server.app import Gateway
from slime_router.trajectory.measures.distribution import no_masks
from slime_router.trajectory.measures.top_logprobs import of_nested
from slime_router.trajectory.routed_experts import RoutedExperts
from slime_router.trajectory.session import Session, SessionSpec
from tests.integration.gateway import CHAT, Served, checkpoint, served, user
from tests.turns import Book

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "README.zh.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
EXAMPLE_URL = "localhost:30001"
METHODS = "(?:GET|HEAD|POST|PUT|PATCH|DELETE)"
NO_DEFAULT = {
    "hf_checkpoint",
    "chat_template",
    "served_model_name",
    "openai_default_model",
    "version_policy",
}
WORDS = {"none": None, "on": True, "off": False}


class Block(NamedTuple):
    language: str
    mark: str
    text: str


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_each_row_of_a_table_stands_below_its_head(name):
    """After a blank line it would be shown as text, with its bars."""
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.DOTALL | re.MULTILINE)
    lines = ["", *text.splitlines(), ""]
    lost = [
        line
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False)
        if line.startswith("|") and not before and not re.fullmatch(r"[|:\- ]+", after)
    ]
    assert lost == []


def test_the_changelog_says_a_thing_once():
    """A merge of two changes to it can bring back what one of them moved or merged."""
    begins = [line[:40] for line in page("CHANGELOG.md").splitlines() if line.startswith("- ")]
    assert sorted({begin for begin in begins if begins.count(begin) > 1}) == []


def blocks(name: str) -> list[Block]:
    fences = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)
    return [Block(language, mark.strip(), text) for language, mark, text in fences]


def section(name: str, title: str) -> str:
    _, _, rest = page(name).partition(f"\n## {title}\n")
    assert rest, f"{name} has a section {title!r}"
    return rest.partition("\n## ")[0]


def table(text: str, head: str) -> list[list[str]]:
    """The cells of the tables whose first heading is `head`, without the heading."""
    rows: list[list[str]] = []
    is_inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            is_inside = False
        elif cells[0].rstrip(" |") == head:
            is_inside = True
        elif is_inside and not line.startswith("|---"):
            rows.append(cells)
    assert rows, f"there is a table with the heading {head!r}"
    return rows


def names(cell: str) -> list[str]:
    """What stands in backticks, word by word."""
    return [word for code in re.findall(r"`([^`]+)`", cell) for word in code.split()]


def first_names(text: str, head: str) -> set[str]:
    return {name for row in table(text, head) for name in names(row[0])}


# What the pages show is run


class Reader:
    """Does what a page says, in its own directory, against a running router."""

    def __init__(self, router: Served, directory: Path) -> None:
        self._url = str(router.http._base_url).rstrip("/")
        self._directory = directory

    async def run(self, block: Block) -> str:
        """What a block prints; it must end as it says."""
        program = sys.executable if block.language == "python" else "sh"
        text = block.text.replace(f"http://{EXAMPLE_URL}", self._url)
        text = text.replace(EXAMPLE_URL, self._url.removeprefix("http://"))
        text = text.replace(".venv/bin/python", sys.executable)
        text = text.replace("CHECKPOINT", str(checkpoint())).replace("curl ", "curl -sSf ")
        process = await asyncio.create_subprocess_exec(
            *(program, *(() if block.language == "python" else ("-e",)), "-c", text),
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, complaints = await asyncio.wait_for(process.communicate(), 100)
        finally:
            if process.returncode is None:
                process.kill()
        expected = int(block.mark.partition("exit=")[2] or 0)
        assert process.returncode == expected, f"{block.text}\n{complaints.decode()}"
        return output.decode()


def check_shape(shown: Any, said: Any, path: str = "") -> None:
    """Objects have the same keys in the same order; of lists the first entries are compared.

    What a page shows of an object may be less than there is, where the page has shown all before:
    `stats`.
    """
    if isinstance(shown, dict):
        assert isinstance(said, dict), path
        expected = {key: None for key in said if not path.endswith(".stats") or key in shown}
        assert list(shown) == list(expected), f"{path} has other keys"
        for key in shown:
            check_shape(shown[key], said[key], f"{path}.{key}")
    elif isinstance(shown, list) and shown and said:
        check_shape(shown[0], said[0], f"{path}[0]")
    elif shown and said:
        assert type(shown) is type(said), path


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_what_the_trajectories_page_shows_can_be_done_and_replies_as_it_says(tmp_path):
    """From top to bottom, as a reader goes; `json reply` is what the block before it printed."""
    counts = {"sh": 0, "python": 0, "json": 0}
    async with served() as (router, _):
        reader, output = Reader(router, tmp_path), ""
        for block in blocks("docs/trajectories.md"):
            if block.mark.startswith("runnable"):
                output = await reader.run(block)
            elif block.mark == "reply":
                check_shape(json.loads(block.text), last_object(output))
            else:
                continue
            counts[block.language] += 1
    assert counts == {"sh": 5, "python": 3, "json": 3}


async def test_the_lines_for_trainers_run(tmp_path):
    """All that need no framework; their replies have what the frameworks read."""
    async with served() as (router, _):
        reader = Reader(router, tmp_path)
        said = [
            last_object(await reader.run(block))
            for block in blocks("docs/trainers.md")
            if block.mark == "runnable"
        ]
    verifiers, atropos, strands, uni_agent, skyrl, areal, miles = said
    for export in (verifiers, strands, miles):
        assert export["stats"]["trained_tokens"] > 0
        assert export["rows"][0]["turns"][0]["kind"] == "main"
    for item in (atropos, areal):
        assert item["meta_info"]["output_token_logprobs"]
    choice = uni_agent["choices"][0]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"])
    assert [choice["index"] for choice in skyrl["choices"]] == [0, 1]
    assert skyrl["prompt_logprobs"][0] is None
    assert list(skyrl["prompt_logprobs"][1]) == ["41"]


def test_the_cases_and_adapters_of_the_conformance_kit_are_all_told():
    cases = [name.strip("`") for name, *_ in table(page("docs/conformance.md"), "case")]
    assert cases == ["drift", "twin", "mask", "kill", "train once"]
    assert first_names(page("docs/conformance.md"), "`--adapter`") == set(ADAPTERS)


def last_object(output: str) -> Any:
    """The last of the JSON values that stand one after another."""
    decoder, value, at = json.JSONDecoder(), None, 0
    while at < len(output):
        value, at = decoder.raw_decode(output, at)
        at += len(output[at:]) - len(output[at:].lstrip())
    return value


class Drawn(NamedTuple):
    turn: str
    prompt: str
    sampled: str


def picture() -> tuple[list[Drawn], list[tuple[str, list[int]]]]:
    """The turns of the drawing with their whole prompts, and its rows: tokens and masks."""
    [drawing] = [b.text for b in blocks("docs/trajectories.md") if b.language == "text"]
    turns: list[Drawn] = []
    above: list[tuple[int, str]] = []  # where a turn stands, and what it holds
    for line in drawing.splitlines():
        found = re.search(r"(t\d)  (\w+) → (\w+)", line)
        if found is None:
            continue
        while above and above[-1][0] >= found.start():
            above.pop()
        prompt = (above[-1][1] if above else "") + found[2]
        turns.append(Drawn(found[1], prompt, found[3]))
        above.append((found.start(), prompt + found[3]))
    rows = re.findall(r"(\w+) +([01]{2,})$", drawing, re.MULTILINE)
    return turns, [(tokens, [int(mask) for mask in masks]) for tokens, masks in rows]


async def test_the_drawing_of_a_session_becomes_the_rows_beside_it():
    """Each letter is a token; the agent sends ids, the worker samples what is drawn."""
    turns, drawn_rows = picture()
    assert [turn.turn for turn in turns] == [f"t{number}" for number in range(1, 10)]
    asked = [[turn] for turn in turns if turn.turn not in ("t6", "t7")]
    asked.insert(5, turns[5:7])  # n = 2
    async with served() as (router, worker):
        for samples in asked:
            for turn in samples:
                worker.script([ord(token) for token in turn.sampled])
            ids = [ord(token) for token in samples[0].prompt]
            body = {"input_ids": ids, "sampling_params": {"n": len(samples)}}
            status, reply = await router.post("/sessions/drawn/generate", json=body)
            assert status == 200, reply
        _, export = await router.get("/sessions/drawn/rows")
    rows = [("".join(map(chr, row["tokens"])), row["loss_mask"]) for row in export["rows"]]
    assert sorted(rows) == sorted(drawn_rows)
    [stats] = [b for b in blocks("docs/trajectories.md") if (b.language, b.mark) == ("json", "")]
    shown = json.loads(stats.text)
    assert shown == {key: export["stats"][key] for key in shown}


# What the pages list is all there is


def documented_routes() -> set[tuple[str, str]]:
    spans = re.findall(rf"`((?:{METHODS} )+)(/[^`]*)`", page("docs/api.md"))
    return {
        (method, re.sub(r"\{[^}]*\}", "{}", path.partition("?")[0]))
        for methods, path in spans
        for method in methods.split()
    }


def real_routes(gateway: Gateway) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Method and path of every route, and of those below the path of a session."""
    anywhere, in_session = set(), set()
    for route in gateway.app().router.routes():
        assert route.resource is not None
        canonical = route.resource.canonical
        if route.method in ("*", "HEAD"):
            continue  # the way to a worker; what GET routes answer too
        path = re.sub(r"\{[^}]*\}", "{}", canonical)
        anywhere.add((route.method, path))
        if canonical.startswith(f"{IN_SESSION}/"):
            in_session.add((route.method, path.removeprefix("/sessions/{}")))
    return anywhere, in_session


async def test_the_routes_of_the_api_page_are_those_of_the_router():
    """Those that a session's path only stands before are listed once."""
    gateway = Gateway(Config(hf_checkpoint=str(checkpoint())))
    real, in_session = real_routes(gateway)
    documented = documented_routes()
    assert documented - real == set()
    repeated = {(m, f"/sessions/{{}}{path}") for m, path in in_session if (m, path) in documented}
    assert real - documented - repeated == set()
    assert ("POST", CHAT) in in_session
    gateway.tokenizer.close()


def test_the_flags_of_the_api_page_are_those_of_the_command_line():
    text = section("docs/api.md", "Flags")
    told = set(re.findall(r"--(?:\[no-\])?[a-z][a-z-]*", text)) - {"--help"}
    told |= {flag.replace("[no-]", prefix) for flag in told for prefix in ("", "no-")}
    told = {flag for flag in told if "[" not in flag}
    real = {name for action in parser()._actions for name in action.option_strings}
    assert told == real - {"-h", "--help"}


def test_the_defaults_of_the_flags_are_those_of_the_config():
    """A default that is a sentence, not a value, stands for None."""
    dest_of = {name: a.dest for a in parser()._actions for name in a.option_strings}
    defaults = {field.name: field.default for field in fields(Config)}
    seen = set()
    for row in table(section("docs/api.md", "Flags"), "flag"):
        flags = re.findall(r"--(?:\[no-\])?[a-z-]+", row[0])
        dests = list(dict.fromkeys(dest_of[flag.replace("[no-]", "")] for flag in flags))
        values = row[1].split(", ")
        for dest, value in zip(dests, values, strict=False):
            seen.add(dest)
            default = defaults[dest]
            if dest in NO_DEFAULT or value.startswith("as "):
                assert default is None or dest == "hf_checkpoint", dest
                continue
            number = value.replace(",", "").replace(" MiB", "")
            scale = 2**20 if "MiB" in value else 1
            is_number = re.fullmatch(r"\d+(\.\d+)?", number)
            said: Any = float(number) * scale if is_number else WORDS.get(value, value)
            assert said == (default or None if default == () else default), dest
    seen.add("worker_flags")  # they have no name: they stand after `--`
    assert seen == {field.name for field in fields(Config)}


def every_error(base: type[RouterError] = RouterError) -> Iterator[type[RouterError]]:
    yield base
    for kind in base.__subclasses__():
        yield from every_error(kind)


def test_every_error_stands_in_the_table_of_errors():
    told = {
        (int(row[0]), names(row[1])[0], code)
        for row in table(section("docs/api.md", "Errors"), "status")
        for code in names(row[2])
    }
    # Before the start; the worker's status; without masks it is asked again.
    internal = (errors.SetupError, errors.WorkerRefused, errors.MasksRefused)
    kinds = {kind for kind in every_error() if kind not in internal}
    assert {(kind.status, kind.type, kind.code) for kind in kinds} - told == set()
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "slime_router").rglob("*.py"))
    unheard = {code for _, _, code in told if f'"{code}"' not in sources}
    assert unheard == set()


def test_the_limits_of_the_trajectories_page_are_errors_of_the_api_page():
    told = {
        (row[0], code)
        for row in table(section("docs/api.md", "Errors"), "status")
        for code in names(row[2])
    }
    limits = table(section("docs/trajectories.md", "Limits"), "what happens")
    assert {(row[1], names(row[2])[0]) for row in limits} - told == set()


def test_the_names_of_sessions_are_all_told():
    naming = section("docs/trajectories.md", "Naming a session")
    [headers] = [row[1] for row in table(naming, "") if "headers" in row[1]]
    assert tuple(names(headers)) == SESSION_HEADERS
    assert f"`{SESSION_KEY_PREFIX}NAME`" in naming
    assert set(SESSION_HEADERS) <= first_names(section("docs/api.md", "Headers"), "header")


async def test_a_session_is_named_in_the_order_that_is_told():
    """Each hint beats all that stand after it."""
    naming = table(section("docs/trajectories.md", "Naming a session"), "")
    headers = [n for row in naming if "headers" in row[1] for n in names(row[1])]
    in_body = [n for row in naming if "in the body" in row[1] for n in names(row[1])]
    hints = [("headers", name) for name in headers] + [("body", name) for name in in_body]
    async with served() as (router, _):
        sent: dict[str, Any] = {"Authorization": "Bearer session:key"}
        body: dict[str, Any] = {"messages": [user("Hi")], "max_tokens": 1}
        assert await name_of(router, sent, body) == "key"
        for kind, hint in reversed(hints):
            if kind == "headers":
                sent[hint] = hint
            elif hint.startswith("metadata."):
                body.setdefault("metadata", {})[hint.removeprefix("metadata.")] = hint
            else:
                body[hint] = hint
            assert await name_of(router, sent, body) == hint


async def name_of(router: Served, headers: dict[str, Any], body: dict[str, Any]) -> str:
    """The session that a request is in, as its newest turn tells."""
    status, reply = await router.post(CHAT, json=body, headers=headers)
    assert status == 200, reply
    turns = router.gateway.store._turns
    return str(turns[next(reversed(turns))].session_id)


def test_the_fields_of_a_session_are_all_told():
    spec = {"session_id" if f.name == "id" else f.name for f in fields(SessionSpec)}
    assert first_names(section("docs/trajectories.md", "Opening"), "field") == spec
    [route] = [
        r for r in table(section("docs/api.md", "Sessions and rows"), "route") if "201" in r[1]
    ]
    assert set(names(route[1])) == spec


async def test_the_keys_of_the_replies_about_sessions_are_all_told():
    text = section("docs/api.md", "Sessions and rows")
    async with served() as (router, _):
        await router.post(f"/sessions/s{CHAT}", json={"messages": [user("Hi")]})
        _, shown = await router.get("/sessions/s")
    [turn] = shown.pop("turn_list")
    assert first_names(text, "key of the summary") == set(shown)
    assert first_names(text, "key of a turn in `turn_list`") == set(turn)


def test_the_formats_of_rows_are_all_told():
    rows = table(section("docs/trajectories.md", "Formats"), "format")
    told = {names(row[0])[0]: names(row[1])[0] for row in rows}
    assert told == {name: form.media_type for name, form in FORMATS.items()}


def test_the_keys_of_a_tree_are_all_told():
    told = first_names(section("docs/trajectories.md", "Trees"), "key of a tree")
    book, experts = Book(), RoutedExperts(0, np.zeros((2, 4), np.int32))
    book.add(
        "t",
        [1],
        [2, 3],
        experts=experts,
        indexer_topk=experts,
        distribution=no_masks(2),
        top_logprobs=of_nested([[(-0.5, 2)], []]),
    )
    session = Session(SessionSpec(id="s"), is_opened=True)
    assert told == set(orjson.loads(FORMATS["tree"].encode(session, book.rows())))


def test_the_reasons_to_leave_a_token_out_are_all_told():
    book = Book()
    book.add("empty", [1], [])
    book.add("undelivered", [2], [5], is_delivered=False)
    book.add("first", [3], [6, 6])
    book.add("retry", [3], [7, 7])
    book.add("answer", [4], [8, 8, 8])
    book.add("realigning", [4, 8, 8, 9], [10, 11], base=None, logprobs=[-1.0, None])
    book.add("long", [9] * 20, [12])
    book.add("helper", [20], [13], said_kind="subagent")
    book.add("summary", [21], [14], said_kind="compaction")
    book.add("tagged", [22], [15], tags=("NAME",))
    rules = ("subagent", "compaction", "tag:NAME")
    stats = book.rows(max_len=10, leave_out=rules).stats
    told = first_names(section("docs/trajectories.md", "Rows"), "`left_out`")
    assert told == set(stats.left_out)


def test_the_classes_of_drift_are_all_told():
    told = [names(row[0])[0] for row in table(section("docs/api.md", "Drift"), "class")]
    assert told == [cause.value for cause in Cause]


async def test_the_keys_of_a_diagnosis_are_all_told():
    told = first_names(section("docs/api.md", "Drift"), "key")
    async with served() as (router, _):
        await router.chat([user("Hi")], path=f"/sessions/s{CHAT}")
        _, reply = await router.post("/sessions/s/diagnose", json={"messages": [user("Ho")]})
    assert told == set(reply)


def anchors(name: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)]+)\)", page(name)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), link
        assert not anchor or anchor in anchors(str(path.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name):
    for file in re.findall(r"`([\w/]+/[\w/]*\.py)`", page(name)):
        assert (ROOT / "slime_router" / file).exists() or (ROOT / file).exists(), file


def test_the_steps_stand_in_the_order_that_is_told():
    taken = re.findall(r"self\._(\w+)", inspect.getsource(Pipeline.generate))
    steps = [step for step in dict.fromkeys(taken) if step != "meters"]  # they only look on
    assert steps == [
        "counting",
        "admission",
        "fetch",
        "sessions",
        "recording",
        "caching",
        "context_limit",
        "relay",
    ]
    inside = " ──► ".join(step.replace("_", " ") for step in steps[1:-1])
    told = f"counting ──► plug-ins ──► {inside}"
    assert told in page("docs/middleware.md")
    assert told in page("docs/architecture.md")


def test_the_architecture_page_names_files_that_exist_and_every_room():
    text = page("docs/architecture.md")
    paths = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?|[a-z_]+\.py)`", text)
    assert len(paths) > 50, "the test looks at something"
    package = ROOT / "slime_router"
    assert [p for p in paths if not (package / p).exists() and not (ROOT / p).exists()] == []
    floors = section("docs/architecture.md", "Floors")
    rooms = [f"`{p.parent.name}/`" for p in package.glob("*/__init__.py")]
    assert [room for room in rooms if room not in floors] == []
    walk = table(section("docs/architecture.md", "A stranger's walk"), "")
    assert len(walk) <= 10
