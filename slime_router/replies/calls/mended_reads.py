"""Mended ways in which some of SGLang's detectors read text.

Each function takes a detector and the method that it mends, and returns one to put in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from slime_router.json_text import is_json

DEEPSEEK_END = "<｜tool▁call▁end｜>"
_DEEPSEEK_BEGIN = "<｜tool▁call▁begin｜>"
_DEEPSEEK_BEGINS = ("<｜tool▁calls▁begin｜>", _DEEPSEEK_BEGIN)  # of all calls, or of one
_DEEPSEEK_SEPARATOR = "<｜tool▁sep｜>"
_HIDDEN_SEPARATOR = "<\ufdd0｜tool▁sep｜>"  # Unicode has that character for use inside of programs
_STEP3_NAME = re.compile(r'<steptml:invoke name="[^"]+">')
_GLM_VALUE = re.compile(r"(?<=<arg_value>)|(?<=</arg_value>)")  # where one begins or has ended
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_COHERE_BEGINS = ("<|START_TEXT|>", "<|START_ACTION|>")  # of what follows the reasoning
_CONTROL_TOKEN = re.compile(r"<\|[^<>]*\|>")
_TRIED_AGAIN = {  # with each piece of a reply: a pattern, the mark that it begins with, and its end
    "_STREAMING_PARTIAL_PATTERN": ("bot_token", ""),
    "func_args_regex": ("arg_key_start_token", "arg_value_end_token"),
}
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
    """Reads calls; one that cannot be read, or is not JSON, ends with its frame or at the next one.

    A separator in arguments is hidden: the last one in a text ends the name of a call.
    """

    def leave(rest: str) -> None:
        detector._buffer, detector._last_arguments = rest, ""
        detector.current_tool_id += detector.current_tool_name_sent
        detector.current_tool_name_sent = False

    def parse_all(text: str, tools: list[Any]) -> Any:
        before = []
        if text in _DEEPSEEK_BEGINS and _DEEPSEEK_BEGIN in detector._buffer:
            before = parse("", tools).calls  # a name alone was given so far
            if _DEEPSEEK_BEGIN in detector._buffer:
                leave("")
        if _DEEPSEEK_SEPARATOR in detector._buffer:
            text = text.replace(_DEEPSEEK_SEPARATOR, _HIDDEN_SEPARATOR)
        result = parse(text, tools)
        result.calls = [*before, *result.calls]
        call, end, rest = detector._buffer.partition(DEEPSEEK_END)
        given, call = detector._last_arguments, call.rstrip().removesuffix("```").rstrip()
        is_named = detector.current_tool_name_sent
        if end and (call.endswith(given) if is_named else _DEEPSEEK_BEGIN in call):
            leave(rest)
        for item in result.calls:
            if item.parameters:
                item.parameters = item.parameters.replace(_HIDDEN_SEPARATOR, _DEEPSEEK_SEPARATOR)
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


def leaving_out_nameless(detector: Any, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Reads a call; one that ends before its name was read does not take the next one's."""

    def parse_all(tools: list[Any]) -> Any:
        call, end, rest = detector._buffer.partition(detector.tool_call_end)
        if end and not detector._function_name_sent and not _STEP3_NAME.search(call):
            detector._buffer = ""
            detector._reset_streaming_state()
            return detector.parse_streaming_increment(rest, tools)
        return parse(tools)

    return parse_all


class FirstMark(NamedTuple):
    """A pattern that begins with a mark, and is tried at the first of these marks only.

    Where it fails there, it fails at all later marks, too. Trying those as well cost the square of
    the reply's length for each new mark.
    """

    pattern: re.Pattern[str]
    mark: str
    end: str  # without which it fails; empty if it can do without

    def search(self, text: str) -> re.Match[str] | None:
        """Like a pattern's."""
        return next(self.finditer(text), None)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Like a pattern's."""
        start = text.find(self.mark)
        while start >= 0 <= text.find(self.end, start):
            found = self.pattern.match(text, start)
            if found is None:
                return
            yield found
            start = text.find(self.mark, found.end())

    def findall(self, text: str) -> list[tuple[str | Any, ...]]:
        """Like that of a pattern with several groups."""
        return [found.groups("") for found in self.finditer(text)]


def try_once(detector: Any) -> None:
    """Makes a detector of GLM's or Hunyuan's kind try its patterns at their first mark only."""
    for name, marks in _TRIED_AGAIN.items():
        pattern = getattr(detector, name, None)
        begin, end = (getattr(detector, mark, "") for mark in marks)
        if isinstance(pattern, re.Pattern) and begin:
            setattr(detector, name, FirstMark(pattern, begin, end))


class JsonValues:
    """Reads the values of GLM's calls; what is not a string is given once it is whole, as JSON.

    Objects and arrays are given as they come: those that are not JSON are as they were written.
    """

    def __init__(self, detector: Any, parse: Callable[..., str]) -> None:
        self._detector = detector
        self._parse = parse
        self._waiting = ""  # the beginning of a value
        self._passes = False  # the rest of the value that is open

    def __call__(self, text: str, name: str, tools: list[Any]) -> str:
        """The JSON that is given for the next text of a call of the tool `name`."""
        return "".join(self._given(part, name, tools) for part in _GLM_VALUE.split(text))

    def _given(self, part: str, name: str, tools: list[Any]) -> str:
        kind = self._detector._cached_value_type  # of the value that is open
        said = self._parse(part, name, tools)
        if kind in (None, "string"):
            return said
        said, self._waiting = self._waiting + said, ""
        is_whole = self._detector._cached_value_type is None
        self._passes = self._passes or said.lstrip().startswith(("{", "["))
        if self._passes:
            self._passes = not is_whole
        elif not is_whole:
            said, self._waiting = "", said
        elif not is_json(said):
            said = _PYTHON_WORDS.get(said.strip()) or json.dumps(said, ensure_ascii=False)
        return said


def with_bare_text(detector: Any, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Reads a reply; what follows its reasoning or its text is text, also without a mark.

    A mark of reasoning with which the reply begins is left out.
    """

    def parse_all(text: str) -> Any:
        if not detector._reasoning_done:
            is_echo = text == detector.think_start_token and not detector._buffer
            return parse("" if is_echo else text)
        if detector._saw_text_end and (
            text in _COHERE_BEGINS or (text.strip() and not _CONTROL_TOKEN.fullmatch(text))
        ):
            detector._saw_text_start = detector._saw_text_end = False
        said = (detector._buffer + text).lstrip()
        if said and not any(
            said.startswith(mark) or mark.startswith(said) for mark in _COHERE_BEGINS
        ):
            detector._saw_text_start = True
        return parse(text)

    return parse_all
