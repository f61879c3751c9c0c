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
PAGES = ("README.md", "docs", "examples/README.md")
CODE = (PACKAGE, "benchmarks", "examples", "tests")

# Still to be rewritten. Take a room off once its last finding is gone; add none.
TO_DO = {"tests"}


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
    rule(r"\bthat is none\b", "`that is none`: `that is invalid`"),
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
def texts() -> dict[str, list[Text]]:
    """Every text, by room."""
    found: dict[str, list[Text]] = defaultdict(list)
    for top in CODE:
        for file in sorted((ROOT / top).rglob("*.py")):
            path, source = str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
            if file != Path(__file__):
                found[room(path)] += [*comments(source, path), *literals(source, path)]
    for top in PAGES:
        for file in sorted((ROOT / top).rglob("*.md")) or [ROOT / top]:
            path = str(file.relative_to(ROOT))
            found["docs"] += paragraphs(file.read_text(encoding="utf-8"), path)
    return found


def findings(text: Text) -> Iterator[str]:
    words = " ".join(re.sub(r"`[^`]*`", "`X`", text.words).split())  # names are not prose
    for habit, better in RULES:
        for hit in habit.finditer(words):
            around = words[max(0, hit.start() - 30) : hit.end() + 30]
            yield f"{text.place}: ...{around}... ({better})"


def found_in(name: str) -> list[str]:
    return sorted({finding for text in texts()[name] for finding in findings(text)})


@pytest.mark.parametrize("name", sorted(texts().keys() - TO_DO))
def test_a_room_speaks_plain_english(name):
    found = found_in(name)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", sorted(TO_DO))
def test_a_room_without_findings_is_taken_off_the_list(name):
    assert name in texts(), f"{name} is gone: take it off TO_DO"
    assert found_in(name), f"{name} is clean: take it off TO_DO"


BAD = (
    "The turn stands behind the prompt.",
    "A URL that is none is refused.",
    "What follows is no JSON.",
    "The session is told when it has landed.",
    "The key shall be kept.",
    "The request is begun anew.",
    "At the begin of a text.",
    "Parsing is dear.",
    "One row at the most.",
    "It is gone on with elsewhere.",
    "Who asks for more has it all. More follows.",
)
GOOD = (
    "What an open request leaves behind is dropped.",
    "It runs behind a proxy, and lags behind.",
    "There is no key, and this is no longer needed.",
    "None of them is known; it is none of ours.",
    "What begins here ends there; the beginning is kept.",
    "Who may do what?",
    "Whoever asks for more has it all.",
)


@pytest.mark.parametrize("words", BAD)
def test_the_rules_find_what_they_are_for(words):
    assert list(findings(Text("here", words)))


@pytest.mark.parametrize("words", GOOD)
def test_the_rules_leave_good_wordings_alone(words):
    assert not list(findings(Text("here", words)))


def test_a_text_is_read_across_lines_and_in_every_form():
    source = 'x = 1  # it\n# stands\n# behind it\n"""Is\nno text."""\nf"shall {x}"\n'
    found = [*comments(source, "x.py"), *literals(source, "x.py")]
    assert sum(1 for text in found for _ in findings(text)) == 3


# One name, one class

# Names that two classes have until one of the two rooms is done; the list only becomes shorter.
DOUBLES = {"Doctor", "Question", "Retriever", "_Choice"}
# A trainer's side of the API stands on its own, and names what the router names, too.
APART = "client"


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        if APART not in file.relative_to(ROOT / PACKAGE).parts:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(str(file.relative_to(ROOT)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert len(places) > 200, "the test looks at something"
    assert {name: where for name, where in twice.items() if name not in DOUBLES} == {}
    assert DOUBLES - twice.keys() == set(), "single by now: take it off DOUBLES"


def test_every_module_calls_its_logger_logger():
    others = set()
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        for line in re.findall(r"^.*getLogger\(__name__\)", source, re.MULTILINE):
            if line != "logger = logging.getLogger(__name__)":
                others.add(room(str(file.relative_to(ROOT))))
    assert not others, "call it logger"
