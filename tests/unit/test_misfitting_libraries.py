"""Libraries that are not as expected: one line at start, never a silent loss later."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from tokenizers import decoders

from slime_router.engine import connector
from slime_router.engine.connector import Connector, check_aiohttp
from slime_router.errors import SetupError
from slime_router.replies.detectors import CallDetector, ReasoningDetector, read_whole_numbers
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.tokens.components import components

CALL_FIELDS = ("_buffer", "current_tool_id", "current_tool_name_sent", "bot_token", "eot_token")
CALL_METHODS = ("parse_streaming_increment", "finish", "has_tool_call", "_get_tool_indices")
REASONING_FIELDS = (
    "_in_reasoning", "think_start_token", "think_end_token", "think_start_self_label",
)  # fmt: skip


def call_detector(**changes: Any) -> SimpleNamespace:
    fields = dict(zip(CALL_FIELDS, ("", -1, False, "<tool_call>", "</tool_call>"), strict=True))
    methods = dict.fromkeys(CALL_METHODS, lambda *_: None)
    return SimpleNamespace(**{**fields, **methods, **changes})


def reasoning_parser(**changes: Any) -> SimpleNamespace:
    fields = dict(zip(REASONING_FIELDS, (False, "<think>", "</think>", ""), strict=True))
    return SimpleNamespace(
        parse_stream_chunk=lambda _: ("", ""),
        parse_stream_end=lambda: ("", ""),
        detector=SimpleNamespace(**{**fields, **changes}),
    )


def refused(make: Any, word: str) -> None:
    with pytest.raises(SetupError) as caught:
        make()
    assert word in caught.value.message
    assert "does not fit" in caught.value.message
    assert "\n" not in caught.value.message


def test_what_is_as_expected_fits():
    assert CallDetector(call_detector()).begin == "<tool_call>"
    assert ReasoningDetector(reasoning_parser).end == "</think>"


@pytest.mark.parametrize("name", CALL_FIELDS)
@pytest.mark.parametrize("value", [None, b"bytes", [], 1.5])
def test_a_field_of_a_call_detector_that_is_missing_or_another(name, value):
    refused(lambda: CallDetector(call_detector(**{name: value})), name)


@pytest.mark.parametrize("name", CALL_METHODS)
def test_a_method_of_a_call_detector_that_is_missing(name):
    refused(lambda: CallDetector(call_detector(**{name: None})), name)


@pytest.mark.parametrize("name", REASONING_FIELDS)
def test_a_field_of_a_reasoning_detector_that_is_missing(name):
    refused(lambda: ReasoningDetector(lambda: reasoning_parser(**{name: None})), name)


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("function_call.base_format_detector", "_buffer"),
        ("function_call.json_array_parser", "current_tool_id"),
    ],
)
def test_another_sglang_keeps_the_router_from_starting(module, name, monkeypatch):
    """As if a new version had renamed the attribute, in one class or in the base of all."""
    sglang = load_parsers()
    made = sglang.FunctionCallParser.ToolCallParserEnum["qwen25"]
    kind = sglang.JsonArrayParser if "array" in module else made
    plain = kind.__init__

    def renamed(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        setattr(self, name + "_of_late", vars(self).pop(name))

    monkeypatch.setattr(kind, "__init__", renamed)
    refused(lambda: ReplyParsers(load_parsers, tools="qwen25", reasoning=None), name)


@pytest.mark.parametrize("name", ["_partial_json_loads", "Allow"])
def test_a_module_of_sglang_that_reads_json_otherwise(name):
    parts = {"_partial_json_loads": lambda *_: None, "Allow": SimpleNamespace}
    whole, other = SimpleNamespace(**parts), SimpleNamespace(**{**parts, name: None})
    refused(lambda: read_whole_numbers(whole, other), name)


@pytest.mark.parsers
def test_every_format_of_sglang_fits():
    sglang = load_parsers()
    for name, kind in sglang.FunctionCallParser.ToolCallParserEnum.items():
        if name != "response_template":  # made by a checkpoint's own description
            assert CallDetector(kind()).name == kind.__name__
    for name in sglang.reasoning_formats:
        if name != "response_template":
            first = ReasoningDetector(partial(sglang.ReasoningParser, name, True))
            for streams, tools in ((True, True), (False, False), (False, True)):
                make = partial(sglang.ReasoningParser, name, streams, tool_call_parser_active=tools)
                made, later = ReasoningDetector(make), first.for_reply(make)
                for field in ("is_open", "begin", "end", "label"):
                    assert getattr(later, field) == getattr(made, field), name


def test_another_aiohttp_keeps_the_router_from_starting(monkeypatch):
    check_aiohttp()
    assert vars(Connector).keys() >= {connector._OPENS}, "what is checked is what is overridden"

    class Renamed:
        async def open_connection(self) -> None: ...

    refused(lambda: check_aiohttp(Renamed), "_create_connection")  # type: ignore[arg-type]
    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", lambda *_: None)
    refused(check_aiohttp, "_create_connection")
    monkeypatch.undo()
    monkeypatch.setattr("slime_router.engine.connector._READS", ("_elsewhere",))
    refused(check_aiohttp, "StreamReader._elsewhere")


class _Mute:
    def __getstate__(self) -> Any:
        raise Exception("Custom decoders cannot be serialized")


class _Vague:
    def __getstate__(self) -> bytes:
        return b'{"kind": "ByteLevel"}'


@pytest.mark.parametrize("kind", [_Mute, _Vague, object])
def test_a_part_of_a_tokenizer_that_does_not_show_what_it_does(kind):
    refused(lambda: components(kind()), kind.__name__)


def test_parts_of_tokenizers_show_what_they_do():
    sequence = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert [step["type"] for step in components(sequence)] == ["ByteFallback", "Fuse"]
    assert components(None) == []
