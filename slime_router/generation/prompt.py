"""Prompt making: one call becomes `input_ids` and a receipt, in one of three ways.

    A  extend   held tokens of the turn that the messages continue + the template's suffix
    B  reuse    render everything; the longest cached path up to a sound anchor + the rest, encoded
    C  fresh    render everything, encode everything (B with nothing found)

A requires proof that the template appends (`template/suffix.py`); without it, B is next. In each
case, what a turn holds is compared with what is sent before it counts as reused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, islice
from typing import Literal

import numpy as np

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.cache.radix_tree import Node
from slime_router.errors import BadRequest
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.conversation_key import Key, joined, next_link, root_key
from slime_router.template.layout import Layouts
from slime_router.template.messages import content_text
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import (
    NO_TOKENS,
    GenerateCall,
    History,
    Message,
    Piece,
    Prompt,
    Receipt,
    TokenIds,
)

MAX_LEFT_OUT = 3  # messages that one receipt names


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a call, and the recorded turn that they continue."""

    messages: tuple[Message, ...]
    keys: list[Key]  # of each prefix of the messages
    spellings: list[Key]  # likewise: how their replies are spelled
    turn: Turn | None = None
    reply_index: int = -1  # which message is the turn's reply


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
        self._continued: Counter[str] = Counter()  # turns that are continued by prompts in use
        self._layouts = Layouts()

    async def make(self, call: GenerateCall) -> Prompt:
        """The prompt of a call. The caller must `release` it.

        Raises:
            BadRequest: the template refuses the messages, or the prompt is empty.
        """
        if call.input_ids is not None:
            return self._from_ids(call, call.input_ids)
        if call.messages is None:
            assert call.text is not None
            return await self._from_text(call, call.text)
        talk = self.recognise(call)
        mode = call.history or self._history
        reason = "no recorded turn matches" if talk.turn is None else "the history is rendered"
        has_failed = False
        if talk.turn is not None and mode == "held":
            prompt = await self._extend(call, talk, talk.turn)
            if prompt is not None:
                return prompt
            reason, has_failed = "the template is not shown to append here", True
        date = self._date(talk.turn)
        text = self._template.render(call.messages, call.template, date=date)
        if has_failed:
            reason += _left_out(self._template.left_out(text, call.messages))
        if mode == "held" and not call.template.continue_final_message:
            layout = self._template.layout(text, call.messages, call.template, date)
            self._layouts.note(call.turn_id, layout)
        return await self._from_text(call, text, talk=talk, date=date, reason=reason)

    def release(self, prompt: Prompt) -> None:
        """Unpin what the prompt protects from eviction, and release the turn that it continues."""
        if prompt.tree_handle is not None:
            self._cache.unpin(prompt.tree_handle)
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
        assert call.messages is not None
        whole = joined(call.messages)
        talk = self._recognise(call, tuple(whole))
        if whole is call.messages or (
            talk.turn is not None and _was_joined(call.messages, talk.reply_index)
        ):
            return talk
        return self._recognise(call, call.messages)

    def _recognise(self, call: GenerateCall, messages: tuple[Message, ...]) -> Conversation:
        try:
            keys, spellings, named = self._chain(call, messages)
        except RecursionError as exc:
            raise BadRequest("the request is nested too deeply", param="messages") from exc
        for index in range(len(messages) - 1, -1, -1):
            if str(messages[index]["role"]).lower() != "assistant":
                continue
            turn = named.get(index) or self._store.find(
                keys[index + 1],
                call.session_id,
                taken=self._continued,
                spelling=spellings[index + 1],
            )
            if turn is not None:
                return Conversation(messages, keys, spellings, turn, index)
        return Conversation(messages, keys, spellings)

    def _chain(
        self, call: GenerateCall, messages: tuple[Message, ...]
    ) -> tuple[list[Key], list[Key], dict[int, Turn]]:
        """The key and the spelling of each prefix, and the turns that replies identify by their
        content.

        A reply that identifies its turn enters the chain as it was recorded, however the client
        spells it now.
        """
        with_ids = self._template.findings.prints_call_ids
        keys, spellings = [root_key(call.scope, call.template)], [b""]
        named: dict[int, Turn] = {}
        for index, message in enumerate(messages):
            turn = self._named_turn(message, keys[-1], call)
            if turn is not None:
                named[index] = turn
                keys.append(turn.keys[0])
                spellings.append(turn.spelling)
            else:
                key, spelling = next_link(keys[-1], spellings[-1], message, with_call_ids=with_ids)
                keys.append(key)
                spellings.append(spelling)
        return keys, spellings, named

    def _named_turn(self, message: Message, asked: Key, call: GenerateCall) -> Turn | None:
        """The turn that made the tool calls of this message, if the messages before it match.

        Number and tools of the calls must match: an agent may repair arguments, nothing else.
        """
        calls = message.get("tool_calls")
        handle = message.get("turn") or (calls[0].get("id") if calls else None)
        if not isinstance(handle, str):
            return None
        turn = self._store.of_handle(handle, call.session_id, call.scope)
        if turn is None or turn.asked != asked or not turn.keys:
            return None
        made = tuple((each.get("id"), each["function"]["name"]) for each in calls or ())
        return turn if made == turn.calls else None

    # A: extend a held turn

    async def _extend(self, call: GenerateCall, talk: Conversation, turn: Turn) -> Prompt | None:
        is_open = call.template.continue_final_message
        if is_open and talk.reply_index == len(talk.messages) - 1:
            has_ended = turn.last_id is not None and self._template.ends_turn(turn.last_id)
            text, drop = "", int(has_ended)  # no model continues after its own end
            reason = "continues the open turn"
        else:
            suffix = self._template.suffix(
                talk.messages,
                talk.reply_index,
                call.template,
                last_id=turn.last_id,
                date=_parsed(turn.date),
                layout=self._layouts.get(turn.id),
            )
            if suffix is None:
                return None
            self._layouts.note(call.turn_id, suffix.layout)
            text, drop = suffix.text, suffix.drop
            shift = len(call.messages or ()) - len(talk.messages)
            reason = "continues the turn" + _left_out(index + shift for index in suffix.left_out)
        if drop:
            reason += "; its stop token gives way"
        reason += self._choice(call, talk, turn)
        held = self._store.held_ids(turn.id, turn.held_len - drop)
        node = self._cache.pin_turn(turn.id) if not drop else None
        if node is None:
            reason += "; not filed for look-ups by text"
        self._continued[turn.id] += 1
        try:
            pieces = await self._tokenizer.encode_pieces_async(text, held)
        except BaseException:  # or cancelled while a long text was encoded: unpin
            self._give_back(turn.id)
            if node is not None:
                self._cache.unpin(node)
            raise
        ids, own_ids, pieces = _joined(held, pieces)
        receipt = self._receipt(call, "branched" if drop else "extended", len(held), ids, reason)
        key, spelled, written = self._identity(call, talk)
        return Prompt(
            ids=ids,
            receipt=receipt,
            base=turn.id,
            base_len=len(held),
            date=turn.date,
            pieces=pieces,
            tree_handle=node,
            messages_key=key,
            spelling=spelled,
            reply_prefix=written,
            own_ids=own_ids,
            is_reserved=True,
        )

    def _choice(self, call: GenerateCall, talk: Conversation, turn: Turn) -> str:
        """The receipt's note if several turns read the same."""
        alike = self._store.count_alike(talk.keys[talk.reply_index + 1], call.session_id)
        reason = f"; the newest of {alike} that read the same" if alike > 1 else ""
        if self._continued[turn.id]:
            reason += "; another running request continues it too"
        return reason

    # B and C: the longest cached prefix of a text

    async def _from_text(
        self,
        call: GenerateCall,
        text: str,
        *,
        talk: Conversation | None = None,
        date: datetime | None = None,
        reason: str = "",
    ) -> Prompt:
        if not text:
            raise BadRequest("the prompt is empty", param="messages" if talk else "text")
        match = self._cache.match_prefix(call.scope, text, call.session_id)
        try:
            cached = match.node.path_ids()
            rest = text[match.text_len :]
            pieces = await self._tokenizer.encode_pieces_async(rest, cached)
            ids, own_ids, pieces = _joined(cached, pieces)
            base = self._base(call, match.node, ids)
            status, why = self._verdict(talk, base, match.node)
            key, spelled, written = self._identity(call, talk)
            return Prompt(
                ids=ids,
                receipt=self._receipt(
                    call, status, len(cached), ids, f"{reason}; {why}" if reason else why
                ),
                base=base.id if base else None,
                base_len=base.held_len if base else 0,
                date=date.isoformat() if date else None,
                pieces=pieces,
                tree_handle=match.node,
                messages_key=key,
                spelling=spelled,
                reply_prefix=written,
                own_ids=own_ids,
            )
        except BaseException:  # whatever ends it: unpin
            self._cache.unpin(match.node)
            raise

    def _base(self, call: GenerateCall, node: Node, ids: TokenIds) -> Turn | None:
        """The deepest recorded turn that the prompt starts with, token by token.

        A named session considers only its own turns, or its rows would depend on others.
        """
        if call.session_id is not None:
            return self._store.deepest_prefix(ids, call.session_id, call.scope)
        for step in reversed(node.path()):
            turn = self._store.get(step.turn) if step.turn is not None else None
            if turn is None or turn.held_len != step.end:
                continue
            if np.array_equal(self._store.held_ids(turn.id), ids[: step.end]):
                return turn
        return None

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

    def _from_ids(self, call: GenerateCall, ids: TokenIds) -> Prompt:
        if not len(ids):
            raise BadRequest("the prompt is empty", param="input_ids")
        base = None
        if call.session_id is not None:
            base = self._store.deepest_prefix(ids, call.session_id, call.scope)
        if base is None:
            receipt = self._receipt(call, "fresh", 0, ids, "the client gave token ids")
            return Prompt(ids=ids, receipt=receipt)
        why = "the client's token ids begin with a whole turn"
        receipt = self._receipt(call, "extended", base.held_len, ids, why)
        return Prompt(ids=ids, receipt=receipt, base=base.id, base_len=base.held_len)

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


