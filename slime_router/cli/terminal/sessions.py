"""`slime-router sessions [ID]`: the sessions of a running router, or the tokens of one, coloured.

Exit codes: 0 fine, 1 the router does not answer or refuses, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import orjson
from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line, utf8
from slime_router.cli.terminal.figures import count, many, plain, table
from slime_router.cli.terminal.remote import ABOUT_KEYS, BadPlace, Remote, add_url
from slime_router.cli.terminal.top import EXIT_FAILED, session_table
from slime_router.client import ClientError

PART = 20_000  # tokens asked for at once
DEFAULT_LIMIT = 50
DEPARTING = ("fork", "drift", "realigned", "branch")

_SOURCES = {"template": "dim", "message": "cyan", "sampled": "black on green"}
_HEAT = (
    (0.05, "black on green"), (0.7, "black on yellow"), (3.0, "black on dark_orange"),
    (math.inf, "white on red"),
)  # fmt: skip
_VERSIONS = ("black on cyan", "black on yellow", "black on green", "black on magenta")

_EPILOG = f"""\
examples:
  slime-router sessions                        # the newest
  slime-router sessions --search call_ab12     # by session, turn, response, call or request id
  slime-router sessions ep-7                   # its turns and rows, and the tokens of the newest
  slime-router sessions ep-7 --turn turn_66 --by logprob
  slime-router sessions ep-7 --row turn_66 --by mask
  slime-router sessions ep-7 --json | jq .tree.stats

