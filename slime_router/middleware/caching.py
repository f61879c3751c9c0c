"""The caching middleware: makes the prompt on the way down, files what came back on the way up.

Every door gets the same prompt making from it, and plug-ins above it can still change messages.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.chat.parse import ReplyDelta, ReplyParser, ReplyParsers
from slime_router.chat.tokenizer import Tokenizer
from slime_router.chat.visible import VisibleText
from slime_router.middleware.base import CallNext
from slime_router.prompt import PromptMaker
from slime_router.types import (
    Capture,
    Finish,
    GenerateCall,
    GenerateChunk,
    Piece,
    Prompt,
    TokenIds,
    token_ids,
)
from slime_router.weights import WeightVersions

logger = logging.getLogger(__name__)

PROMPT_TAIL_LEN = 32  # tokens; a template that opens the reasoning does it right at the end


class ReplyReader:
    """Fills in what a chat client sees of each chunk: content, reasoning, tool calls."""

    def __init__(self, visible: VisibleText, parser: ReplyParser | None) -> None:
        self._visible = visible
        self._parser = parser

    def read(self, chunk: GenerateChunk) -> list[GenerateChunk]:
        """The next chunk, filled in; the last one has `finish`.

        A chunk says reasoning, then text, then calls. Where it holds more than that, it is cut
        in several, so that the order of what was said does not hang on how the tokens came.
        """
        if self._parser is None:
            chunk.text = self._visible.push(chunk.output_ids, chunk.finish)
            return [chunk]
        parts, start = [], 0
        # Token by token: from longer pieces some parsers lose text.
        steps = [[token_id] for token_id in chunk.output_ids] or [[]]
        for index, ids in enumerate(steps):
            is_last = chunk.finish is not None and index == len(steps) - 1
            text = self._visible.push(ids, chunk.finish if is_last else None)
            if not (text or is_last):  # part of a character
                chunk.reasoning_tokens += self._parser.is_thinking
                continue
            delta = self._parser.push(text, is_last=is_last)
            if _is_out_of_order(chunk, delta):
                part, chunk = _cut(chunk, index - start)
                parts.append(part)
                start = index
            chunk.text += delta.content
            chunk.reasoning += delta.reasoning
            chunk.tool_calls += delta.tool_calls
            chunk.reasoning_tokens += delta.is_thinking
            chunk.hidden_calls += delta.hidden_calls
        return [*parts, chunk]


def _is_out_of_order(chunk: GenerateChunk, delta: ReplyDelta) -> bool:
    """Whether what is said now comes, in a chunk, before what was said already."""
    if delta.reasoning and (chunk.text or chunk.tool_calls):
        return True
    return bool(delta.content and chunk.tool_calls)


def _cut(chunk: GenerateChunk, count: int) -> tuple[GenerateChunk, GenerateChunk]:
    """The first `count` tokens with all that was said, and the others, of which nothing is yet."""
    logprobs, tops = chunk.logprobs, chunk.top_logprobs
    before = replace(
        chunk,
        output_ids=chunk.output_ids[:count],
        logprobs=logprobs and logprobs[:count],
        top_logprobs=tops and tops[:count],
        finish=None,
        weight_versions=(),
        routed_experts=None,
        output=None,
        item=None,
    )
    behind = replace(
        chunk,
        output_ids=chunk.output_ids[count:],
        logprobs=logprobs and logprobs[count:],
        top_logprobs=tops and tops[count:],
        text="",
        reasoning="",
        tool_calls=(),
        reasoning_tokens=0,
        hidden_calls=0,
        prompt=None,
    )
    return before, behind


class RadixTreeMiddleware:
    """Makes `call.prompt`, decodes the reply for chat doors, and inserts both into the tree."""

    def __init__(
        self,
        maker: PromptMaker,
        cache: PrefixCache,
        tokenizer: Tokenizer,
        *,
        capture: Capture,
        weights: WeightVersions,
        parsers: ReplyParsers,
    ) -> None:
        self._parsers = parsers
        self._weights = weights
        self._maker = maker
        self._cache = cache
        self._tokenizer = tokenizer
        self._capture = capture
        self._has_warned = False  # of tools whose calls stay text

    async def __call__(
        self, call: GenerateCall, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Middleware: see `middleware/base.py`."""
        await self._cache.enforce_budget()  # those before may have been cut short behind `_file`
        prompt = self._noted(call, await self._maker.make(call))
        output: list[int] = []
        finish: Finish | None = None
        epoch = 0  # of the weights that sampled it
        try:
            reader = self._reader(call, prompt)
            announced: Prompt | None = prompt
            async for chunk in call_next(replace(call, prompt=prompt)):
                output += chunk.output_ids
                if chunk.weight_version is not None:
                    epoch = max(epoch, self._weights.note(chunk.weight_version))
                chunk.prompt, announced = announced, None
                if chunk.finish is not None:
                    # Filed before the client can ask for the next turn.
                    finish = chunk.finish
                    chunk.output = token_ids(output)
                    self._file(call, prompt, chunk.output, finish, epoch)
                for part in reader.read(chunk) if reader is not None else (chunk,):
                    yield part
            await self._cache.enforce_budget()
        finally:
            if finish is None and output:  # cut short: what was sampled was sampled
                self._file(call, prompt, token_ids(output), None, epoch)
            self._maker.release(prompt)

    def _noted(self, call: GenerateCall, prompt: Prompt) -> Prompt:
        """The prompt, whose receipt says it where the model is shown tools and no call is read."""
        if not call.reply.tools or self._parsers.tools is not None:
            return prompt
        if not self._has_warned:  # said once; the receipts go on
            logger.warning("a request has tools, but calls stay text: set --tool-call-parser NAME")
            self._has_warned = True
        reason = f"{prompt.receipt.reason}; tools not parsed"
        return replace(prompt, receipt=replace(prompt.receipt, reason=reason))

    def _reader(self, call: GenerateCall, prompt: Prompt) -> ReplyReader | None:
        if call.native is not None:
            return None  # /generate hands on the worker's own text
        if not self._parsers.are_needed(call.reply):
            return ReplyReader(self._visible(call, None), None)
        tail = self._tokenizer.decode(
            prompt.ids[-PROMPT_TAIL_LEN:].tolist(), skip_special_tokens=False
        )
        continues = call.template.continue_final_message
        parser = self._parsers.parser(
            call.reply,
            prompt_tail="" if continues else tail,
            history=call.messages or (),
            written=prompt.reply_prefix if continues else "",
        )
        # Marks of calls and reasoning may be special tokens: a parser must see them.
        return ReplyReader(self._visible(call, parser), parser)

    def _visible(self, call: GenerateCall, parser: ReplyParser | None) -> VisibleText:
        skips = call.sampling.skip_special_tokens
        if parser is None or not skips:
            decoder = self._tokenizer.decoder(skip_special_tokens=skips)
            return VisibleText(decoder, call.sampling, kept=self._kept(call, parser))
        kept = self._kept(call, parser)
        return VisibleText(
            self._tokenizer.decoder(skip_special_tokens=False),
            call.sampling,
            hidden=self._stop_tokens(call) - kept,
            kept=kept,
        )

    def _stop_tokens(self, call: GenerateCall) -> frozenset[int]:
        """The control tokens that end a reply: no content, wherever they stand."""
        stops = self._tokenizer.eos_ids.union(call.sampling.stop_token_ids)
        return frozenset(filter(self._tokenizer.is_special, stops))

    def _kept(self, call: GenerateCall, parser: ReplyParser | None) -> frozenset[int]:
        """Those of them that the parser reads."""
        if parser is None or not parser.ends:
            return frozenset()
        spelled = self._tokenizer.token_bytes
        return frozenset(
            token_id
            for token_id in self._stop_tokens(call)
            if spelled(token_id).decode(errors="replace") in parser.ends
        )

    def _file(
        self,
        call: GenerateCall,
        prompt: Prompt,
        output: TokenIds,
        finish: Finish | None,
        epoch: int,
    ) -> None:
        if self._capture == "off" or not len(output) or call.input_ids is not None:
            return  # ids that the client chose are no tokenization of a text
        if prompt.tree_handle is None:
            if not self._cache.counts.lost_paths:  # said once; the receipts and /metrics go on
                logger.warning("a turn is not filed by text: the path before it left the cache")
            self._cache.counts.lost_paths += 1
            return
        self._cache.insert(
            prompt.tree_handle,
            prompt.pieces,
            self._sampled_pieces(output, finish),
            session_id=call.session_id,
            turn_id=call.turn_id,
            epoch=epoch or self._weights.epoch,
        )

    def _sampled_pieces(self, ids: TokenIds, finish: Finish | None) -> list[Piece]:
        """The output, cut where a later text may leave it and the rest still be kept.

        Cuts stand around control tokens, and where the visible text ends before a stop string.
        The pieces are slices of `ids`: the store holds the same memory.
        """
        is_control, output = self._tokenizer.is_control, ids.tolist()
        cuts = {0, len(output), *self._stop_cut(output, finish)}
        for index, token_id in enumerate(output):
            if is_control(token_id):
                cuts |= {index, index + 1}
        bounds = sorted(cuts)
        decoder = self._tokenizer.decoder(skip_special_tokens=False)
        pieces = []
        for start, end in pairwise(bounds):
            text = decoder.push(output[start:end])
            if end == len(output) or is_control(output[end]):
                text += decoder.flush()
            pieces.append(Piece(text, ids[start:end], is_sampled=True))
        return pieces

    def _stop_cut(self, output: list[int], finish: Finish | None) -> set[int]:
        """The token index at which a matched stop string begins, where one begins there."""
        if finish is None or not isinstance(finish.matched, str):
            return set()
        text = self._tokenizer.decode(output, skip_special_tokens=False)
        found = text.find(finish.matched)
        if found < 0:
            return set()
        before = text[:found].encode()
        lengths = [len(self._tokenizer.token_bytes(token_id)) for token_id in output]
        end = int(np.searchsorted(np.cumsum(lengths), len(before))) + 1
        # Compared byte by byte: a broken byte reads as U+FFFD, which has three.
        is_cut = b"".join(map(self._tokenizer.token_bytes, output[:end])) == before
        return {end} if is_cut else set()
