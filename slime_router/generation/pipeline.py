"""The path of one generation: every call of every API passes through here.

    counting ─► admission ─► fetch ─► sessions ─► recording ─► caching ─► context limit ─► worker

Each step is a `with` block. However a generation ends, even if its client leaves, the blocks are
left in reverse order, and each step releases what it holds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from slime_router.errors import WorkerRefused
from slime_router.generation.admission import AdmissionQueue, aborted, party_of
from slime_router.generation.caching import Cacher, Filing
from slime_router.generation.context_limit import ContextLimit
from slime_router.generation.counting import Count, Counting
from slime_router.generation.middleware import Dispatch
from slime_router.generation.recording import OpenTurn, Recorder
from slime_router.generation.sessions import Sessions
from slime_router.journal.fetching import Fetch
from slime_router.replies.reply import Reply
from slime_router.telemetry.meters import Meters
from slime_router.telemetry.request_record import Course
from slime_router.types import GenerateCall, GenerateChunk


class Pipeline:
    """The steps of a generation, in this order; `relay` runs it on a worker."""

    def __init__(
        self,
        *,
        counting: Counting,
        admission: AdmissionQueue,
        sessions: Sessions,
        fetch: Fetch,
        recording: Recorder,
        caching: Cacher,
        context_limit: ContextLimit,
        relay: Dispatch,
        meters: Meters,
    ) -> None:
        self._meters = meters
        self._counting = counting
        self._admission = admission
        self._sessions = sessions
        self._fetch = fetch
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
        reply, course = Reply(), self._meters.course()
        with self._counting.count(call) as count:
            slot = await self._admission.enter(call.asked_as or call.rid, party_of(call))
            if slot is None:
                count.add(chunk := aborted(call))
                yield chunk
                return
            course.admitted()
            with (
                slot,
                await self._fetch.of_call(call) as trouble,
                self._sessions.admit(call) as flight,
                self._recording.turn(flight.call, flight.session, reply, course) as turn,
                await self._caching.open(turn.call, reply, self._context_limit.longest()) as filing,
            ):
                course.prompted()
                sent = self._context_limit.fitted(filing.call)
                turn.trouble = trouble
                reading = _Reading(filing, reply, course, count)
                while True:
                    if call.shortcut is not None:
                        call.shortcut.read, call.shortcut.said = reading.counted, reading.said
                    stream = self._relay(sent) if slot.prepared() else _never_sent(sent)
                    try:
                        async for came in stream:
                            chunks = reading.read(came)
                            if reply.finish is not None:
                                chunks = await _kept(chunks, filing, turn)
                            for chunk in chunks:
                                shown = flight.shown(chunk) if flight.can_end else chunk
                                if shown.finish is not None:
                                    slot.finish()
                                if shown.prompt is None and shown.finish is None:
                                    count.counts.output_tokens += len(shown.output_ids)
                                else:
                                    count.add(shown)
                                yield shown
                                if flight.can_end:
                                    flight.resume()
                            turn.is_read = turn.is_committed
                        break
                    except WorkerRefused as refusal:
                        if reply.has_begun:
                            raise
                        sent = self._context_limit.after_refusal(sent, refusal)
                    finally:
                        if call.shortcut is not None:
                            call.shortcut.close()
                        await stream.aclose()
                turn.is_read = True
                await self._caching.tidy()


async def _never_sent(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
    """What there is of a generation that was aborted while its prompt was made."""
    yield aborted(call)._replace(prompt=call.prompt)


class _Reading:
    """What is done with each chunk that comes from a worker."""

    __slots__ = ("_count", "_course", "_filing", "_reply", "_text_of")

    def __init__(self, filing: Filing, reply: Reply, course: Course, count: Count) -> None:
        self._filing = filing
        self._reply = reply
        self._course = course
        self._count = count
        self._text_of = filing.text_of

    def read(self, came: GenerateChunk) -> Sequence[GenerateChunk]:
        """Reads the chunk into the reply; returns what the client sees of it."""
        if came.output_ids:
            self._course.sampled(came.worker_url, len(came.output_ids))
        chunks = self._filing.read(came)
        for chunk in chunks:
            self._reply.add(chunk)
        return chunks

    def counted(self, came: GenerateChunk) -> Sequence[GenerateChunk]:
        """The same for a chunk that takes the short way: here it is counted, too."""
        self._count.counts.output_tokens += len(came.output_ids)
        return self.read(came)

    def said(self, ids: list[int], logprobs: list[float] | None) -> str | None:
        """The same for tokens that came like those before, if they are plain text, which it is."""
        text = self._text_of(ids)
        if text is not None:
            tokens = len(ids)
            self._count.counts.output_tokens += tokens
            self._course.went_on(tokens)
            self._reply.add_text(ids, logprobs, text)
        return text


async def _kept(
    chunks: Sequence[GenerateChunk], filing: Filing, turn: OpenTurn
) -> Sequence[GenerateChunk]:
    """The last chunks of a reply, which is filed, recorded and durable before they go on."""
    filing.commit()
    turn.commit()
    await turn.endure()
    receipt = turn.reply.receipt
    if receipt is None:
        return chunks
    return [*chunks[:-1], chunks[-1]._replace(receipt=receipt)]
