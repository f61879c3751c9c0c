"""What the processes of one router say to each other: a question to all others, and their answers.

Each listens on a socket in the private directory that they share; nobody else can reach it there.
A message and its answer are JSON. One that does not answer in time is silent, and is reported: it
may be dead, about to start again, or stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

import aiohttp
import orjson
from aiohttp import web

from slime_router.errors import SetupError
from slime_router.siblings.place import Place

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0
MAX_MESSAGE_LEN = 64 * 2**20  # bytes
GONE = "it is not there"

Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
"""Answers a message; both are JSON values."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the others have answered, by their numbers; and of those that have not, why."""

    answers: Mapping[int, Any] = field(default_factory=dict)
    silent: Mapping[int, str] = field(default_factory=dict)


class Siblings:
    """This process and the others; open while the router serves. Alone, it asks nobody.

    `place` None: there are no others.
    """

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.silences: Counter[str] = Counter()  # unanswered messages, by topic
        self._handlers: dict[str, Handler] = {}
        self._sessions: dict[int, aiohttp.ClientSession] = {}
        self._asking: set[asyncio.Future[Any]] = set()
        self._open = AsyncExitStack()

    def __repr__(self) -> str:
        return "<Siblings: none>" if self.place is None else f"<Siblings of {self.place}>"

    @property
    def count(self) -> int:
        """How many processes there are."""
        return 1 if self.place is None else self.place.count

    @property
    def restarts(self) -> int:
        """How often this one was started again."""
        return 0 if self.place is None else self.place.lives - 1

    @property
    def others(self) -> tuple[int, ...]:
        """The numbers of the others."""
        return () if self.place is None else self.place.others

    def answer(self, topic: str, handler: Handler) -> None:
        """Messages about `topic` are answered by `handler`, from the start on."""
        assert topic not in self._handlers
        self._handlers[topic] = handler

    async def __aenter__(self) -> Siblings:
        """Answers from now on.

        Raises:
            SetupError: the socket cannot be made.
        """
        if self.place is None:
            return self
        async with AsyncExitStack() as stack:
            app = web.Application(client_max_size=MAX_MESSAGE_LEN)
            for topic, handler in self._handlers.items():
                app.router.add_post(f"/{topic}", _door(handler))
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            self.place.socket().unlink(missing_ok=True)  # of a process that was killed
            try:
                await web.UnixSite(runner, str(self.place.socket())).start()
            except OSError as exc:
                raise SetupError(f"cannot listen at {self.place.socket()}: {exc}") from exc
            for number in self.place.others:
                connector = aiohttp.UnixConnector(str(self.place.socket(number)))
                session = aiohttp.ClientSession("http://sibling", connector=connector)
                self._sessions[number] = await stack.enter_async_context(session)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sessions = {}
        await self._open.aclose()

    async def ask(
        self, topic: str, message: Any = None, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Heard:
        """Asks all others at once; returns when each has answered, or has had its time.

        All are asked even if whoever wants to know is cancelled meanwhile.
        """
        numbers = tuple(self._sessions)
        if not numbers:
            return Heard()
        body = orjson.dumps(message)
        asking = asyncio.gather(*(self._ask(n, topic, body, timeout_s) for n in numbers))
        self._asking.add(asking)  # the event loop itself would not keep it
        asking.add_done_callback(self._asking.discard)
        heard = await asyncio.shield(asking)
        answers, silent = {}, {}
        for number, (answer, silence) in zip(numbers, heard, strict=True):
            if silence is None:
                answers[number] = answer
            else:
                silent[number] = silence
        return Heard(answers, silent)

    async def ask_one(self, number: int, topic: str, message: Any = None) -> Heard:
        """The same for one of the others."""
        answer, silence = await self._ask(number, topic, orjson.dumps(message), ANSWER_TIMEOUT_S)
        return Heard({number: answer}) if silence is None else Heard(silent={number: silence})

    async def _ask(
        self, number: int, topic: str, body: bytes, timeout_s: float
    ) -> tuple[Any, str | None]:
        """The answer; or None, and why there is none."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._sessions[number].post(f"/{topic}", data=body) as reply,
            ):
                raw = await reply.content.read(MAX_MESSAGE_LEN + 1)
                while len(raw) <= MAX_MESSAGE_LEN and (more := await reply.content.read(2**20)):
                    raw += more
                if reply.status == HTTPStatus.OK and len(raw) <= MAX_MESSAGE_LEN:
                    return orjson.loads(raw), None
                silence = f"it answered with {reply.status}"
        except TimeoutError:
            silence = f"it did not answer within {timeout_s:g} s"
        except (aiohttp.ClientError, OSError, orjson.JSONDecodeError, KeyError):
            silence = GONE
        self.silences[topic] += 1
        level = logging.INFO if silence == GONE else logging.WARNING
        logger.log(level, "process %d, asked about %s: %s", number, topic, silence)
        return None, silence


def _door(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        said = await handler(orjson.loads(await request.read()))
        return web.Response(body=orjson.dumps(said), content_type="application/json")

    return answer
