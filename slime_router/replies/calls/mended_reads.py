"""Mended ways in which some of SGLang's detectors of calls read text.

Each function takes a detector and the method that it mends, and returns one to put in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DEEPSEEK_END = "<｜tool▁call▁end｜>"
_BEGIN_LEN = 64  # characters, more than any mark has with which GigaChat 3 begins a call


def with_last_brace(detector: Any, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Reads the values of a call; when it ends, it lacks one brace, whatever is in its strings."""

    def parse_all(text: str, tools: list[Any]) -> Any:
        items = parse(text, tools)
        given = detector.streamed_args_for_tool
        if detector.tool_call_function_end_token in text and given[detector.current_tool_id]:
            given[detector.current_tool_id] = "{"
        return items

    return parse_all


def ending_with_frame(detector: Any, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Reads calls; one whose arguments are not JSON ends with its frame, too."""

    def parse_all(text: str, tools: list[Any]) -> Any:
        result = parse(text, tools)
        call, end, rest = detector._buffer.partition(DEEPSEEK_END)
        given, call = detector._last_arguments, call.rstrip().removesuffix("```").rstrip()
        if end and detector.current_tool_name_sent and call.endswith(given):
            detector._buffer, detector._last_arguments = rest, ""
            detector.current_tool_id += 1
            detector.current_tool_name_sent = False
        return result

    return parse_all


def forgetting_text(detector: Any, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Reads a reply; of the text before a call it keeps only what a call may begin in."""

    def parse_all(text: str, tools: list[Any]) -> Any:
        result = parse(text, tools)
        if not detector.tool_started:
            detector._buffer = detector._buffer[-_BEGIN_LEN:]
        return result

    return parse_all
