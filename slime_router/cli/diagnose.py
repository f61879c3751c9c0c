"""`slime-router diagnose FILE`: the drift doctor without a server.

Exit codes: 0 all the same, 1 something differs, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import orjson

from slime_router.api.diagnose import diagnosis_body, read_question
from slime_router.api.request import missing
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.settings.shared import add_config, shared_settings
from slime_router.config import Config
from slime_router.doctor.doctor import Diagnosis, diagnose
from slime_router.doctor.drift import Glimpse
from slime_router.errors import BadRequest, RouterError, SetupError
from slime_router.server.app import Gateway

EXIT_SAME, EXIT_DIFFERENT = 0, 1
MARGIN_LEN = 28  # characters of the common text that are shown

_DESCRIPTION = """\
Do held tokens agree with what a text-in router would send? FILE is a JSON object
  {"tokens": [ids], "messages": [...], "tools": [...], ...}  or  {"tokens": [ids], "text": "..."}
or several, one per line."""
_EPILOG = """\
examples:
  slime-router diagnose drift.json --hf-checkpoint Qwen/Qwen3-8B
  jq -c '{tokens, messages}' held.jsonl | slime-router diagnose - --hf-checkpoint ./checkpoint"""


def diagnose_main(argv: Sequence[str]) -> int:
    """Diagnose each object in a file; returns the exit code. `argv` does not include `diagnose`."""
    asked = parser().parse_args(argv)
    try:
        bodies = _read_bodies(asked.file)
        model = _load_model(asked)
        diagnoses = [_diagnose(model, place, body) for place, body in bodies]
    except RouterError as exc:
        sys.stderr.write(error_line(exc.message, "slime-router diagnose"))
        return EXIT_WRONG_USE
    for (place, _), diagnosis in zip(bodies, diagnoses, strict=True):
        if asked.json:
            sys.stdout.write(orjson.dumps(diagnosis_body(diagnosis)).decode() + "\n")
        else:
            sys.stdout.write(report(diagnosis, title=place if len(bodies) > 1 else ""))
    is_same = all(diagnosis.drift.is_same for diagnosis in diagnoses)
    return EXIT_SAME if is_same else EXIT_DIFFERENT


def report(diagnosis: Diagnosis, *, title: str = "") -> str:
    """For people: a verdict, both sides with a caret where they diverge, and why."""
    drift = diagnosis.drift
    lines = [f"== {title}"] if title else []
    parting = drift.parting
    if parting is None:
        return "\n".join([*lines, f"same: all {drift.held_len} tokens agree", ""])
    before = _shown(parting.text_before)
    if len(before) > MARGIN_LEN:
        before = "…" + before[-MARGIN_LEN:]
    held, rendered = _named(parting.held), _named(parting.rendered)
    lines += [
        f"different: {drift.cause} at token {parting.index}",
        "",
        f"  held      {before}{_onwards(parting.held)}",
        f"  rendered  {before}{_onwards(parting.rendered)}",
        f"            {' ' * _width(before)}^",
        f"  {drift.explanation}",
        "",
        f"  token {parting.index}: held {held}, rendered {rendered}",
        "",
        _row("held", "rendered"),
        _row(f"{drift.held_len} tokens", f"{drift.rendered_len} tokens"),
        *(_row(_span(each.held), _span(each.rendered), each.cause) for each in drift.regions),
    ]
    if drift.has_more:
        lines.append(_row("...", "...", "and more"))
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser("diagnose", _DESCRIPTION, _EPILOG)
    p.add_argument("file", metavar="FILE", help="a path, or - for standard input")
    p.add_argument(
        "--hf-checkpoint",
        "--model-path",
        "--tokenizer-path",
        dest="hf_checkpoint",
        metavar="PATH_OR_ID",
        help="the checkpoint whose tokenizer and chat template are used (default: the router's)",
    )
    add_config(p)
    p.add_argument("--chat-template", metavar="FILE", help="used instead of the checkpoint's")
    p.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code from the checkpoint"
    )
    p.add_argument("--json", action="store_true", help="what POST /diagnose replies, one per line")
    return p


def _load_model(asked: argparse.Namespace) -> Gateway:
    """A router that is never started: it only loads the tokenizer and the template."""
    given = shared_settings(asked, "hf_checkpoint", "chat_template", "trust_remote_code")
    if "hf_checkpoint" not in given:
        raise SetupError("--hf-checkpoint is required: a directory, or an id on the hub")
    return Gateway(
        Config(
            **given,
            tool_call_parser="none",  # no reply is read
            reasoning_parser="none",
        )
    )


def _read_bodies(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place in it."""
    try:
        if path == "-":
            raw = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                raw = file.read()
    except OSError as exc:
        raise BadRequest(f"{path}: {exc.strerror}") from exc
    lines = [(f"{path}:{i}", line) for i, line in enumerate(raw.splitlines(), 1) if line.strip()]
    if not lines:
        raise BadRequest(f"{path}: is empty")
    try:
        bodies = [(path, orjson.loads(raw))]
    except orjson.JSONDecodeError:
        bodies = [(place, _json(line, place)) for place, line in lines]
    for place, body in bodies:
        if type(body) is not dict:
            raise BadRequest(f"{place}: is not a JSON object")
    return bodies


def _json(text: bytes, place: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"{place}: is not JSON: {exc}") from exc


def _diagnose(model: Gateway, place: str, body: dict[str, Any]) -> Diagnosis:
    try:
        if body.get("session_id") is not None:
            raise BadRequest("only a running router knows sessions: give 'tokens'")
        if body.get("tokens") is None:
            raise missing("tokens")
        question = read_question(body, model.tokenizer.vocab_size)
        assert question.held is not None
        return asyncio.run(diagnose(question.held, question.call, model.tokenizer, model.template))
    except RouterError as exc:
        raise BadRequest(f"{place}: {exc.message}") from exc


def _shown(text: str) -> str:
    """On one line, with line ends and the like written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _row(held: str, rendered: str, cause: str = "") -> str:
    return f"  {held:>18} | {rendered:<18} {cause}".rstrip()


def _width(text: str) -> int:
    """How many terminal columns it takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _onwards(glimpse: Glimpse | None) -> str:
    return "(end)" if glimpse is None else _shown(glimpse.text_after)


def _named(glimpse: Glimpse | None) -> str:
    return "has ended" if glimpse is None else f"{glimpse.id} '{_shown(glimpse.token)}'"


def _span(span: tuple[int, int]) -> str:
    start, end = span
    if start == end:
        return f"none at {start}"
    return f"{start}" if end == start + 1 else f"{start} to {end - 1}"
