"""Caching: makes the prompt of a generation, and files prompt and output in the radix tree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import compress, pairwise
from types import TracebackType

import numpy as np

from slime_router.auth.caller import is_of_root
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.choices import Capture
from slime_router.errors import BadRequest
from slime_router.generation.prompts.made_prompt import MadePrompt
from slime_router.generation.prompts.pictures import PictureProof
from slime_router.generation.prompts.prompt_maker import PromptMaker
from slime_router.generation.weight_versions import WeightVersions
from slime_router.replies.parser import ReplyParser, ReplyReader
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.reply import Reply
from slime_router.tokens.stop_strings import VisibleText
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Piece,
    TokenIds,
)
from slime_router.values import replace

logger = logging.getLogger(__name__)

MAX_LEFT_OUT = 3  # names in one receipt
PROMPT_TAIL_LEN = 128  # tokens or characters; a template opens the reasoning right at the end


class RadixTreeMiddleware:
    """The name of this step in `--middleware-paths`.

    The step is built in: naming it, by this path or the one in slime's guide, adds nothing.
    """


class Filing:
    """One generation as the cache sees it: its prompt, and the output to be filed after it.

    On leaving the block, whatever was sampled of a reply that was cut short is filed too, and the
    prompt is released.
    """

    __slots__ = (
        "_cacher", "_epoch", "_has_to_prove", "_prompt", "_reader", "_reply", "call", "text_of"
    )  # fmt: skip

    def __init__(
        self,
        cacher: Cacher,
        call: GenerateCall,
        prompt: MadePrompt,
        reply: Reply,
        reader: ReplyReader | None,
    ) -> None:
        self.call = call  # with its prompt
        self._cacher = cacher
        self._prompt = prompt
        self._reply = reply
        self._reader = reader
        # The text of tokens that came like those before, see `ReplyReader`.
        self.text_of: Callable[[list[int]], str | None] = (
            (lambda _: None) if reader is None else reader.text_of
        )
        self._epoch = 0  # the newest one of the weights that sampled it
        self._has_to_prove = bool(call.pictures)  # that a worker has kept the rest of the prompt

    def __enter__(self) -> Filing:
        return self

    def read(self, chunk: GenerateChunk) -> Sequence[GenerateChunk]:
        """What the client sees of a chunk, in one or more parts; only the first has the prompt."""
        version = chunk.weight_version
        if version is not None and version != self._reply.versions.last:
            self._epoch = max(self._epoch, self._cacher.weights.note(version))
        prompt = self._prompt if self._reply.prompt is None else None
        if self._has_to_prove and chunk.output_ids:
            self._has_to_prove = False
            proof, pictures = self._cacher.proof, self.call.pictures
            self._reply.pictures = proof.placed(self._prompt.ids, pictures)
            self._reply.unheld = proof.fault(self._prompt.ids, pictures, chunk)
        if chunk.prompt is not prompt:
            chunk = chunk._replace(prompt=prompt)
        return (chunk,) if self._reader is None else self._reader.read(chunk)

    def commit(self) -> None:
        """Files the whole reply before its end is passed on, so that the next turn finds it."""
        if self._reply.unheld:
            return
        self._cacher.file(self.call, self._prompt, self._reply, self._epoch)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._reply.finish is None:  # cut short: what was sampled was sampled
                self.commit()
        finally:
            self._cacher.maker.release(self._prompt)


def _check_prefix(prompt: MadePrompt, prefix: TokenIds) -> None:
    """Raises BadRequest where another prompt was made than the one that the client continues."""
    known = prompt.ids[: len(prefix)]
    if np.array_equal(known, prefix):
        return
    departs = known != prefix[: len(known)]
    same = int(departs.argmax()) if departs.any() else len(known)
    raise BadRequest(
        f"The prompt departs from 'required_prefix_token_ids' at token {same} of {len(prefix)}:"
        f" {prompt.receipt.reason}.",
        param="required_prefix_token_ids",
    )


class Cacher:
    """Makes prompts, decodes replies for chat clients, and inserts both into the tree."""

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
        self.maker = maker
        self.weights = weights
        self.kv_name: Callable[[str], str] = lambda _: ""  # what workers call a conversation
        self._parsers = parsers
        self._cache = cache
        self._tokenizer = tokenizer
        self._capture = capture
        self._has_warned = False  # of tools whose calls stay text
        self.left_out = 0  # prompts without something that the client sent
        self.proof = PictureProof(maker.pictures.token_id)

    async def open(
        self, call: GenerateCall, reply: Reply, context_len: int | None = None
    ) -> Filing:
        """The prompt of `call`, and whatever is added to `reply`, to be filed after it.

        Raises:
            BadRequest: the template refuses the messages, or the prompt is empty or begins with
                other tokens than the client knows of.
            ContextLengthExceeded: a long text is not worth encoding, as it does not fit.
        """
        await self.tidy()  # an earlier one may have been cut short between filing and this
        made = await self.maker.make(call, context_len)
        try:
            return self._filing(call, self._noted(call, made), reply)
        except Exception:  # whatever it is: what the prompt keeps must go
            self.maker.release(made)
            raise

    def _filing(self, call: GenerateCall, prompt: MadePrompt, reply: Reply) -> Filing:
        if call.prefix_ids is not None:
            _check_prefix(prompt, call.prefix_ids)
        reader = self._reader(call, prompt)
        if self._capture == "off":  # nothing is filed, and nobody will find it again
            prompt = replace(prompt, pieces=(), conversation="")
        kv_session = call.kv_session
        if is_of_root(prompt.conversation):
            kv_session = self.kv_name(prompt.conversation)
        thinks_first = self._thinks_first(call, prompt)
        sent = replace(call, prompt=prompt, kv_session=kv_session, thinks_first=thinks_first)
        return Filing(self, sent, prompt, reply, reader)

    async def tidy(self) -> None:
        """Drops what exceeds the tree's budget."""
        await self._cache.enforce_budget()

    def _noted(self, call: GenerateCall, prompt: MadePrompt) -> MadePrompt:
        """The prompt; its receipt has the call's notes, and one if calls of tools stay text."""
        if call.notes:
            receipt = prompt.receipt
            notes = (*receipt.notes, *call.notes)
            prompt = replace(prompt, receipt=replace(receipt, notes=notes))
        if prompt.left_out:
            prompt = self._with_left_out(prompt)
        if not call.reply.tools or self._parsers.tools is not None:
            return prompt
        if not self._has_warned:  # warn once; the receipts always note it
            logger.warning("a request has tools, but calls stay text: set --tool-call-parser NAME")
            self._has_warned = True
        reason = f"{prompt.receipt.reason}; tools not parsed"
        return replace(prompt, receipt=replace(prompt.receipt, reason=reason))

    def _with_left_out(self, prompt: MadePrompt) -> MadePrompt:
        """The prompt; its receipt names what the template does not print."""
        if not self.left_out:  # warn once, too
            logger.warning("the template leaves out %s of a request", prompt.left_out[0])
        self.left_out += 1
        names = [*prompt.left_out[:MAX_LEFT_OUT]]
        if len(prompt.left_out) > MAX_LEFT_OUT:
            names.append("more")
        reason = "".join(f"; the template leaves out {name}" for name in names)
        receipt = replace(prompt.receipt, reason=prompt.receipt.reason + reason)
        return replace(prompt, receipt=receipt)

    def _reader(self, call: GenerateCall, prompt: MadePrompt) -> ReplyReader | None:
        if call.is_passed_on:
            return None  # /generate passes on the worker's own text
        if not self._parsers.are_needed(call.reply):
            return ReplyReader(self._visible(call, None), None)
        tail, written = self._begun(call, prompt)
        parser = self._parsers.parser(
            call.reply, prompt_tail=tail, history=call.messages or (), written=written
        )
        # The markers of calls and reasoning may be special tokens: a parser must see them.
        return ReplyReader(self._visible(call, parser), parser)

    def _begun(self, call: GenerateCall, prompt: MadePrompt) -> tuple[str, str]:
        """The end of the prompt's text, or what there is of the reply already: one is empty.

        A reply that is continued before it had content may have stopped in its reasoning.
        """
        if call.template.continue_final_message:
            written = prompt.reply_prefix or self._open_turn(prompt)
            return "", written if prompt.reply_prefix or self._parsers.has_marks(written) else ""
        return self._tail(prompt), ""

    def _tail(self, prompt: MadePrompt) -> str:
        """The end of the prompt's text, or all of it; decoded where its text is not at hand."""
        text = ""
        for piece in reversed(prompt.pieces):
            text = piece.text + text
            if len(text) >= PROMPT_TAIL_LEN:
                return text
        if text and not prompt.receipt.reused:
            return text
        tail = prompt.ids[-PROMPT_TAIL_LEN:].tolist()
        return self._tokenizer.decode(tail, skip_special_tokens=False)

    def _open_turn(self, prompt: MadePrompt) -> str:
        """The text of a prompt since a turn ended in it."""
        [ends] = np.nonzero(np.isin(prompt.ids, list(self._tokenizer.eos_ids)))
        tail = prompt.ids[int(ends[-1]) + 1 if len(ends) else 0 :].tolist()
        return self._tokenizer.decode(tail, skip_special_tokens=False)

    def _thinks_first(self, call: GenerateCall, prompt: MadePrompt) -> bool:
        """Whether something of a chat waits at the worker until the reply has reasoned."""
        waits = call.sampling.grammar is not None or "max_thinking_tokens" in call.asked
        if call.messages is None or not waits:
            return False
        tail, written = self._begun(call, prompt)
        kwargs = call.template.kwargs
        return self._parsers.thinks_first(kwargs, prompt_tail=tail, written=written)

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
        """The control tokens that end a reply: never content, wherever they occur."""
        stops = self._tokenizer.eos_ids.union(call.sampling.stop_token_ids)
        return frozenset(filter(self._tokenizer.is_special, stops))

    def _kept(self, call: GenerateCall, parser: ReplyParser | None) -> frozenset[int]:
        """The stop tokens that the parser reads."""
        if parser is None or not parser.ends:
            return frozenset()
        spelled = self._tokenizer.token_bytes
        return frozenset(
            token_id
            for token_id in self._stop_tokens(call)
            if spelled(token_id).decode(errors="replace") in parser.ends
        )

    def file(self, call: GenerateCall, prompt: MadePrompt, reply: Reply, epoch: int) -> None:
        """Puts the prompt and the reply into the tree; `epoch` is 0 if no version was named.

        A fault never fails the reply.
        """
        try:
            self._file(call, prompt, reply, epoch)
        except Exception:  # whatever it is: the client has its reply anyway
            self._cache.counts.failed_insertions += 1
            logger.exception("turn %s is not filed by text", call.turn_id)
            reply.note("not cached: the router failed, its log says why")

    def _file(self, call: GenerateCall, prompt: MadePrompt, reply: Reply, epoch: int) -> None:
        if self._capture == "off" or not reply.output_ids or call.input_ids is not None:
            return  # ids chosen by the client are not the tokenization of a text
        if prompt.node is None:
            if not self._cache.counts.lost_paths:  # warn once; receipts and /metrics go on
                logger.warning("a turn is not filed by text: the path before it left the cache")
            self._cache.counts.lost_paths += 1
            return
        self._cache.insert(
            prompt.node,
            prompt.pieces,
            self._sampled_pieces(reply),
            session_id=call.session_id,
            turn_id=call.turn_id,
            epoch=epoch or self.weights.epoch,
        )

    def _sampled_pieces(self, reply: Reply) -> list[Piece]:
        """The output, cut where a later text may depart from it, to reuse what precedes the cut.

        Cuts are around control tokens, and where the visible text ends before a stop string.
        The pieces are slices of `reply.output`, sharing memory with the store.
        """
        controls, ids, output = self._tokenizer.control_ids, reply.output, reply.output_ids
        cuts = {0, len(output), *self._stop_cut(output, reply.finish)}
        for index in compress(range(len(output)), map(controls.__contains__, output)):
            cuts |= {index, index + 1}
        bounds = sorted(cuts)
        decoder = self._tokenizer.decoder(skip_special_tokens=False)
        pieces = []
        for start, end in pairwise(bounds):
            text = decoder.push(output[start:end])
            if end == len(output) or output[end] in controls:
                text += decoder.flush()
            pieces.append(Piece(text, ids[start:end], is_sampled=True))
        return pieces

    def _stop_cut(self, output: list[int], finish: Finish | None) -> set[int]:
        """The token index at which a matched stop string starts, if it starts at a token."""
        if finish is None or not isinstance(finish.matched, str):
            return set()
        text = self._tokenizer.decode(output, skip_special_tokens=False)
        found = text.find(finish.matched)
        if found < 0:
            return set()
        before = text[:found].encode()
        lengths = [len(self._tokenizer.token_bytes(token_id)) for token_id in output]
        end = int(np.searchsorted(np.cumsum(lengths), len(before))) + 1
        # Compared as bytes: a broken byte decodes to U+FFFD, which is three bytes.
        is_cut = b"".join(map(self._tokenizer.token_bytes, output[:end])) == before
        return {end} if is_cut else set()
