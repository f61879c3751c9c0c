"""SGLang's detectors of calls and of reasoning, as they are used here: all that is read of them.

Some of it is not public there. Each adapter looks at a detector when it is made, which happens for
the chosen formats at start: where it is not what was expected, it says so, instead of losing what
models write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from slime_router.checkpoint.sglang_entry import check_fit
from slime_router.json_text import is_whole_json
from slime_router.replies.calls.mended_reads import mend_calls, mend_reasoning
from slime_router.replies.pieces import Marks

_TAG = re.compile(r"<.{1,62}>")
_PLAIN_TAG = re.compile(r"<[^<>|｜\s]{1,62}>")
_MARKS = {  # what calls begin and end with, by three names
    "bot_token": "eot_token",
    "tool_call_start_token": "tool_call_end_token",
    "TOOL_CALL_START": "TOOL_CALL_END",
}
_CALL_FIELDS: dict[str, type] = {
    "_buffer": str,
    "current_tool_id": int,
    "current_tool_name_sent": bool,
    "bot_token": str,
    "eot_token": str,
}
_CALL_METHODS = ("parse_streaming_increment", "finish", "has_tool_call", "_get_tool_indices")
_REASONING_FIELDS: dict[str, type] = {
    "think_start_token": str,
    "think_end_token": str,
    "think_start_self_label": str,
}
_IS_WHOLE = "_is_complete_json"
_READ_SOME = "_partial_json_loads"
_IN_REASONING = "_in_reasoning"
_READS = ("parse_streaming_increment", "_parse_streaming_increment_impl", "finish")
_WITHOUT_STATE = ("BeamReasoningDetector",)  # its reply names each part
_DROP_UNKNOWN = {
    "Apertus2509Detector",
    "CohereCommand4Detector",
    "DotsToolDetector",
    "GigaChat35Detector",
    "InternlmDetector",
    "Lfm2Detector",
    "MuseGlimmerDetector",
    "PythonicDetector",
    "Step3Detector",
}
_TOOLS = "_tool_indices"  # made when the first text comes
_NO_MARKS = ("__", "tool_call_separator")  # names begin so; the latter is read after calls alone
_PYTHONIC = "PythonicDetector"


def read_any_json(modules: Iterable[Any]) -> None:
    """Makes SGLang's modules take JSON with half of an escaped emoji for whole JSON.

    They ask orjson, which refuses it. A call with one never ended: the calls after it were lost.

    Raises:
        SetupError: this version of SGLang does not fit.
    """
    for module in modules:
        check_fit(module, {}, (_IS_WHOLE,))
        setattr(module, _IS_WHOLE, is_whole_json)


def read_whole_numbers(base: Any, utils: Any) -> None:
    """Makes `base` read no number at the end of JSON that may continue; it asks `utils` for that.

    It gave 1 of 1.5e-3 when that came, and then what it had not given of 0.0015: that is 1.0015.

    Raises:
        SetupError: this version of SGLang does not fit.
    """
    for module in (base, utils):
        check_fit(module, {}, (_READ_SOME,))
    check_fit(utils, {"Allow": type}, ())
    load, numbers = getattr(utils, _READ_SOME), utils.Allow.NUM
    setattr(base, _READ_SOME, lambda text, allowed: load(text, allowed & ~numbers))


class CallDetector:
    """One reply's detector of calls; see `sglang.srt.function_call.base_format_detector`.

    Raises:
        SetupError: this version of SGLang does not fit.
    """

    __slots__ = ("_detector", "_untouched", "begin", "end", "name")

    def __init__(self, detector: Any, untouched: Mapping[str, Any] | None = None) -> None:
        self._detector = detector
        self.name = type(detector).__name__
        check_fit(detector, _CALL_FIELDS, _CALL_METHODS)
        mend_calls(detector)
        self._untouched = untouched  # the fields of one that no text has changed, where known
        self.begin: str = detector.bot_token  # of a call, or of the array of all
        self.end: str = detector.eot_token

    def __repr__(self) -> str:
        return f"<CallDetector {self.name}>"

    @property
    def mark(self) -> str:
        """The mark of a call, by whatever name it has; empty where it has none."""
        return next(filter(None, map(self._text, _MARKS)), "")

    @property
    def call_begin(self) -> str:
        """What each call begins with; those of an array have no mark of their own."""
        mark = self.begin.strip()
        return "{" if mark.endswith("[") or not mark else mark

    @property
    def frame(self) -> tuple[str, str] | None:
        """What calls begin and end with; None for a format that has no such marks."""
        pairs = ((self._text(begin), self._text(end)) for begin, end in _MARKS.items())
        return next((pair for pair in pairs if all(len(mark) > 1 for mark in pair)), None)

    def _text(self, name: str) -> str:
        return str(getattr(self._detector, name, "") or "").strip()

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that it must be given in one piece, in order; what ends calls is among them."""
        if self.name == _PYTHONIC:
            return ("]",)
        known = {**vars(type(self._detector)), **vars(self._detector)}.values()
        texts = {value.strip() for value in known if isinstance(value, str)}
        return tuple(sorted(filter(_TAG.fullmatch, texts)))

    @property
    def drops_unknown(self) -> bool:
        """Whether it drops calls of tools that were not offered from among others."""
        return self.name in _DROP_UNKNOWN

    @property
    def has_calls(self) -> bool:
        """Whether it counts calls, and has begun to."""
        return bool(self._detector.current_tool_id >= 0)

    @property
    def is_untouched(self) -> bool:
        """Whether it is known to be as if no text had come."""
        return self._untouched is not None and self.fields == self._untouched

    @property
    def fields(self) -> dict[str, Any]:
        """All that it keeps of a reply, by name."""
        kept = vars(self._detector).items()
        return {name: each for name, each in kept if name != _TOOLS and not callable(each)}

    @property
    def texts(self) -> list[str]:
        """All texts that it or its class has by a name: every mark with which calls may begin."""
        kinds = (vars(self._detector), *map(vars, type(self._detector).__mro__))
        known = [each[name] for each in kinds for name in each if not name.startswith(_NO_MARKS)]
        return [text for text in known if isinstance(text, str)]

    @property
    def has_named(self) -> bool:
        """Whether it has given the name of the call that it reads."""
        return bool(self._detector.current_tool_name_sent)

    @property
    def unread(self) -> str:
        """The text that it has made nothing of yet."""
        return str(self._detector._buffer)

    @property
    def kept_len(self) -> int:
        """The longest text that it keeps: at most so much does it look at again with each piece."""
        return max(len(each) for each in vars(self._detector).values() if isinstance(each, str))

    def leave_call(self, rest: str) -> None:
        """Makes it go on with `rest`, after the call that it reads."""
        self._detector._buffer = rest
        self._detector.current_tool_id += 1
        self._detector.current_tool_name_sent = False

    def read(self, text: str, tools: list[Any]) -> tuple[str, list[Any]]:
        """The content and the items of calls that `text` adds."""
        return _found(self._detector.parse_streaming_increment(text, tools))

    def finish(self, tools: list[Any]) -> tuple[str, list[Any]]:
        """The same at the end of the reply."""
        return _found(self._detector.finish(tools))

    def finds_call(self, text: str) -> bool:
        """Whether a call begins in `text`."""
        return bool(self._detector.has_tool_call(text))

    def take_any_tool(self, tools: list[Any]) -> None:
        """Makes it return the calls of tools that were not offered, too."""
        indices = _AnyName(self._detector._get_tool_indices(tools))
        self._detector._get_tool_indices = lambda _tools: indices


