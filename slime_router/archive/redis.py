"""An archive in Redis or Valkey, for routers on any number of machines.

Keys begin with the prefix and the schema's version, `slime:1:`; each home has a digest.

    {digest}:log     a stream of what happened to a home, in order: see `redis_log`
    {digest}:closed  there where the session is closed
    {digest}:turns   a hash, from turn ids to packed turns
    name:HEX         a sorted set: the homes of turns with this name, by sequence number
    sessions         a stream: names of sessions to which something happened
    workers          a hash, by URL; at "" a number that grows with each change
    response:ID      what `previous_response_id` may name
    vocabulary, routers

Each write renews the time after which a key expires, as does each look into a home. Both keys of a
home are in one slot of a cluster; nothing needs two slots at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from redis.asyncio.client import Pipeline as AsyncPipeline

from slime_router.archive.homes import home_of_session
from slime_router.archive.port import NOTHING_SEEN, ArchiveOdd, Cursor, Kept, News, as_expected
from slime_router.archive.redis_client import FAILURES, RedisClients, answered, refused
from slime_router.archive.redis_log import (
    CHANGED,
    DATA,
    DELETED,
    ID,
    KIND,
    SEQ,
    STATE,
    TURN,
    UNDELIVERED,
    Entry,
    fold,
    is_left,
)
from slime_router.journal.codec import SessionState, unpacked_session
from slime_router.journal.database import (
    Change,
    Drop,
    Late,
    MarkUndelivered,
    Put,
    PutTurn,
    Table,
    as_blob,
    as_text,
)
from slime_router.journal.progress import Progress

logger = logging.getLogger(__name__)

SCHEMA = 1
MAX_HOMES = 16  # of one name: the newest
MAX_LISTED = 1_000_000  # changes of sessions
ROUTERS = 1 << 16
RENEWALS = 20  # of a home that is looked at, in the time in which it would expire
MAX_RENEWED = 100_000  # homes for which the time is remembered
FIRST: Cursor = "0-0"  # of a home that nothing has happened to

_VERSION = b""  # of the workers


class RedisArchive:
    """Turns and sessions under one prefix of a server or a cluster."""

    def __init__(
        self,
        clients: RedisClients,
        *,
        prefix: str,
        ttl_s: int,
        wait_replicas: int = 0,
        wait_s: float = 1.0,
    ) -> None:
        self._wait_replicas = wait_replicas
        self._wait_ms = max(int(wait_s * 1000), 1)  # 0 would be forever
        self.shortfall: str | None = None  # what was written last is on too few replicas
        self.refusal: str | None = None  # a part of what was written last is in it nowhere
        self.refused = 0  # commands, for that reason: what they said is lost
        self._clients = clients
        self._prefix = f"{prefix}:{SCHEMA}:".encode()
        self._ttl_s = ttl_s
        self._renewed: dict[str, float] = {}  # homes, and when

    def __repr__(self) -> str:
        return f"<RedisArchive {self._clients!r} {self._prefix.decode()}>"

    # Keys

    def _key(self, name: bytes) -> bytes:
        return self._prefix + name

    def _log(self, home: str) -> bytes:
        return self._key(b"{%b}:log" % _digest(home))

    def _turns(self, home: str) -> bytes:
        return self._key(b"{%b}:turns" % _digest(home))

    def _closed(self, home: str) -> bytes:
        return self._key(b"{%b}:closed" % _digest(home))

    def _name(self, name: bytes) -> bytes:
        return self._key(b"name:" + name.hex().encode())

    # Writing, in its own thread

    async def prepare(self, _: Progress) -> None:
        """Do nothing: see `Archive.prepare`."""

    def apply(self, changes: list[Change]) -> Late:
        """See `Archive.apply`. If it fails halfway, what was applied is applied again."""
        try:
            with self._clients.blocking.pipeline(transaction=False) as pipe:
                put = {
                    change.session_id: change.home
                    for change in changes
                    if isinstance(change, PutTurn) and change.session_id and not change.is_change
                }
                for home in put.values():
                    pipe.exists(self._closed(home))
                for change in changes:
                    self._apply(pipe, change)
                if self._wait_replicas:  # for what this connection has written
                    pipe.execute_command("WAIT", self._wait_replicas, self._wait_ms)
                answers = pipe.execute(raise_on_error=False)
        except FAILURES as exc:
            raise OSError(str(exc)) from exc
        faults = refused(answers)
        self.refusal = faults[0] if faults else None  # all else must not wait for them
        self.refused += len(faults)
        if self._wait_replicas:
            self._note_replicas(answers[-1])
        ended = zip(put, answers, strict=False)
        return {name: "closed" for name, is_closed in ended if is_closed}

    def _note_replicas(self, count: int) -> None:
        """Compare how many replicas have what was written with how many should."""
        had_enough = self.shortfall is None
        if count >= self._wait_replicas:
            self.shortfall = None
            return
        self.shortfall = f"{count} of {self._wait_replicas} replicas have it"
        if had_enough:  # one line, as long as it goes on
            logger.warning("turns are in the store, but %s", self.shortfall)

    def _apply(self, pipe: Any, change: Change) -> None:
        if isinstance(change, PutTurn):
            self._put_turn(pipe, change)
        elif isinstance(change, MarkUndelivered):
            self._note(pipe, change.home, {KIND: UNDELIVERED, ID: as_blob(change.id)})
        elif change.table == "sessions":
            self._change_session(pipe, change)
        elif change.table == "openings":
            return  # the state of the session says it
        elif change.table == "workers":
            if isinstance(change, Put):
                pipe.hset(self._key(b"workers"), as_blob(change.id), change.data)
            else:
                pipe.hdel(self._key(b"workers"), as_blob(change.id))
            pipe.hincrby(self._key(b"workers"), _VERSION, 1)
        elif isinstance(change, Put):
            pipe.set(self._key(b"response:" + as_blob(change.id)), change.data, ex=self._ttl_s)
        else:
            pipe.delete(self._key(b"response:" + as_blob(change.id)))

    def _put_turn(self, pipe: Any, turn: PutTurn) -> None:
        turns = self._turns(turn.home)
        pipe.hset(turns, as_blob(turn.id), turn.data)  # before anybody reads of it in the log
        pipe.expire(turns, self._ttl_s)
        kind = CHANGED if turn.is_change else TURN
        self._note(pipe, turn.home, {KIND: kind, ID: as_blob(turn.id), SEQ: turn.seq})
        for name in turn.names:
            pipe.zadd(self._name(name), {as_blob(turn.home): turn.seq})
            pipe.expire(self._name(name), self._ttl_s)

    def _note(self, pipe: Any, home: str, entry: dict[bytes, Any]) -> None:
        pipe.xadd(self._log(home), entry)
        pipe.expire(self._log(home), self._ttl_s)

    def _change_session(self, pipe: Any, change: Put | Drop) -> None:
        home = home_of_session(change.id)
        if isinstance(change, Put):
            self._note(pipe, home, {KIND: STATE, DATA: change.data})
            if unpacked_session(change.data).is_closed:
                pipe.set(self._closed(home), b"1", ex=self._ttl_s)
        elif not change.is_deleted:
            return  # nothing but turns was known of it, and they are gone
        else:
            self._note(pipe, home, {KIND: DELETED})
            pipe.xtrim(self._log(home), maxlen=1, approximate=False)
            for key in (self._turns(home), self._closed(home)):  # clusters take one at a time
                pipe.delete(key)
        pipe.xadd(
            self._key(b"sessions"), {ID: as_blob(change.id)}, maxlen=MAX_LISTED, approximate=True
        )
        pipe.expire(self._key(b"sessions"), self._ttl_s)

    # Reading

    @as_expected
    async def find(self, names: Sequence[bytes]) -> list[str]:
        """See `Archive.find`."""

        def ask(pipe: AsyncPipeline) -> None:
            for name in names:
                pipe.zrevrange(self._name(name), 0, MAX_HOMES - 1)

        found = await self._asked(ask)
        full = [name for name, homes in zip(names, found, strict=True) if len(homes) >= MAX_HOMES]
        if full:  # nobody looks for the others

            def trim(pipe: AsyncPipeline) -> None:
                for name in full:
                    pipe.zremrangebyrank(self._name(name), 0, -MAX_HOMES - 1)

            await self._asked(trim)
        return list(dict.fromkeys(as_text(home) for homes in found for home in homes))

    @as_expected
    async def news(self, home: str, since: Cursor, knows: Callable[[str], bool]) -> News:
        """See `Archive.news`. One round trip, and one more for turns that the reader lacks."""
        after = since or FIRST
        entries = await self._entries(home, after)  # what was seen last comes again
        is_gone = after != FIRST and not (entries and entries[0][0].decode() == after)
        if not is_gone:
            entries = entries[1:] if after != FIRST else entries
        else:  # a replica that took over lacks what it had not heard of, and may count from before
            entries = [each for each in await self._entries(home, FIRST) if is_left(each, after)]
        await self._renew(home)
        told = fold(entries)
        wanted = [
            name
            for name in told.turns
            if told.is_deleted or name in told.changed or not knows(name)
        ]
        data: dict[str, bytes | None] = {}
        if wanted:
            packed = await answered(
                self._clients.waiting.hmget(self._turns(home), list(map(as_blob, wanted)))
            )
            data = dict(zip(wanted, packed, strict=True))
        kept = tuple(
            Kept(name, seq, name in told.undelivered, data.get(name))
            for name, seq in sorted(told.turns.items(), key=lambda item: item[1])
        )
        marked = tuple(
            Kept(name, 0, True, None) for name in told.undelivered if name not in told.turns
        )
        cursor = entries[-1][0].decode() if entries else after
        is_gone = is_gone and not told.is_deleted
        lost = sum(data[name] is None for name in wanted)  # a server that evicts takes whole keys
        return News(home, cursor, kept + marked, told.state, told.is_deleted, is_gone, lost)

    async def _entries(self, home: str, first: Cursor) -> list[Entry]:
        """The entries of a log from `first` on. Raises ArchiveDown."""
        found = await answered(self._clients.waiting.xrange(self._log(home), min=first))
        return list(found)

    async def _renew(self, home: str) -> None:
        """What is looked at does not expire; not with every look, though."""
        now = asyncio.get_running_loop().time()
        if self._renewed.get(home, float("-inf")) > now - self._ttl_s / RENEWALS:
            return
        self._renewed.pop(home, None)
        self._renewed[home] = now
        if len(self._renewed) > MAX_RENEWED:
            del self._renewed[next(iter(self._renewed))]

        def ask(pipe: AsyncPipeline) -> None:
            for key in (self._log(home), self._turns(home), self._closed(home)):
                pipe.expire(key, self._ttl_s)

        await self._asked(ask)

    @as_expected
    async def sessions(self, since: Cursor) -> tuple[list[str], Cursor]:
        """See `Archive.sessions`."""
        after = since or FIRST
        entries = await answered(
            self._clients.waiting.xrange(self._key(b"sessions"), min=f"({after}")
        )
        names = dict.fromkeys(as_text(entry[ID]) for _, entry in entries)
        return list(names), entries[-1][0].decode() if entries else after

    async def states(self, names: Sequence[str]) -> dict[str, SessionState]:
        """See `Archive.states`."""
        found = zip(names, await asyncio.gather(*map(self._state, names)), strict=True)
        return {name: state for name, state in found if state is not None}

    async def _state(self, name: str) -> SessionState | None:
        """None also where others have written to its keys: whoever fetches it says so."""
        with suppress(ArchiveOdd):
            return (await self.news(home_of_session(name), NOTHING_SEEN, lambda _: True)).state
        return None

    async def get(self, table: Table, name: str) -> bytes | None:
        """See `Archive.get`."""
        if table == "workers":
            kept = self._clients.waiting.hget(self._key(b"workers"), as_blob(name))
        else:
            kept = self._clients.waiting.get(self._key(b"response:" + as_blob(name)))
        found: bytes | None = await answered(kept)
        return found

    @as_expected
    async def named(self, table: Table) -> list[tuple[str, bytes]]:
        """See `Archive.named`. Responses are asked for one by one."""
        if table != "workers":
            return []
        kept = await answered(self._clients.waiting.hgetall(self._key(b"workers")))
        return [(as_text(name), data) for name, data in kept.items() if name != _VERSION]

    @as_expected
    async def workers_version(self) -> str:
        """See `Archive.workers_version`."""
        version = await answered(self._clients.waiting.hget(self._key(b"workers"), _VERSION))
        return "" if version is None else str(version.decode())

    def has_news(self, _: Cursor) -> bool:
        """See `Archive.has_news`. Only asking could tell."""
        return True

    @as_expected
    async def number(self) -> int:
        """See `Archive.number`."""
        count = await answered(self._clients.waiting.incr(self._key(b"routers")))
        return int(count) % ROUTERS

    async def last_seq(self) -> int:
        """See `Archive.last_seq`. Whoever extends a turn has seen its number."""
        return 0

    @as_expected
    async def bind(self, name: str, value: bytes) -> bytes:
        """See `Archive.bind`."""
        key = self._key(name.encode())
        await answered(self._clients.waiting.set(key, value, nx=True))
        return bytes(await answered(self._clients.waiting.get(key)))

    async def close(self) -> None:
        """See `Archive.close`."""
        await self._clients.close()

    async def _asked(self, ask: Callable[[AsyncPipeline], None]) -> list[Any]:
        """The answers to several commands, sent at once. Raises ArchiveDown."""
        pipe = self._clients.waiting.pipeline(transaction=False)
        ask(pipe)
        return list(await answered(pipe.execute()))


def _digest(home: str) -> bytes:
    return blake2b(as_blob(home), digest_size=16).hexdigest().encode()
