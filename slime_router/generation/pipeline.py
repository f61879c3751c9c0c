"""The path of one generation: every call of every API passes through here.

    counting ──► admission ──► sessions ──► recording ──► caching ──► context limit ──► worker

Each step is a `with` block. However a generation ends, even if its client leaves, the blocks are
left in reverse order, and each step releases what it holds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from slime_router.errors import WorkerRefused
from slime_router.generation.admission import AdmissionQueue, aborted
from slime_router.generation.caching import Cacher, Filing
from slime_router.generation.context_limit import ContextLimit
from slime_router.generation.metrics import Counting
from slime_router.generation.middleware import Dispatch
from slime_router.generation.recording import OpenTurn, Recorder
from slime_router.generation.sessions import Sessions
from slime_router.replies.reply import Reply
from slime_router.types import GenerateCall, GenerateChunk


class Pipeline:
    """The steps of a generation, in this order; `relay` runs it on a worker."""

    def __init__(
        self,
        *,
        counting: Counting,
        admission: AdmissionQueue,
        sessions: Sessions,
        recording: Recorder,
        caching: Cacher,
        context_limit: ContextLimit,
        relay: Dispatch,
    ) -> None:
        self._counting = counting
        self._admission = admission
        self._sessions = sessions
        self._recording = recording
        self._caching = caching
        self._context_limit = context_limit
        self._relay = relay

    async def generate(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        """Runs `call`; yields chunks as they arrive.

        The reply is recorded and filed before its last chunk is yielded, so that the next turn
        finds it. A reader that asks for more after that has read it all, even if cancelled then.

        Raises:
            RouterError: a step refuses the call, or no worker could answer it.
        """
        reply = Reply()
        with self._counting.count(call) as count:
            slot = await self._admission.enter(call)
            if slot is None:
                count.add(chunk := aborted(call))
                yield chunk
                return
            with (
                slot,
                self._sessions.admit(call) as flight,
                self._recording.turn(flight.call, flight.session, reply) as turn,
                await self._caching.open(turn.call, reply) as filing,
            ):
                sent = self._context_limit.fitted(filing.call)
                while True:
                    stream = self._relay(sent)
                    try:
                        async for came in stream:
                            for chunk in _added(came, filing, turn):
                                flight.show(chunk)
                                if chunk.finish is not None:
                                    slot.finish()
                                count.add(chunk)
                                yield chunk
                                flight.resume()
                            turn.is_read = turn.is_committed
                        break
                    except WorkerRefused as refusal:
                        if reply.has_begun:
                            raise
                        sent = self._context_limit.after_refusal(sent, refusal)
                    finally:
                        await stream.aclose()
                turn.is_read = True
                await self._caching.tidy()


def _added(came: GenerateChunk, filing: Filing, turn: OpenTurn) -> list[GenerateChunk]:
    """A worker's chunk as the client sees it, added to the reply; keeps the reply once finished."""
    chunks = filing.read(came)
    for chunk in chunks:
        turn.reply.add(chunk)
    if turn.reply.finish is not None:
        filing.commit()
        turn.commit(chunks[-1])
    return chunks