{ABOUT_KEYS}"""


def sessions_main(argv: Sequence[str]) -> int:
    """List or show; returns the exit code. `argv` does not include `sessions`."""
    asked = parser().parse_args(argv)
    if asked.session is None and (asked.turn or asked.row):
        return _failed("--turn and --row need a session", EXIT_WRONG_USE)
    try:
        remote = Remote(asked.url)
        found = _list(remote, asked) if asked.session is None else _one(remote, asked)
    except BadPlace as exc:
        return _failed(str(exc), EXIT_WRONG_USE)
    except ClientError as exc:
        return _failed(exc.message, EXIT_FAILED)
    if asked.json:
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
    else:
        shown = listed(found) if asked.session is None else story(found, asked.by)
        Console(soft_wrap=False).print(shown)
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser(
        "sessions",
        "The sessions of a running router, or the turns, rows and tokens of one.",
        _EPILOG,
    )
    p.add_argument("session", nargs="?", metavar="ID", type=utf8, help="show this session")
    add_url(p)
    p.add_argument("--search", metavar="TEXT", type=utf8, help="list those that this leads to")
    p.add_argument(
        "--limit", type=int, default=DEFAULT_LIMIT, metavar="N", help="list so many (default: 50)"
    )
    which = p.add_mutually_exclusive_group()
    which.add_argument(
        "--turn", metavar="TURN", type=utf8, help="the tokens of this turn (default: the last)"
    )
    which.add_argument(
        "--row", metavar="ROW", type=utf8, help="the tokens of this row, as the trainer has it"
    )
    p.add_argument(
        "--by",
        choices=("source", "mask", "logprob", "version"),
        default="source",
        help="what colours the tokens (default: source)",
    )
    p.add_argument("--json", action="store_true", help="print the router's reply")
    return p


def _list(remote: Remote, asked: argparse.Namespace) -> Any:
    return remote.get("/sessions", "sessions", limit=asked.limit, order="desc", search=asked.search)


def _one(remote: Remote, asked: argparse.Namespace) -> dict[str, Any]:
    path = f"/sessions/{quote(asked.session, safe='')}"
    tree = remote.get(f"{path}/tree", "turns")
    last = tree["turns"][-1]["turn_id"] if tree["turns"] else None
    name, named = ("row", asked.row) if asked.row else ("turn", asked.turn or last)
    tokens = None if named is None else _tokens(remote, path, name, named)
    return {"session": remote.get(path, "session_id"), "tree": tree, "tokens": tokens}


def _tokens(remote: Remote, path: str, name: str, named: str) -> dict[str, Any]:
    """All tokens of a turn or row; the indexes of each part lead to the lists of the whole."""
    whole: dict[str, Any] = {}
    while not whole or len(whole["ids"]) < whole["total"]:
        offset = len(whole["ids"]) if whole else 0
        part = remote.get(f"{path}/tokens", "ids", offset=offset, limit=PART, **{name: named})
        if not part["ids"]:
            return whole or part
        if not whole:
            whole = part
            continue
        for key, of in (("turns", "turn_of"), ("versions", "version_of")):
            names = whole[key]
            names += [each for each in part[key] if each not in names]
            part[of] = [-1 if i < 0 else names.index(part[key][i]) for i in part[of]]
        whole["bytes"] |= {str(int(i) + offset): raw for i, raw in part["bytes"].items()}
        for key in ("ids", "pieces", "sources", "loss_mask", "logprobs", "turn_of", "version_of"):
            whole[key] += part[key]
    return whole


def listed(found: dict[str, Any]) -> RenderableType:
    """The list, and how many it leaves out."""
    shown = found["sessions"]
    more = found["total"] - len(shown)
    note = Text(f"and {count(more)} more: --limit, --search", "dim") if more > 0 else Text()
    return Group(session_table("Sessions", shown), note)


def story(found: dict[str, Any], by: str) -> RenderableType:
    """A session: its turns as a tree, what the trainer gets, and the tokens."""
    session, tree, tokens = found["session"], found["tree"], found["tokens"]
    head = plain(session["session_id"])
    head.stylize("bold")
    head.append(f"  {session['state']} · {many(session['turns'], 'turn')}", "dim")
    parts: list[RenderableType] = [head, Text(), _tree(tree["turns"]), Text(), _rows(tree)]
    if tokens is not None:
        title = Text("Tokens of ", "bold").append_text(plain(tokens["turn"] or tokens["row"]))
        parts += [Text(), title, coloured(tokens, by), Text(), legend(tokens, by)]
    return Group(*parts)


def _tree(turns: Sequence[dict[str, Any]]) -> RenderableType:
    root = Tree(Text("Turns", "bold"), guide_style="dim")
    branches: dict[str, Tree] = {}
    for turn in turns:
        above = turn["parent"] if turn["cause"] == "extension" else turn["of"]
        place = branches.get(above or "", root)
        # a chain of turns stays in one column, as long as nothing forks
        label = Text(f"{turn['cause']:<9} ", "yellow" if turn["cause"] in DEPARTING else "dim")
        label.append_text(plain(turn["turn_id"]))
        label.append(f"  {count(turn['prompt_tokens'])} → {count(turn['output_tokens'])}", "dim")
        if turn["cause"] in DEPARTING:
            label.append(f"  at token {turn['departs_at']}", "dim")
        if turn["left_out"]:
            label.append(f"  not trained: {turn['left_out']}", "red")
        added = place.add(label)
        branches[turn["turn_id"]] = place if turn["cause"] == "extension" else added
    return root


def _rows(tree: dict[str, Any]) -> RenderableType:
    made = table(
        "Rows", "row", "tokens", "trained", "turns", numbers=("tokens", "trained", "turns")
    )
    for row in tree["rows"]:
        made.add_row(
            plain(row["row_id"]),
            count(row["tokens"]),
            count(row["trained_tokens"]),
            count(len(row["spans"])),
        )
    stats = tree["stats"]
    total = f"{count(stats['sampled_tokens'])} sampled = {count(stats['trained_tokens'])} trained"
    left = "".join(f" + {count(o['tokens'])} {name}" for name, o in stats["left_out"].items())
    return Group(
        made,
        Text(total + left),
    )


def coloured(tokens: dict[str, Any], by: str) -> Text:
    """The tokens one after another. A line ends where the text has one."""
    text = Text(overflow="fold")
    for index, piece in enumerate(tokens["pieces"]):
        raw = tokens["bytes"].get(str(index))
        shown = plain(piece if raw is None else f"‹{raw}›")
        shown.stylize(style_of(tokens, index, by))
        text.append_text(shown)
        if piece.endswith("\n"):
            text.append("\n")
    return text


def style_of(tokens: dict[str, Any], index: int, by: str) -> str:
    """The style of one token."""
    source = tokens["source_names"][tokens["sources"][index]]
    if by == "source":
        return _SOURCES[source]
    if by == "mask" and tokens["loss_mask"][index]:
        return "black on green"
    if source != "sampled":
        return "dim"
    if by == "mask":
        return "black on yellow"
    if by == "version":
        version = tokens["version_of"][index]
        return "white on red" if version < 0 else _VERSIONS[version % len(_VERSIONS)]
    logprob = tokens["logprobs"][index]
    if logprob is None:
        return "white on magenta"
    return next(style for edge, style in _HEAT if -logprob < edge)


def legend(tokens: dict[str, Any], by: str) -> Text:
    """What the colours mean."""
    samples: list[tuple[str, str]] = {
        "source": [*((name, style) for name, style in _SOURCES.items())],
        "mask": [("trained", "black on green"), ("sampled, not trained", "black on yellow")],
        "logprob": [
            *((f"> -{edge:g}" if edge < math.inf else "less", style) for edge, style in _HEAT),
            ("missing", "white on magenta"),
        ],
        "version": [
            (str(version), _VERSIONS[i % len(_VERSIONS)])
            for i, version in enumerate(tokens["versions"])
        ],
    }[by]
    text = Text()
    for name, style in samples:
        text.append_text(Text.assemble((f" {plain(name)} ", style), "  "))
    return text


def _failed(message: str, code: int) -> int:
    sys.stderr.write(error_line(message, "slime-router sessions"))
    return code
