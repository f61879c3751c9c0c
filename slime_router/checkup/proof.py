"""Whether a format reads back the calls and the thoughts that a chat template prints itself.

SGLang's rules know a format by a few words of the template, which templates of other families have,
too. So what they detect is tried out at start, on a reply that the template prints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from slime_router.checkup.scenarios import TOOLS, WEATHER, Said
from slime_router.checkup.speech import (
    PARSED_SPELLINGS,
    PLAIN_ASK,
    THINK_MARKS,
    Speech,
    Unsupported,
)
from slime_router.replies.call_ids import KIMI_IDS
from slime_router.replies.formats import Choice, presumes_thinking
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.reply import Reply
from slime_router.replies.sglang_parsers import SGLangParsers
from slime_router.template.messages import arguments_value
from slime_router.template.self_test import Findings
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import GenerateChunk, ReplyFormat, TemplateOptions, ToolDelta

logger = logging.getLogger(__name__)

_ASKS = (PLAIN_ASK,)
_PARIS, _ROME = ((WEATHER, {"city": city}) for city in ("Paris", "Rome"))
_SAYS_CALL, _SAYS_CALLS = Said(calls=(_PARIS,)), Said(calls=(_PARIS, _ROME))
_PLAIN = Said("A walk along the river.")
_THINKS = Said("A walk along the river.", "Which city is it?")
_THINKING = {"enable_thinking": True, "thinking": True}  # many templates think only if asked to

# Where several formats read what a template prints, the plainest is taken.
_PLAINEST = ("qwen", "hermes", "mistral", "llama3", "deepseekv3", "pythonic", "deepseek-r1")


class _Read(NamedTuple):
    content: str
    thinking: str
    calls: tuple[tuple[str, object], ...]

    def is_of(self, said: Said) -> bool:
        """Whether this is what was said, and nothing else."""
        read = (self.content.strip(), self.thinking.strip(), self.calls)
        return read == (said.content, said.thinking, said.calls)

    @property
    def left(self) -> str:
        """What of a call is in the content, for people."""
        return f"{' '.join(self.content.split())!r} in the content"


class Proof:
    """What SGLang's formats make of replies in the spelling of one template.

    `make` gives the parsers of formats, as `ReplyParsers` is called.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        findings: Findings,
        make: Callable[..., ReplyParsers],
        load: Callable[[], SGLangParsers],
    ) -> None:
        self._tokenizer = tokenizer
        self._findings = findings
        self._make = make
        self._load = load
        self._texts: dict[tuple[str | None, str], tuple[str, str] | None] = {}

    def tools(self, found: str | None, reasoning: str | None) -> Choice | None:
        """The format of calls, where it is not simply the one that was `found`; else None.

        `reasoning` is the format of what the template prints before a call.
        """
        if not self._findings.prints_calls:
            return None
        if found is not None and self._reads((found, reasoning), _SAYS_CALL) is not False:
            return None
        names = [(name, reasoning) for name in _plainest(self._load().tool_formats)]
        others = [name for name in names if self._reads(name, _SAYS_CALL)]
        both = [name for name in others if self._reads(name, _SAYS_CALLS)]
        for name, _ in both or others:
            return _instead(name, found, "calls")
        read = None if found is None else self._read((found, reasoning), _SAYS_CALL)
        if read is not None and read.calls == _SAYS_CALL.calls:
            return Choice(found, f"detected, but leaves {read.left}", is_detected=True)
        for name, _ in names:
            read = self._read((name, reasoning), _SAYS_CALLS)
            if (
                read is not None
                and read.calls == _SAYS_CALLS.calls
                and self._is_marks(read.content)
            ):
                why = f"reads the calls that the template prints, but leaves {read.left}"
                return Choice(name, f"{why}; {found or 'none'} is detected", is_detected=True)
        return _unread(found, "calls")

    def reasoning(self, found: str | None) -> Choice | None:
        """The same of reasoning."""
        if found is not None and self._reads((None, found), _THINKS) is not False:
            return None
        names = [(None, name) for name in _plainest(self._load().reasoning_formats)]
        for name in names:
            if self._reads(name, _THINKS) and self._reads(name, _PLAIN):
                return _instead(name[1], found, "reasoning")
        if not self._findings.prints_reasoning:
            return None
        takes_all = found is not None and self._reads((None, found), _PLAIN) is False
        return _unread(None if takes_all else found, "reasoning")

    def _reads(self, formats: tuple[str | None, str | None], said: Said) -> bool | None:
        """Whether these formats read a reply as what was said; None where none is printed."""
        read = self._read(formats, said)
        return None if read is None else read.is_of(said)

    def _read(self, formats: tuple[str | None, str | None], said: Said) -> _Read | None:
        tools, reasoning = formats
        written = self._written(tools, said)
        if written is None:
            return None
        prompt, text = written
        form = ReplyFormat(tools=TOOLS if said.calls else ())
        try:
            parsers = self._make(
                tools=tools, reasoning=reasoning, presumes_thinking=presumes_thinking(reasoning)
            )
            parser = parsers.parser(form, prompt_tail=prompt, history=())
            if parser is None:
                return _Read(_without_thought(text), "", ())
            with _unlogged():
                delta = parser.push(text, is_last=True)
        except Exception:  # SGLang's detectors may raise anything on a spelling not their own
            logger.debug("%s cannot read %r", formats, text, exc_info=True)
            return _Read(text, "", ())
        content = _without_thought(delta.content) if reasoning is None else delta.content
        return _Read(content, delta.reasoning, _calls(delta.tool_calls))

    def _is_marks(self, content: str) -> bool:
        """Whether it is made of control tokens alone."""
        ids = self._tokenizer.encode(content)
        return not self._tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

    def _written(self, name: str | None, said: Said) -> tuple[str, str] | None:
        """The prompt and the reply as the template prints them; None where it prints none such."""
        spelled_as = name if name in KIMI_IDS or name in PARSED_SPELLINGS else None
        key = spelled_as, repr(said)
        if key not in self._texts:
            speech = Speech(self._tokenizer, self._findings, spelled_as)
            tools, kwargs = TOOLS if said.calls else (), _THINKING if said.thinking else {}
            options = TemplateOptions(tools=tools, kwargs=kwargs)
            try:
                text = speech.write(_ASKS, said, options).text
                self._texts[key] = speech.prompt(_ASKS, options), text
            except Unsupported:
                self._texts[key] = None
        return self._texts[key]


