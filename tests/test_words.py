"""Plain English in docstrings, comments, messages and pages: habits that read as translated.

The rules look for wordings, not for spelling. A text is read as a whole, so a line break hides
nothing. Rooms that are still to be rewritten are listed, and the list may only become shorter.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "slime_router"
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("docs", "examples/README.md"),
)
CODE = (PACKAGE, "benchmarks", "examples", "tests")


class Rule(NamedTuple):
    habit: re.Pattern[str]
    better: str


def rule(pattern: str, better: str) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), better)


RULES = (
    rule(
        r"(?<!left )(?<!leaves )(?<!leave )(?<!them )(?<!nothing )(?<!lag )(?<!lags )(?<!far )"
        r"\bbehind\b"
        r"(?! a (?:proxy|lock|read-write|load))(?! (?:[\w']+ ){0,2}(?:back|lock)\b)",
        "`behind` is for places: `after`",
    ),
    rule(
        r"(?<!there )\b(?:is|are|was|were|be) (?-i:none)\b(?! of)",
        "`is none`: `is invalid`, `there is none`",
    ),
    rule(
        r"(?<!there )(?<!that )\b(?:is|are|was|were) no "
        r"(?!longer|more|less|different|better|one)\w",
        "`is no X`: `is not an X`",
    ),
    rule(
        r"(?<!as )\btold\b(?! apart)", "`told`: say who gets to know what: `is given`, `reported`"
    ),
    rule(r"\bshall\b", "`shall`: `must`, `should`, `will`"),
    rule(r"\banew\b", "`anew`: `again`"),
    rule(r"\b(?:the|a|its|their|each|every|common|at) begins?\b(?!ning)", "`begin` is a verb"),
    rule(r"\b(?:is|are|too|so|as|very) dear\b", "`dear`: `expensive`"),
    rule(r"\bat the (?:most|least)\b", "`at the most`: `at most`"),
    rule(r"\bso (?:many|few|much) (?:times|as ever)\b", "`so many times`: name the number"),
    rule(r"\bas ever\b", "`as ever`: `as usual`"),
    rule(r"\bfor so long\b", "`for so long`: `for this long`"),
    rule(r"\b(?:has|have) ended it\b|\bone behind the other\b", "`one after the other`"),
    rule(r"\bis gone on with\b", "`is gone on with`: `is continued`"),
    rule(
        r"\bsays? (?:who|nothing else)\b|\bmessages? says? a\b", "data does not `say`: it `names`"
    ),
    rule(
        r"(?:^|[.:;] )Who (?!is it|are you|may |can )[a-z][^.?]*\.(?:\s|$)",
        "`Who does X ...` as a statement: `Whoever does X`, `a client that does X`",
    ),
    rule(r"\bnothing of (?:it|them|this)\b", "`nothing of it`: `none of it`"),
    rule(r"\bsays? nothing of\b", "`says nothing of`: `says nothing about`"),
    rule(
        r", of which (?:it|there|nothing|nobody|everything|each|those)\b",
        "`, of which there is one`: two sentences, or `whose`",
    ),
    rule(r"\bthat is none\b", "`that is none`: `that is invalid`"),
    rule(r"\bfor ever\b", "`for ever`: `forever`"),
    rule(
        r"\b(?:routers?|files?|those|tokens|turns|ones) of before\b",
        "`of before`: `older`, `earlier`",
    ),
    rule(
        r"\b(?:in|on|at|under|by|from|with|has) an? (?:\w+ )?\w+ of its own\b",
        "`in a thread of its own`: `in its own thread`",
    ),
    rule(r"(?<!0 )(?<!0: )(?<!are )\ball the same\b", "`all the same`: `anyway`, `even so`"),
    rule(r"\bin silence\b", "`in silence`: `silently`"),
    rule(r"\bhears? of (?:it|aborts|them)\b", "`hears of it`: `learns of it`"),
    rule(
        r"(?<!there )\b(?:is|are) of "
        r"(?:a|an|no|the|another|other|newer|older|these|this|its|one)\b",
        "`is of a newer router`: `belongs to`, `comes from`, `was written by`",
    ),
)


class Text(NamedTuple):
    place: str
    words: str


def room(path: str) -> str:
    """`slime_router/api` of a file in it; a file of the package itself is a room of its own."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == PACKAGE else parts[0]


def comments(source: str, path: str) -> Iterator[Text]:
    """Comments, those on neighbouring lines in one."""
    last, start, words = -1, 0, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, said = token.start[0], token.string.lstrip("#! ")
        is_alone = not token.line[: token.start[1]].strip()
        if is_alone and line == last + 1:
            words += f" {said}"
        else:
            if words:
                yield Text(f"{path}:{start}", words)
            start, words = line, said
        last = line if is_alone else -1
    if words:
        yield Text(f"{path}:{start}", words)


def literals(source: str, path: str) -> Iterator[Text]:
    """Strings of several words: docstrings, messages, help."""
    seen: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):  # breadth first: a whole before its parts
        if isinstance(node, ast.JoinedStr):
            seen.update(node.values)
            parts = [n.value if isinstance(n, ast.Constant) else "X" for n in node.values]
            yield Text(f"{path}:{node.lineno}", "".join(str(part) for part in parts))
        elif node in seen or not isinstance(node, ast.Constant):
            continue
        elif isinstance(node.value, str) and " " in node.value:
            yield Text(f"{path}:{node.lineno}", node.value)


def paragraphs(page: str, path: str) -> Iterator[Text]:
    """Lines of a page that are prose, and what a fence shows."""
    for number, line in enumerate(page.splitlines(), 1):
        yield Text(f"{path}:{number}", line)


@cache
def files() -> dict[str, list[Path]]:
    """Every file with words in it, by room: known before any is read."""
    found: dict[str, list[Path]] = defaultdict(list)
    for top in CODE:
        for file in sorted((ROOT / top).rglob("*.py")):
            if file != Path(__file__):
                found[room(str(file.relative_to(ROOT)))].append(file)
    for top in PAGES:
        found["docs"] += sorted((ROOT / top).rglob("*.md")) or [ROOT / top]
    return found


def texts(name: str) -> Iterator[Text]:
    """Every text of a room."""
    for file in files()[name]:
        path, source = str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            yield from comments(source, path)
            yield from literals(source, path)
        else:
            yield from paragraphs(source, path)


def findings(text: Text) -> Iterator[str]:
    words = " ".join(re.sub(r"`[^`]*`", "`X`", text.words).split())  # names are not prose
    for habit, better in RULES:
        for hit in habit.finditer(words):
            around = words[max(0, hit.start() - 30) : hit.end() + 30]
            yield f"{text.place}: ...{around}... ({better})"


def found_in(name: str) -> list[str]:
    return sorted({finding for text in texts(name) for finding in findings(text)})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "tests" else ())
        for name in sorted(files())
    ],
)
def test_a_room_speaks_plain_english(name):
    found = found_in(name)
    assert not found, "\n" + "\n".join(found)