def _joined(
    head: TokenIds, pieces: tuple[Piece, ...]
) -> tuple[TokenIds, TokenIds, tuple[Piece, ...]]:
    """All ids, those of the pieces, and the pieces as slices of these.

    The tree keeps the slices and the store the whole array, so they share memory.
    """
    own: TokenIds = np.concatenate([piece.ids for piece in pieces]) if pieces else NO_TOKENS
    ids: TokenIds = np.concatenate((head, own))
    own.setflags(write=False)
    ids.setflags(write=False)
    ends = accumulate(len(piece.ids) for piece in pieces)
    slices = tuple(
        Piece(piece.text, own[end - len(piece.ids) : end], piece.is_sampled)
        for piece, end in zip(pieces, ends, strict=True)
    )
    return ids, own, slices


def _left_out(indexes: Iterable[int]) -> str:
    """The receipt's note on messages that the template did not print."""
    notes = (f"; the template leaves out messages[{index}]" for index in indexes)
    return "".join(islice(notes, MAX_LEFT_OUT))


def _was_joined(messages: tuple[Message, ...], index: int) -> bool:
    """Whether one of the first `index + 1` joined messages was made of two of `messages`."""
    return len(joined(messages[: index + 2])) < len(messages[: index + 2])


def _parsed(date: str | None) -> datetime | None:
    return datetime.fromisoformat(date) if date else None