@contextmanager
def _unlogged() -> Iterator[None]:
    """SGLang's detectors warn of a spelling that is not their own: here, of most that are tried."""
    sglang = logging.getLogger("sglang")
    level = sglang.level
    sglang.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        sglang.setLevel(level)


def _plainest(names: Sequence[str]) -> list[str]:
    known = [name for name in _PLAINEST if name in names]
    return [*known, *(name for name in names if name not in known)]


def _without_thought(content: str) -> str:
    """Content without a thought at its beginning, which no format of calls reads."""
    for begin, end in THINK_MARKS:
        if content.lstrip().startswith((begin.strip(), end.strip())):
            return content.partition(end.strip())[2]
    return content


def _calls(deltas: tuple[ToolDelta, ...]) -> tuple[tuple[str, object], ...]:
    reply = Reply()
    reply.add(GenerateChunk(output_ids=[], tool_calls=deltas))
    return tuple((call.name, arguments_value(call.arguments)) for call in reply.calls.values())


def _instead(name: str | None, found: str | None, what: str) -> Choice:
    """Another format than the one found reads what the template prints."""
    why = f"reads the {what} that the template prints; {found or 'none'} is detected"
    return Choice(name, why, is_detected=True)


def _unread(found: str | None, what: str) -> Choice:
    """No format reads what the template prints. What was detected may read what the model says."""
    if found is None:
        return Choice(None, f"no format reads the {what} that the template prints")
    why = f"detected, but does not read the {what} that the template prints"
    return Choice(found, why, is_detected=True)
