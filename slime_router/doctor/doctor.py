"""Diagnosis: do held tokens agree with what a router that forwards text would send?

Such a router renders the messages as they came and encodes the whole: no history, today's date.
This compares the two and explains; it reads the store and writes nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from slime_router.auth.caller import shown
from slime_router.doctor.alignment import common_len
from slime_router.doctor.drift import Drift, compare
from slime_router.errors import BadRequest, NotFound
from slime_router.generation.prompts.prompt_maker import PromptMaker
from slime_router.generation.sessions import in_session
from slime_router.journal.fetching import Fetch
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, TokenIds

INLINE_TOKENS = 8_000  # fewer are compared in some milliseconds: not worth a thread


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, and of which recorded turn; None where the tokens were given."""

    drift: Drift
    turn_id: str | None = None


class Doctor:
    """Compares held tokens with the plain tokenization of a conversation or text."""

    def __init__(
        self,
        maker: PromptMaker,
        store: TrajectoryStore,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        fetch: Fetch,
    ) -> None:
        self._maker = maker
        self._store = store
        self._tokenizer = tokenizer
        self._template = template
        self._fetch = fetch

    @property
    def vocab_size(self) -> int:
        """Token ids are in `[0, vocab_size)`."""
        return self._tokenizer.vocab_size

    async def of_tokens(self, held: TokenIds, call: GenerateCall) -> Diagnosis:
        """`held` beside the messages or the text of `call`.

        Raises:
            BadRequest: the template refuses the messages, or makes no text from them.
        """
        return await diagnose(held, call, self._tokenizer, self._template)

    async def of_session(self, session_id: str, call: GenerateCall) -> Diagnosis:
        """A turn of the session beside the messages or the text of `call`, which names it too.

        It is the turn that the messages continue; where none is recognised, the first of those
        that share the most tokens.

        Raises:
            NotFound: there is no such session, or it holds no turns.
            BadRequest: as `of_tokens`.
        """
        with await self._fetch.of_session(session_id):
            return await self._of_session(session_id, in_session(call, self._store))

    async def _of_session(self, session_id: str, call: GenerateCall) -> Diagnosis:
        self._store.sessions.get(session_id)  # before any work is done
        rendered = await _plain_ids(call, self._tokenizer, self._template)
        turn_id = self._recognised(call) or self._closest(session_id, rendered)
        held = self._store.held_ids(turn_id)
        return Diagnosis(await _compare(held, rendered, self._tokenizer, self._template), turn_id)

    def _recognised(self, call: GenerateCall) -> str | None:
        turn = self._maker.recognise(call).turn if call.messages is not None else None
        return None if turn is None else turn.id

    def _closest(self, session_id: str, ids: TokenIds) -> str:
        """Each turn is compared from where its base ends, at the cost of its own tokens."""
        shared: dict[str, int] = {}
        for turn_id in self._store.sessions.get(session_id).turns:
            turn = self._store.get(turn_id)
            if turn is None:
                continue
            before = shared.get(turn.base) if turn.base is not None else 0
            if before is None:  # its base no longer belongs to anybody
                shared[turn_id] = common_len(self._store.held_ids(turn_id), ids)
            elif before < turn.base_len:
                shared[turn_id] = before
            else:
                own = np.concatenate((turn.prompt_ids, turn.output_ids))
                shared[turn_id] = turn.base_len + common_len(own, ids[turn.base_len :])
        if not shared:
            raise NotFound(f"The session '{shown(session_id)}' holds no turns.", param="session_id")
        return max(shared, key=lambda turn_id: shared[turn_id])


async def diagnose(
    held: TokenIds, call: GenerateCall, tokenizer: Tokenizer, template: ChatTemplate
) -> Diagnosis:
    """`held` beside the messages or the text of `call`; no store is needed for that.

    Raises:
        BadRequest: the template refuses the messages, or makes no text from them.
    """
    rendered = await _plain_ids(call, tokenizer, template)
    return Diagnosis(await _compare(held, rendered, tokenizer, template))


async def _plain_ids(call: GenerateCall, tokenizer: Tokenizer, template: ChatTemplate) -> TokenIds:
    text = call.text or ""
    if call.messages is not None:
        text = template.render(call.messages, call.template)
    if not text:
        raise BadRequest("there is no text to compare with", param="messages")
    pieces = await tokenizer.encode_pieces_async(text)
    return np.concatenate([piece.ids for piece in pieces])


async def _compare(
    held: TokenIds, rendered: TokenIds, tokenizer: Tokenizer, template: ChatTemplate
) -> Drift:
    def work() -> Drift:
        return compare(held, rendered, tokenizer, ends_turn=template.ends_turn)

    if len(held) + len(rendered) < INLINE_TOKENS:
        return work()
    return await asyncio.to_thread(work)
