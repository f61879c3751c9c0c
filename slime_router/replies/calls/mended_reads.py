"""Mended ways in which some of SGLang's detectors read text.

Each detector is mended when it is made: a method of its own takes the place of its class's. Where
it is not what was expected, that is a SetupError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from slime_router.checkpoint.sglang_entry import check_fit
from slime_router.errors import SetupError
from slime_router.json_text import is_json
from slime_router.replies.calls import python_lists

_DEEPSEEK_END = "<｜tool▁call▁end｜>"
_DEEPSEEK_BEGIN = "<｜tool▁call▁begin｜>"
_DEEPSEEK_BEGINS = ("<｜tool▁calls▁begin｜>", _DEEPSEEK_BEGIN)  # of all calls, or of one
_DEEPSEEK_SEPARATOR = "<｜tool▁sep｜>"
_HIDDEN_SEPARATOR = "<\ufdd0｜tool▁sep｜>"  # Unicode has that character for use inside of programs
_STEP3_PARAMETER = re.compile(
    r'<steptml:parameter name="([^"]+)">(.*?)</steptml:parameter>', re.DOTALL
)
_STEP3_NAME = re.compile(r'<steptml:invoke name="[^"]+">')
_GLM_VALUE = re.compile(r"(?<=<arg_value>)|(?<=</arg_value>)")  # where one begins or has ended
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_GLM_READ = "_process_xml_to_json_streaming"  # GLM 4.5's, 4.7's, and of those that inherit it
_SAYS_AGAIN = "_force_nonempty_content"  # a reply that is all reasoning is content, too
_COHERE = "CohereCommand4Detector"
_COHERE_BEGINS = ("<|START_TEXT|>", "<|START_ACTION|>")  # of what follows the reasoning
_CONTROL_TOKEN = re.compile(r"<\|[^<>]*\|>")
_TRIED_AGAIN = {  # with each piece of a reply: a pattern, the mark that it begins with, and its end
    "_STREAMING_PARTIAL_PATTERN": ("bot_token", ""),
    "func_args_regex": ("arg_key_start_token", "arg_value_end_token"),
}
_BEGIN_LEN = 64  # characters, more than any mark has with which GigaChat 3 begins a call


def _count_last_brace(detector: Any) -> None:
    """A call that ends lacks one brace, whatever is in its strings: MiniMax's counts those, too."""
    fields = {"tool_call_function_end_token": str, "streamed_args_for_tool": list}
    check_fit(detector, fields, ("_parse_and_stream_parameters",))
    parse = detector._parse_and_stream_parameters

    def parse_all(text: str, tools: list[Any]) -> Any:
        items = parse(text, tools)
        given = detector.streamed_args_for_tool
        if detector.tool_call_function_end_token in text and given[detector.current_tool_id]:
            given[detector.current_tool_id] = "{"
        return items

    detector._parse_and_stream_parameters = parse_all


def _end_with_frame(detector: Any) -> None:
    """A call that cannot be read, or is not JSON, ends with its frame or at the next one.

    DeepSeek's waits for JSON, past the end of the call and in the next. A separator in arguments is
    hidden: the last one in a text ends the name of a call.
    """
    check_fit(detector, {"_last_arguments": str}, ())
    parse = detector.parse_streaming_increment
    detector.call_end = _DEEPSEEK_END  # among its tags

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
        call, end, rest = detector._buffer.partition(_DEEPSEEK_END)
        given, call = detector._last_arguments, call.rstrip().removesuffix("```").rstrip()
        is_named = detector.current_tool_name_sent
        if end and (call.endswith(given) if is_named else _DEEPSEEK_BEGIN in call):
            leave(rest)
        for item in result.calls:
            if item.parameters:
                item.parameters = item.parameters.replace(_HIDDEN_SEPARATOR, _DEEPSEEK_SEPARATOR)
        return result

    detector.parse_streaming_increment = parse_all


def _forget_text(detector: Any) -> None:
    """Of the text before a call only that is kept in which a call may begin.

    GigaChat's looks for a call in the whole reply with each piece.
    """
    check_fit(detector, {"tool_started": bool}, ())
    parse = detector.parse_streaming_increment

    def parse_all(text: str, tools: list[Any]) -> Any:
        result = parse(text, tools)
        if not detector.tool_started:
            detector._buffer = detector._buffer[-_BEGIN_LEN:]
        return result

    detector.parse_streaming_increment = parse_all


def _leave_out_nameless(detector: Any) -> None:
    """A call that ends before its name was read does not take the next one's.

    Nor is a value with a `<` in it left out.
    """
    fields = {"param_regex": re.Pattern, "tool_call_end": str, "_function_name_sent": bool}
    check_fit(detector, fields, ("_parse_partial_tool_call", "_reset_streaming_state"))
    parse = detector._parse_partial_tool_call
    detector.param_regex = _STEP3_PARAMETER

    def parse_all(tools: list[Any]) -> Any:
        call, end, rest = detector._buffer.partition(detector.tool_call_end)
        if end and not detector._function_name_sent and not _STEP3_NAME.search(call):
            detector._buffer = ""
            detector._reset_streaming_state()
            return detector.parse_streaming_increment(rest, tools)
        return parse(tools)

    detector._parse_partial_tool_call = parse_all


def _keep_spaces(detector: Any) -> None:
    """The spaces around a string are a part of it."""
    check_fit(detector, {"strip_string_param_value": bool}, ())
    detector.strip_string_param_value = False


def _read_python(detector: Any) -> None:
    """Numbers may have a sign, and strings brackets."""
    methods = ("_get_parameter_value", "_find_matching_bracket")
    check_fit(detector, {"tool_call_regex": re.Pattern}, methods)
    detector._get_parameter_value = python_lists.literal
    detector._find_matching_bracket = python_lists.ClosingBracket()
    detector.tool_call_regex = python_lists.CallList()


def _keep_skipped(detector: Any) -> None:
    """Calls whose arguments cannot be read are content."""
    check_fit(detector, {}, ("detect_and_parse",))
    detector.detect_and_parse = python_lists.with_skipped(detector.detect_and_parse)


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


def _try_once(detector: Any) -> None:
    """A detector of GLM's or Hunyuan's kind tries its patterns at their first mark only."""
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


def _give_json(detector: Any) -> None:
    """What is not a string is JSON: GLM's give any text for a number."""
    if not hasattr(detector, "_cached_value_type"):
        name = type(detector).__name__
        raise SetupError(f"this version of SGLang does not fit: {name}.{_GLM_READ}()")
    parse = detector._process_xml_to_json_streaming
    detector._process_xml_to_json_streaming = JsonValues(detector, parse)


_MENDS: Mapping[str, tuple[Callable[[Any], None], ...]] = MappingProxyType(
    {
        "DeepSeekV3Detector": (_end_with_frame,),
        "DeepSeekV31Detector": (_end_with_frame,),
        "DeepSeekV32Detector": (_keep_spaces,),
        "DeepSeekV4Detector": (_keep_spaces,),
        "DeepSeekV41Detector": (_keep_spaces,),
        "GigaChat3Detector": (_forget_text,),
        "Lfm2Detector": (_keep_skipped,),
        "MinimaxM2Detector": (_count_last_brace,),
        "PythonicDetector": (_read_python, _keep_skipped),
        "Step3Detector": (_leave_out_nameless,),
    }
)


def mend_calls(detector: Any) -> None:
    """Mends a detector of calls that was just made, if its kind needs it."""
    _try_once(detector)
    if hasattr(detector, _GLM_READ):
        _give_json(detector)
    for mend in _MENDS.get(type(detector).__name__, ()):
        mend(detector)


def mend_reasoning(detector: Any) -> None:
    """What was given as reasoning is not given as content at the end; no text is left out."""
    if hasattr(detector, _SAYS_AGAIN):
        setattr(detector, _SAYS_AGAIN, False)
    if type(detector).__name__ == _COHERE:
        _take_bare_text(detector)


def _take_bare_text(detector: Any) -> None:
    """What follows a reply's reasoning or its text is text, also without a mark.

    A mark of reasoning with which the reply begins is left out.
    """
    state = dict.fromkeys(("_reasoning_done", "_saw_text_start", "_saw_text_end"), bool)
    check_fit(detector, state, ("parse_streaming_increment",))
    parse = detector.parse_streaming_increment

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

    detector.parse_streaming_increment = parse_all
