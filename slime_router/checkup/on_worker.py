"""The same with a real worker: are its tokens ours, and does a chat with it stay exact?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from slime_router.checkup.judge import Judge
from slime_router.checkup.scenarios import TOOLS, scenarios
from slime_router.checkup.stand import Stand
from slime_router.checkup.verdict import Verdict
from slime_router.errors import BadRequest
from slime_router.generation.middleware import Dispatch
from slime_router.replies.parsers import ReplyParsers
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, Sampling, TemplateOptions

MAX_TOKENS = 32  # of each reply
# Digits, spaces, capitals, quotes, accents, scripts, code: where tokenizers that differ do differ.
PROBE_TEXTS = (
    'Héllo  WORLD 12345,\n\n{"name": "x"}\t🙂 e\u0301 ' + "don't",
    "東京は首都です。 Привет мир! 안녕하세요 ไทย",
    "def f(x):\n    return x  # HAVING\r\n\n\n\tif x == 0x1F: pass",
    " leading and trailing space ",
)

Tokenize = Callable[[str], Awaitable[list[int] | None]]


class OnWorker:
    """Compares with one worker: `tokenize` asks it for ids, and `dispatch` for a generation."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        parsers: ReplyParsers,
        *,
        tokenize: Tokenize,
        dispatch: Dispatch,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._parsers = parsers
        self._tokenize = tokenize
        self._dispatch = dispatch

    async def verdicts(self) -> tuple[Verdict, Verdict]:
        """Of the tokens of probe texts, and of a chat of two turns.

        Raises:
            RouterError: the worker fails.
        """
        return await self._chat(), await self._tokens()

    async def _tokens(self) -> Verdict:
        faults: list[str] = []
        for text in (*PROBE_TEXTS, *self._prompt_text()):
            theirs, ours = await self._tokenize(text), self._tokenizer.encode(text).tolist()
            if theirs is None:
                reason = "the worker has no /tokenize, or failed at it"
                return Verdict("worker's tokens", "not supported", (reason,))
            if theirs != ours:
                pairs = zip(theirs, ours, strict=False)
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))
                faults.append(
                    f"{text[:40]!r}: at token {at} the worker has {theirs[at : at + 4]}, "
                    f"the router {ours[at : at + 4]}"
                )
        return Verdict("worker's tokens", "not exact" if faults else "exact", tuple(faults))

    def _prompt_text(self) -> list[str]:
        """A prompt with all its control tokens."""
        asked = list(scenarios()[0].exchanges[0].asks)
        try:
            return [self._template.render(asked, TemplateOptions(tools=TOOLS))]
        except BadRequest:  # of a template that takes no tools; a chat is judged anyway
            return []

    async def _chat(self) -> Verdict:
        judge = Judge(self._tokenizer, self._template)
        stand = Stand(self._tokenizer, self._template, self._parsers, dispatch=self._dispatch)
        first, second = (list(each.asks) for each in scenarios()[0].exchanges[:2])
        options, sampling = TemplateOptions(), Sampling(max_tokens=MAX_TOKENS)
        before = await stand.say(first, options, sampling=sampling)
        messages: list[Message] = [*first, before.reply, *second]
        after = await stand.say(messages, options, sampling=sampling)
        faults = judge.first_prompt(before, first, options)
        faults += judge.next_prompt(before, after, messages, second, options)
        return Verdict("worker's chat", "not exact" if faults else "exact", tuple(faults), 2)
