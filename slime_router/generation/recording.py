"""Recording: every generation becomes a turn, completely or not at all.

A turn contains what was sent to the worker and what was sampled; no plug-in can change that.

A turn is recorded before its last chunk is passed on, so that the next turn finds it. If the client
leaves before it has read that chunk, the turn stays, marked undelivered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np

from slime_router.archive.shared import SharedArchive
from slime_router.choices import Capture
from slime_router.errors import Conflict, NotDurable
from slime_router.generation.reports import account_of, outcome_of
from slime_router.replies.reply import Reply
from slime_router.telemetry.meters import Meters
from slime_router.telemetry.request_record import Course
from slime_router.template.conversation_key import reply_links
from slime_router.trajectory.measures.distribution import Distribution, distribution
from slime_router.trajectory.measures.top_logprobs import TopLogprobs, of_nested
from slime_router.trajectory.routed_experts import RoutedExperts, decode, decode_whole
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Logprobs, Turn, logprob_array
from slime_router.types import Finish, GenerateCall, Message, Prompt, WeightVersion, token_ids
from slime_router.values import replace

logger = logging.getLogger(__name__)

_LEFT = Finish("abort", message="the generation was cut short")


@dataclass(slots=True)
class RecordingCounts:
    """What recording has done since the start."""

    turns: int = 0
    undelivered: int = 0
    empty: int = 0  # generations without a single token: nothing to record
    missing_logprobs: int = 0  # tokens
    rebased: int = 0  # turns whose base was dropped meanwhile: recorded with all of their prompt
    after_close: int = 0  # turns of a session that another router had closed: kept
    late: int = 0  # turns of a session that was closed or deleted meanwhile: not recorded
    hidden_calls: int = 0  # tool calls not shown to clients that asked for only one
    bad_routed_experts: int = 0  # turns whose routed experts could not be read
    truncated_sampling: int = 0  # turns sampled from an unknown part of the vocabulary
    not_durable: int = 0  # turns whose replies went out, or failed, without being in the journal
    failed: int = 0  # turns that a fault of the router kept from being recorded


class OpenTurn:
    """A generation that becomes a turn: at the latest on leaving the block, even if cut short."""

    __slots__ = (
        "_recorder", "call", "course", "is_committed", "is_read", "reply", "session", "trouble"
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        call: GenerateCall,
        session: Session | None,
        reply: Reply,
        course: Course,
    ) -> None:
        self.call = call
        self.session = session
        self.reply = reply
        self.course = course
        self.is_committed = False
        self.trouble: str | None = None  # why what it may continue was perhaps not found
        self.is_read = False  # asking for more than the last chunk means that it was consumed
        self._recorder = recorder

    def __enter__(self) -> OpenTurn:
        return self

    def commit(self) -> None:
        """Records the finished reply, before its last chunk is passed on."""
        if self.reply.hidden_calls:
            self._recorder.note_hidden(self)
        if self.reply.finish is not None:
            self._recorder.record(self, self.reply.finish)
        if self.trouble is not None:
            self.reply.note(self.trouble)
        self.is_committed = True
        self._recorder.note_outcome(self)

    async def endure(self) -> None:
        """Waits until the committed turn would outlive the router.

        Raises:
            NotDurable: it would not, and such a reply may not go out.
        """
        await self._recorder.endure(self)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._recorder.close(self)


class Recorder:
    """Records turns into the store."""

    def __init__(
        self,
        store: TrajectoryStore,
        *,
        capture: Capture,
        prints_call_ids: bool,
        epoch_of: Callable[[Iterable[WeightVersion]], int],
        meters: Meters,
        journal: SharedArchive | None = None,
    ) -> None:
        self._meters = meters
        self._store = store
        self._epoch_of = epoch_of
        self._journal = journal
        self._capture = capture
        self._with_call_ids = prints_call_ids
        self._open: set[str] = set()  # turn ids of generations in progress
        self.counts = RecordingCounts()

    def turn(
        self, call: GenerateCall, session: Session | None, reply: Reply, course: Course
    ) -> OpenTurn:
        """The turn that `reply` will become, with its own id, in the session that admitted it."""
        return OpenTurn(self, self._own_turn(call), session, reply, course)

    def close(self, turn: OpenTurn) -> None:
        """Ends a generation, however it went."""
        turn_id = turn.call.turn_id
        self._open.discard(turn_id)
        if not turn.is_committed:
            self.record(turn, _LEFT)
            self.note_outcome(turn)
        if not turn.is_read and turn_id in self._store:
            self.counts.undelivered += 1
            self._store.mark_undelivered(turn_id)

    async def endure(self, turn: OpenTurn) -> None:
        """See `OpenTurn.endure`."""
        journal = self._journal
        if journal is None or turn.call.turn_id not in self._store:
            return
        course = turn.course
        began = course.elapsed_s()
        trouble = await journal.written()
        self._meters.endured(course.elapsed_s() - began)
        self._note_end(turn, journal.end_of(turn.call.session_id))
        if trouble is None:
            return
        self.counts.not_durable += 1
        if journal.must_be_written:
            raise NotDurable(journal.refusal)
        turn.reply.note(f"{journal.missing}: {trouble:.200}")

    def _note_end(self, turn: OpenTurn, end: Literal["closed", "deleted"] | None) -> None:
        if end == "closed":
            self.counts.after_close += 1
            logger.warning("turn %s came after its session was closed", turn.call.turn_id)
            turn.reply.note("its session was closed meanwhile; it is kept")
        elif end == "deleted":
            self.counts.late += 1
            logger.warning("turn %s is not kept: its session was deleted", turn.call.turn_id)
            turn.reply.note("its session was deleted meanwhile; it is not kept")

    def note_outcome(self, turn: OpenTurn) -> None:
        """For the metrics, and for the line that the log has of its request."""
        outcome = outcome_of(turn.call, turn.reply, turn.course)
        self._meters.generated(turn.course, outcome)
        if turn.course.request is not None:
            turn.course.request.outcomes.append(outcome)

    def note_hidden(self, turn: OpenTurn) -> None:
        """Tool calls were hidden, as the client asked for only one: notes it on the receipt."""
        count = turn.reply.hidden_calls
        calls = "call was" if count == 1 else "calls were"
        turn.reply.note(f"{count} tool {calls} not shown: parallel_tool_calls is false")
        if not self.counts.hidden_calls:  # warn once; the receipts and /metrics always note it
            logger.warning("turn %s: calls after the first are not shown", turn.call.turn_id)
        self.counts.hidden_calls += count

    def _own_turn(self, call: GenerateCall) -> GenerateCall:
        """The call with its own turn id: a plug-in may ask several times.

        Each further try is another request: to the trainer, a retry of the one before. Its id
        says of which (`Turn.sample_id`).
        """
        turn_id, tries, is_beside = call.turn_id, 1, False
        while turn_id in self._open or turn_id in self._store:
            is_beside |= turn_id in self._open
            tries += 1
            turn_id = f"{call.turn_id}-{tries}"
        self._open.add(turn_id)
        if turn_id == call.turn_id:
            return call
        if is_beside:  # a worker refuses a rid that it is answering already
            call = replace(call, rid=f"try{tries}-{call.rid}", asked_as=call.asked_as or call.rid)
        return replace(call, turn_id=turn_id, request_id=turn_id)

    def record(self, turn: OpenTurn, finish: Finish) -> None:
        """Puts the turn into the store, unless it is empty. A fault never fails the reply."""
        try:
            self._record(turn, finish)
        except Exception:  # whatever it is: the client has its reply anyway
            self.counts.failed += 1
            logger.exception("turn %s is not recorded", turn.call.turn_id)
            turn.reply.note("not recorded: the router failed, its log says why")

    def _record(self, turn: OpenTurn, finish: Finish) -> None:
        if self._capture == "off":
            return
        call, reply, prompt = turn.call, turn.reply, turn.reply.prompt
        if reply.unheld:
            reply.note(f"not held: the worker {reply.unheld}")
            return
        if prompt is None or not reply.output_ids:
            if finish is not _LEFT:
                self.counts.empty += 1
            return
        if turn.session is not None and not self._store.sessions.is_current(turn.session):
            self.counts.late += 1
            logger.warning("turn %s is not recorded: its session was deleted", call.turn_id)
            return
        self._add(self._made(turn, prompt, finish))

    def _made(self, turn: OpenTurn, prompt: Prompt, finish: Finish) -> Turn:
        call, reply = turn.call, turn.reply
        base, base_len = prompt.base, prompt.base_len
        if base is not None and base not in self._store:
            self.counts.rebased += 1
            logger.warning(
                "the turn before %s was dropped: its tokens count as prompt", call.turn_id
            )
            base, base_len = None, 0
        versions = reply.weight_versions
        said = reply.message(prompt.reply_prefix)
        keys, spelling = self._links(call, prompt, reply, said)
        return Turn(
            id=call.turn_id,
            base=base,
            base_len=base_len,
            prompt_ids=prompt.tail(base_len),
            output_ids=reply.output,
            logprobs=self._logprobs(reply),
            weight_versions=versions,
            finish=finish,
            keys=keys,
            spelling=spelling,
            asked=prompt.messages_key,
            calls=tuple((made.id, made.name) for made in reply.calls.values()),
            handles=tuple(reply.handles),
            session_id=call.session_id,
            conversation=prompt.conversation,
            scope=call.scope,
            date=prompt.date,
            request_id=call.request_id,
            receipt=reply.receipt or prompt.receipt,
            routed_experts=self._experts(call, prompt, reply, base),
            indexer_topk=self._indexer(call, prompt, reply, base_len),
            distribution=_distribution(reply),
            top_logprobs=_top_logprobs(call, reply),
            uncaptured=reply.uncaptured,
            epoch=self._epoch_of(span.version for span in versions),
            seq=self._store.next_seq,
            account=account_of(call, reply, prompt, turn.course, said, goes_on=base is not None),
            said_kind=call.kind,
            pictures=reply.pictures,
            speculation=reply.speculation,
        )

    def _add(self, turn: Turn) -> None:
        had_dropped = self._store.dropped_turns
        try:
            self._store.add(turn)
        except Conflict as exc:  # closed meanwhile
            self.counts.late += 1
            logger.warning("turn %s is not recorded: %s", turn.id, exc.message)
            return
        self.counts.turns += 1
        if turn.uncaptured:
            self._note_truncated(turn)
        if not had_dropped and self._store.dropped_turns:  # warn once; /metrics keeps counting
            logger.warning("the store is full: its oldest turns are dropped from now on")

    def _note_truncated(self, turn: Turn) -> None:
        """Count a turn sampled from an unknown part of the vocabulary; warn once a session."""
        self.counts.truncated_sampling += 1
        session = None if turn.session_id is None else self._store.sessions.find(turn.session_id)
        if session is not None and session.truncated_turns == 1:  # rows and /metrics always count
            logger.warning(
                "session %r: tokens are sampled under top_p, top_k, min_p or greedily, and their"
                " rows have no masks (%s): full log-probabilities are not those of the sampler",
                session.name,
                turn.uncaptured,
            )

    def _experts(
        self, call: GenerateCall, prompt: Prompt, reply: Reply, base: str | None
    ) -> RoutedExperts | None:
        if reply.experts is None:
            return None
        before = self._store.get(base) if base is not None else None
        known = before.routed_experts if before is not None else None
        try:
            return decode(
                reply.experts,
                held_len=len(prompt.ids) + len(reply.output_ids),
                start=reply.experts_start,
                width=known.ids.shape[1] if known is not None else None,
            )
        except ValueError as exc:
            self.counts.bad_routed_experts += 1
            logger.warning("turn %s has no routed experts: %s", call.turn_id, exc)
            return None

    def _indexer(
        self, call: GenerateCall, prompt: Prompt, reply: Reply, base_len: int
    ) -> RoutedExperts | None:
        if reply.indexer is None:
            return None
        held_len = len(prompt.ids) + len(reply.output_ids)
        try:
            return decode_whole(reply.indexer, held_len=held_len, start=max(base_len - 1, 0))
        except ValueError as exc:
            self.counts.bad_routed_experts += 1
            logger.warning("turn %s has no indexer top-k: %s", call.turn_id, exc)
            return None

    def _logprobs(self, reply: Reply) -> Logprobs | None:
        if not reply.has_logprobs:
            return None
        if missing := reply.logprobs.count(None):
            self.counts.missing_logprobs += missing
            logger.warning("%d of %d logprobs are missing", missing, len(reply.logprobs))
        return logprob_array(reply.logprobs)

    def _links(
        self, call: GenerateCall, prompt: Prompt, reply: Reply, said: Message
    ) -> tuple[tuple[bytes, ...], bytes]:
        """The keys of the conversation with the reply appended, as it was `said`; its spelling."""
        if prompt.messages_key is None or call.is_passed_on:
            return (), b""
        return reply_links(
            prompt.messages_key,
            prompt.spelling,
            said,
            with_call_ids=self._with_call_ids,
            reasoning=reply.reasoning,
            tools=call.template.tools,
        )


def _distribution(reply: Reply) -> Distribution | None:
    """What the tokens were sampled from; None where no worker said it of any."""
    masks = reply.masks
    if masks is None or not masks.ids:
        return None
    masks.fill(len(reply.output_ids))
    lengths, logprobs = np.array(masks.lengths, np.int32), np.array(masks.logprobs, np.float32)
    return distribution(lengths, token_ids(masks.ids), logprobs)


def _top_logprobs(call: GenerateCall, reply: Reply) -> TopLogprobs | None:
    """The likeliest tokens at each one; None where the session keeps none, or none came."""
    tops = reply.tops
    if not call.kept_tops or tops is None or not any(tops.tokens):
        return None
    tops.fill(len(reply.output_ids))
    return of_nested(tops.tokens)