class _AnyName(dict[str, int]):
    """SGLang looks tools up by their names: here each is one."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: str) -> int:
        return -1


class ReasoningDetector:
    """One reply's reader of reasoning; see `sglang.srt.parser.reasoning_parser`.

    Raises:
        SetupError: this version of SGLang does not fit.
    """

    __slots__ = (
        "_detector", "_has_state", "_make", "_parser", "_starts_open", "begin", "end", "label",
        "mode",
    )  # fmt: skip

    def __init__(self, make: Callable[[], Any]) -> None:
        """`make` makes SGLang's parser of one reply."""
        self._make = make
        self._parser = parser = make()
        self._detector = detector = parser.detector
        self._has_state = type(detector).__name__ not in _WITHOUT_STATE
        check_fit(parser, {}, ("parse_stream_chunk", "parse_stream_end"))
        state = {_IN_REASONING: bool} if self._has_state else {}
        check_fit(detector, _REASONING_FIELDS | state, ())
        self._starts_open = self.is_open
        mend_reasoning(detector)
        self.begin: str = detector.think_start_token
        self.end: str = detector.think_end_token
        self.label: str = detector.think_start_self_label  # follows `begin`: Gemma's
        self.mode = str(getattr(detector, "reasoning_default", ""))  # see `Thinking.of_mode`

    def for_reply(self, make: Callable[[], Any]) -> ReasoningDetector:
        """The same format for another reply; SGLang's parser is made when the first text comes."""
        other = object.__new__(ReasoningDetector)
        other._make, other._parser, other._detector = make, None, None
        other._has_state, other._starts_open = self._has_state, self._starts_open
        other.begin, other.end, other.label = self.begin, self.end, self.label
        other.mode = self.mode
        return other

    def _made(self) -> Any:
        if self._parser is None:
            self._parser = self._make()
            self._detector = self._parser.detector
            mend_reasoning(self._detector)
            if self._has_state:
                self._detector._in_reasoning = self._starts_open
        return self._parser

    @property
    def is_open(self) -> bool:
        """Whether reasoning continues at this point of the reply."""
        if self._detector is None:
            return self._starts_open
        return self._has_state and bool(self._detector._in_reasoning)

    @property
    def holds_nothing(self) -> bool:
        """Whether all text so far was given back; only for a format that has `marks`."""
        return self._detector is None or not self._detector._buffer

    @property
    def tags(self) -> tuple[str, ...]:
        """The marks that it must be given in one piece, as most vocabularies have them."""
        return tuple(mark for mark in (self.begin, self.end) if _PLAIN_TAG.fullmatch(mark))

    def marks(self) -> Marks | None:
        """The marks of the format; None where it has its own way to read a stream.

        Where nothing is held back, text without any of them is all reasoning or all content.
        """
        kinds = type(self._detector).__mro__
        if any(sum(name in vars(each) for each in kinds) > 1 for name in _READS):
            return None
        if not (self._has_state and hasattr(self._detector, "_buffer")):
            return None
        marks = (self.begin, self.end, getattr(self._detector, "tool_start_token", None))
        return Marks(filter(None, marks))

    def start(self, *, is_open: bool) -> None:
        """Whether the reply begins inside reasoning; not every format takes it as an argument."""
        self._starts_open = is_open and self._has_state
        if self._has_state and self._detector is not None:
            self._detector._in_reasoning = is_open

    def read(self, text: str) -> tuple[str, str]:
        """The reasoning and the rest that `text` adds."""
        return _both(self._made().parse_stream_chunk(text))

    def finish(self) -> tuple[str, str]:
        """The same at the end of the reply."""
        return _both(self._made().parse_stream_end())


def _found(result: Any) -> tuple[str, list[Any]]:
    return result.normal_text or "", list(result.calls or ())


def _both(pair: Any) -> tuple[str, str]:
    reasoning, text = pair
    return reasoning or "", text or ""
