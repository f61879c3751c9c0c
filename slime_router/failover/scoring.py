"""Rows are scored by the workers of a group: each row by one of them, several at once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from slime_router.engine.kept import read_whole
from slime_router.engine.request import read_error
from slime_router.engine.scores import read_score, score_body
from slime_router.errors import WorkerFailed
from slime_router.failover.relay import Relay
from slime_router.pool.worker import Need
from slime_router.trajectory.measures.scores import TeacherScore
from slime_router.types import TokenIds

logger = logging.getLogger(__name__)

AT_ONCE = 16  # rows of one request
TRIES = 3  # of a row whose worker breaks off or answers nonsense

_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Scored:
    """The tokens of a row; those from `start` on are to be scored."""

    tokens: TokenIds
    start: int


class Scorer:
    """Asks the workers that `relay` leases; ids are in `[0, vocab_size)`."""

    def __init__(self, relay: Relay, *, vocab_size: int) -> None:
        self._relay = relay
        self._vocab_size = vocab_size

    def __repr__(self) -> str:
        return f"<Scorer over {self._relay!r}>"

    async def score(self, rows: Mapping[str, Scored], *, top: int) -> dict[str, TeacherScore]:
        """The scores of all rows, by their names; `top` likeliest tokens at each position.

        Raises:
            NoWorker: the group has none, or none could be reached.
            WorkerRefused: a worker's own answer, such as that a row is too long for it.
            WorkerFailed: a worker's answer cannot be read.
        """
        places = asyncio.Semaphore(AT_ONCE)

        async def placed(row: Scored) -> TeacherScore:
            async with places:
                return await self._of(row, top)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {name: group.create_task(placed(row)) for name, row in rows.items()}
        except ExceptionGroup as exc:
            raise _first(exc) from None
        return {name: task.result() for name, task in tasks.items()}

    async def _of(self, row: Scored, top: int) -> TeacherScore:
        tries = 1
        while True:
            try:
                return await self._once(row, top)
            except WorkerFailed as exc:
                if tries == TRIES:
                    raise
                logger.warning("scoring again: %d tokens, reason=%s", len(row.tokens), exc)
                tries += 1

    async def _once(self, row: Scored, top: int) -> TeacherScore:
        rid = f"score-{secrets.token_hex(12)}"
        body = score_body(row.tokens, start=row.start, top=top, rid=rid)
        need = Need(ids=row.tokens)
        async with self._relay.reach(
            "POST", "/generate", headers=_HEADERS, body=body, need=need
        ) as answer:
            payload = await read_whole(answer)
            if answer.status != 200:
                raise read_error(answer.status, payload)
        return read_score(
            payload, row.tokens, start=row.start, top=top, vocab_size=self._vocab_size
        )


def _first(exc: Exception) -> Exception:
    """What went wrong first: rows that were cancelled for it do not count."""
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc
