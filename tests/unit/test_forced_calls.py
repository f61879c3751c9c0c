"""Calls that a request forces, in all formats: what a worker is sent, and what is read back."""

from __future__ import annotations

import json
import re

import pytest

from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import ReplyFormat
from tests.unit.formats import FORMATS
from tests.unit.test_formats import CUTS, DISTINCT, PARIS, ROME, SEARCH, TOOLS

pytestmark = pytest.mark.parsers

FORCED = sorted(set(DISTINCT) - {"beam"})  # for which SGLang needs its grammar back end
PIECES = {**CUTS, "whole": r"(?s).+"}


@pytest.mark.parametrize("cut", PIECES)
@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize("named", [None, "get_weather"])
@pytest.mark.parametrize("name", FORCED)
def test_a_forced_call_is_read_back_from_what_its_grammar_allows(name, named, is_parallel, cut):
    form = ReplyFormat(
        tools=TOOLS[:1] if named else TOOLS, is_forced=True, named=named, is_parallel=is_parallel
    )
    parsers = ReplyParsers(load_parsers, tools=name, reasoning=None)
    grammar = parsers.constraint(form)
    assert grammar is not None
    assert all(tool["function"]["name"] in grammar.value for tool in form.tools)
    wanted = [PARIS, ROME if named else SEARCH][: 1 + is_parallel]
    if grammar.kind == "json_schema":
        schema = json.loads(grammar.value)
        assert (schema["type"], schema.get("maxItems")) == ("array", None if is_parallel else 1)
        text = json.dumps([{"name": call, "parameters": given} for call, given in wanted])
    else:
        wanted = wanted[: FORMATS[name].most]
        text = FORMATS[name].write(wanted)
    parser = parsers.parser(form, prompt_tail="", history=())
    assert parser is not None
    deltas = [parser.push(piece, is_last=False) for piece in re.findall(PIECES[cut], text)]
    calls: dict[int, tuple[str, str]] = {}
    for call in (each for delta in deltas for each in delta.tool_calls):
        called, arguments = calls.get(call.index, (call.name or "", ""))
        calls[call.index] = called, arguments + call.arguments
    last = parser.push("", is_last=True)
    assert ("".join(delta.content for delta in deltas) + last.content).strip() == ""
    assert [(called, json.loads(given)) for called, given in calls.values()] == wanted
