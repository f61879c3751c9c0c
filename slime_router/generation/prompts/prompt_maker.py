"""Prompt making: one call becomes `input_ids` and a receipt, in one of three ways.

    A  extend   held tokens of the turn that the messages continue + the template's suffix
    B  reuse    render everything; the longest cached path up to a sound anchor + the rest, encoded
    C  fresh    render everything, encode everything (B with nothing found)

A requires proof that the template appends (`template/suffix.py`); without it, B is next. In each
case, what a turn holds is compared with what is sent before it counts as reused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property, partial
from typing import Literal

import numpy as np

from slime_router.cache.node import Node
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.choices import History
from slime_router.errors import BadRequest
from slime_router.generation.admission import party_of
from slime_router.generation.prompts.made_prompt import MadePrompt, joined
from slime_router.generation.prompts.pictures import PictureTokens
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.conversation_key import Key
from slime_router.template.layout import Layouts
from slime_router.template.messages import content_text
from slime_router.template.suffix import Question, Suffix
from slime_router.template.transcript import Transcripts
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.recognition import Conversation, Recogniser
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import GenerateCall, Message, Receipt, TokenIds
from slime_router.values import replace
from slime_router.waiting.turnstile import LONG_TALK, Turnstile, others_run


class PromptMaker:
    """Makes prompts, using the template, the cache and the store."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        cache: PrefixCache,
        store: TrajectoryStore,
        *,
        history: History,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._cache = cache
        self._store = store
        self._history = history
        self._now = now
        self._recogniser = Recogniser(template, store)
        self._continued: Counter[str] = Counter()  # turns that are continued by prompts in use
        self._layouts = Layouts()
        self._turnstile = Turnstile()
        self.pictures = PictureTokens(tokenizer, template.pictures)

    @cached_property
    def _transcripts(self) -> Transcripts:
        """Made when they are needed first: the template's source takes some time to read."""
        return self._template.transcripts()

    async def make(self, call: GenerateCall, context_len: int | None = None) -> MadePrompt:
        """The prompt of a call. The caller must `release` it.

        Raises:
            BadRequest: the template refuses the messages, or the prompt is empty.
            ContextLengthExceeded: it can be seen without encoding it that it does not fit.
        """
        if call.input_ids is not None:
            return self._from_ids(call, call.input_ids)
        if call.messages is None:
            assert call.text is not None
            async with self._turnstile.passing((call.text,), party_of(call)):
                return await self._from_text(call, call.text, context_len)
        is_long = len(call.messages) >= LONG_TALK
        if is_long:
            await others_run()
        talk = self.recognise(call)
        failed = ""
        if talk.turn is not None and (call.history or self._history) == "held":
            if (prompt := await self._extend(call, talk, talk.turn, context_len)) is not None:
                return prompt
            failed = "the template is not shown to append here"
        async with self._turnstile.passing(call.messages, party_of(call)):
            if is_long:
                await others_run()
            return await self._of_all(call, talk, failed, context_len)

    async def _of_all(
        self, call: GenerateCall, talk: Conversation, failed: str, context_len: int | None
    ) -> MadePrompt:
        """The prompt of a call whose messages are all rendered, as to extend a turn `failed`."""
        assert call.messages is not None
        mode = call.history or self._history
        reason = "no recorded turn matches" if talk.turn is None else "the history is rendered"
        reason = (failed or reason) + talk.disorder_note
        date = self._date(talk.turn)
        messages = self._template.parts.whole(call.messages)
        if mode == "template" or failed:
            text, notes, start, same_len = self._rendered(call, talk, messages, date)
        else:
            start = same_len = 0
            text, notes = self._template.render_noted(messages, call.template, date=date)
        if mode == "held" and not call.template.continue_final_message:
            is_long = len(messages) >= LONG_TALK
            if is_long:
                await others_run()
            layout = self._template.layout(text, messages, call.template, date)
            self._layouts.note(call.turn_id, layout)
            if is_long:
                await others_run()
        first = 0 if failed else talk.new_index(messages)
        left_out = self._template.left_out(text, messages, first, start, call.template, date)
        prompt = await self._from_text(
            call,
            self.pictures.shown(call, text),
            context_len,
            talk=talk,
            date=date,
            reason=reason,
            same_len=same_len,
        )
        if not (notes or left_out):
            return prompt
        receipt = replace(prompt.receipt, notes=(*prompt.receipt.notes, *notes))
        return replace(prompt, receipt=receipt, left_out=left_out)

    def _rendered(
        self,
        call: GenerateCall,
        talk: Conversation,
        messages: Sequence[Message],
        date: datetime | None,
    ) -> tuple[str, tuple[str, ...], int, int]:
        """The text, notes as `render_noted` has them, what it begins at, and how much was sent."""
        asked = Question(messages, len(messages), call.template, date)
        before = None if talk.turn is None else talk.turn.id
        made = self._transcripts.continued(asked, before)
        notes: tuple[str, ...] = ()
        if made is None:
            text, notes = self._template.render_noted(messages, call.template, date=date)
            if notes:
                return text, notes, 0, 0
            made = self._transcripts.of_whole(asked, text, before, talk.new_index(messages) - 1)
            if made is None:
                return text, notes, 0, 0
        self._transcripts.note(call.turn_id, made)
        return made.text, notes, made.start, made.same_len

    def release(self, prompt: MadePrompt) -> None:
        """Unpin what the prompt protects from eviction, and release the turn that it continues."""
        if prompt.node is not None:
            self._cache.unpin(prompt.node)
        if prompt.base is not None and prompt.is_reserved:
            self._give_back(prompt.base)

    def _give_back(self, turn_id: str) -> None:
        self._continued[turn_id] -= 1
        if not self._continued[turn_id]:
            del self._continued[turn_id]

    def recognise(self, call: GenerateCall) -> Conversation:
        """The deepest recorded turn whose messages and reply are the start of the call's messages.

        Of several that read the same, the newest that no running request continues; else the
        newest.
        """
        return self._recogniser.recognise(call, taken=self._continued)

    # A: extend a held turn

    async def _extend(
        self, call: GenerateCall, talk: Conversation, turn: Turn, context_len: int | None
    ) -> MadePrompt | None:
        is_open = call.template.continue_final_message
        if is_open and talk.reply_index == len(talk.messages) - 1:
            has_ended = turn.last_id is not None and self._template.ends_turn(turn.last_id)
            text, drop = "", int(has_ended)  # no model continues after its own end
            left_out: tuple[str, ...] = ()
            reason = "continues the open turn"
        else:
            suffix = await self._suffix(call, talk, turn)
            if suffix is None or self._store.get(turn.id) is None:
                return None
            self._layouts.note(call.turn_id, suffix.layout)
            text, drop = self.pictures.shown(call, suffix.text), suffix.drop
            reason, left_out = "continues the turn", self._unsaid(call, talk, suffix)
        if drop:
            reason += "; its stop token gives way"
        reason += self._choice(call, talk, turn)
        held = self._store.held_ids(turn.id, turn.held_len - drop)
        node = self._cache.pin_turn(turn.id) if not drop else None
        if node is None:
            reason += "; not filed for look-ups by text"
        self._continued[turn.id] += 1
        try:
            pieces = await self.pictures.encode(text, held, context_len)
            ids, own_ids, pieces = await joined(held, pieces)
            self.pictures.check_places(call, ids)
        except BaseException:  # or cancelled while a long text was encoded: unpin
            self._give_back(turn.id)
            if node is not None:
                self._cache.unpin(node)
            raise
        receipt = self._receipt(call, "branched" if drop else "extended", len(held), ids, reason)
        key, spelled, written = self._identity(call, talk)
        return MadePrompt(
            ids=ids,
            receipt=receipt,
            base=turn.id,
            base_len=len(held),
            date=turn.date,
            pieces=pieces,
            node=node,
            messages_key=key,
            spelling=spelled,
            reply_prefix=written,
            own_ids=own_ids,
            conversation=talk.name_of(call),
            is_reserved=True,
            left_out=left_out,
            new_messages=talk.new_after(turn),
        )

    async def _suffix(self, call: GenerateCall, talk: Conversation, turn: Turn) -> Suffix | None:
        """What continues the turn, which may be dropped meanwhile; to render all takes a thread."""
        messages, index, layout = talk.messages, talk.reply_index, self._layouts.get(turn.id)
        find = partial(self._template.suffix, messages, index, call.template)
        find = partial(find, sampled=turn.output_ids, date=_parsed(turn.date), layout=layout)
        if (near := find(is_near=True)) is not None or len(messages) < LONG_TALK:
            return near or find(is_near=False)
        self._continued[turn.id] += 1
        try:
            return await asyncio.to_thread(find, is_near=False)
        finally:
            self._give_back(turn.id)

    def _unsaid(self, call: GenerateCall, talk: Conversation, suffix: Suffix) -> tuple[str, ...]:
        """What of the messages after the turn's reply is not in the suffix, by its name."""
        messages = call.messages or ()
        fields = self._template.left_out_fields(messages, talk.new_index(messages), call.template)
        shift = len(messages) - len(talk.messages)
        return (*[f"messages[{index + shift}]" for index in suffix.left_out], *fields)

    def _choice(self, call: GenerateCall, talk: Conversation, turn: Turn) -> str:
        """The receipt's note if several turns read the same."""
        alike = self._store.count_alike(talk.keys[talk.reply_index + 1], call.session_id)
        reason = f"; the newest of {alike} that read the same" if alike > 1 else ""
        if self._continued[turn.id]:
            reason += "; another running request continues it too"
        return reason + talk.order_note + talk.disorder_note

    # B and C: the longest cached prefix of a text

    async def _from_text(
        self,
        call: GenerateCall,
        text: str,
        context_len: int | None,
        *,
        talk: Conversation | None = None,
        date: datetime | None = None,
        reason: str = "",
        same_len: int = 0,
    ) -> MadePrompt:
        if not text:
            raise BadRequest("the prompt is empty", param="messages" if talk else "text")
        turn = None
        if talk is not None and talk.turn is not None:
            turn = self._store.get(talk.turn.id)  # it may be gone by now
        ending = None if turn is None else self._cache.turn_node(turn.id)
        match = self._cache.match_prefix(call.scope, text, call.session_id, ending, same_len)
        try:
            if turn is not None and match.node is ending and ending.end == turn.held_len:
                cached = self._store.held_ids(turn.id)
            else:
                cached = match.node.path_ids()
            rest = text[match.text_len :]
            pieces = await self.pictures.encode(rest, cached, context_len)
            ids, own_ids, pieces = await joined(cached, pieces)
            self.pictures.check_places(call, ids)
            base = self._base(call, turn, match.node, ids)
            status, why = self._verdict(talk, base, match.node)
            reason = f"{reason}; {why}" if reason else why
            key, spelled, written = self._identity(call, talk)
            return MadePrompt(
                ids=ids,
                receipt=self._receipt(call, status, len(cached), ids, reason),
                base=base.id if base else None,
                base_len=base.held_len if base else 0,
                date=date.isoformat() if date else None,
                pieces=pieces,
                node=match.node,
                messages_key=key,
                spelling=spelled,
                reply_prefix=written,
                own_ids=own_ids,
                conversation="" if talk is None else talk.name_of(call),
                new_messages=None if talk is None else talk.new_after(base),
            )
        except BaseException:  # whatever ends it: unpin
            self._cache.unpin(match.node)
            raise

    def _base(
        self, call: GenerateCall, known: Turn | None, node: Node, ids: TokenIds
    ) -> Turn | None:
        """The deepest recorded turn that the prompt starts with, token by token.

        A named session considers only its own turns, or its rows would depend on others; where
        there are pictures, of which tokens say nothing, only the one `known` by its messages.
        """
        if call.session_id is not None:
            if not call.pictures:
                return self._store.deepest_prefix(ids, call.session_id, call.scope)
            return known if known is not None and self._begins(ids, known) else None
        step: Node | None = node
        while step is not None:
            turn = self._store.get(step.turn) if step.turn else None
            if turn is not None and turn.held_len == step.end and self._begins(ids, turn):
                return turn
            step = step.parent
        return None

    def _begins(self, ids: TokenIds, turn: Turn) -> bool:
        held = self._store.held_ids(turn.id)
        return np.array_equal(held, ids[: len(held)])

    @staticmethod
    def _verdict(
        talk: Conversation | None, base: Turn | None, node: Node
    ) -> tuple[Literal["extended", "branched", "fresh"], str]:
        known = talk.turn if talk is not None else None
        if base is not None and (known is None or known.id == base.id):
            return "extended", "begins with a whole turn"
        if known is not None or base is not None or node.owners is not None:
            return "branched", "leaves the held tokens before the end of the turn"
        return "fresh", "shares cached text" if node.end else "nothing cached"

    def _from_ids(self, call: GenerateCall, ids: TokenIds) -> MadePrompt:
        if not len(ids):
            raise BadRequest("the prompt is empty", param="input_ids")
        base = None
        if call.session_id is not None:
            base = self._store.deepest_prefix(ids, call.session_id, call.scope)
        if base is None:
            receipt = self._receipt(call, "fresh", 0, ids, "the client gave token ids")
            is_own = ids.base is None and not ids.flags.writeable
            return MadePrompt(ids=ids, receipt=receipt, own_ids=ids if is_own else None)
        why = "the client's token ids begin with a whole turn"
        receipt = self._receipt(call, "extended", base.held_len, ids, why)
        return MadePrompt(ids=ids, receipt=receipt, base=base.id, base_len=base.held_len)

    # Shared

    def _date(self, turn: Turn | None) -> datetime | None:
        """The date to render with: the first turn's, or the prefix would change at midnight."""
        if not self._template.findings.prints_date:
            return None
        return _parsed(turn.date if turn else None) or self._now()

    @staticmethod
    def _identity(call: GenerateCall, talk: Conversation | None) -> tuple[Key | None, Key, str]:
        """The key and the spelling to file the reply under, and the part that the client wrote."""
        if talk is None:
            return None, b"", ""
        if call.template.continue_final_message:
            written = content_text(talk.messages[-1].get("content"))
            return talk.keys[-2], talk.spellings[-2], written
        return talk.keys[-1], talk.spellings[-1], ""

    @staticmethod
    def _receipt(
        call: GenerateCall,
        status: Literal["extended", "branched", "fresh"],
        reused: int,
        ids: TokenIds,
        reason: str,
    ) -> Receipt:
        return Receipt(status, reused, len(ids) - reused, call.turn_id, reason)


def _parsed(date: str | None) -> datetime | None:
    return datetime.fromisoformat(date) if date else None
