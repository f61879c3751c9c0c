"""Requests with images, audio or video: a worker answers them itself, byte for byte.

Their prompts hold what the router cannot tokenize, so such a turn is not captured, and the receipt
says so. A session admits them as it does its own turns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeAlias

import orjson
from aiohttp import web

from slime_router.api.generate.worker_bodies import WorkerBody
from slime_router.api.request import session_id
from slime_router.auth.caller import Caller, caller
from slime_router.edge.bodies import read_body

RECEIPT = "x-slime-receipt"
STATUS = "passed"  # in the receipt, where a captured turn shows how its prompt was made

HandOn: TypeAlias = Callable[
    [web.Request, str, WorkerBody, Mapping[str, str]], Awaitable[web.StreamResponse]
]
Flight: TypeAlias = Callable[[str | None], AbstractAsyncContextManager[None]]

KINDS = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}
CONVERSATIONS = ("messages", "input")
CONTENTS = ("content", "output")  # of messages and blocks; of a tool's result in the Responses API

logger = logging.getLogger(__name__)


class Medium(NamedTuple):
    """A part that is not text: `kind` is image, audio or video; `path` like `input[3].output`."""

    kind: str
    path: str


class MediaPass:
    """Passes requests with media on to a worker; `passed` counts them.

    `hand_on(request, target, body, headers)` sends one to a worker and its answer, with `headers`
    added, to the client; `flight(session_id)` keeps it in its session while it runs;
    `prepare(raw, is_conversation, caller)` returns a body as the worker gets it; it raises
    BadRequest for one that a worker might not survive. `is_on`: such requests are taken at all.
    """

    def __init__(
        self,
        hand_on: HandOn | None,
        flight: Flight | None,
        prepare: Callable[[bytes, bool, Caller], WorkerBody] = lambda raw, _, __: WorkerBody(raw),
    ) -> None:
        self.passed = 0
        self._prepare = prepare
        self._hand_on = hand_on
        self._flight = flight
        self.is_on = hand_on is not None and flight is not None

    @classmethod
    def off(cls) -> MediaPass:
        """For a text-only model: its doors refuse anything that is not text."""
        return cls(None, None)

    def __repr__(self) -> str:
        return f"<MediaPass {'on' if self.is_on else 'off'}, {self.passed} passed>"

    async def take(
        self, request: web.Request, body: Mapping[str, Any], path: str, headers: Mapping[str, str]
    ) -> web.StreamResponse | None:
        """The answer from a worker's own `path`; None if the request is text only.

        Raises:
            RouterError: a worker might not survive it, its session does not admit it, or no worker
                took it.
        """
        if self._hand_on is None or self._flight is None:
            return None
        medium = next(media_in(body), None)
        if medium is None:
            return None
        raw = await read_body(request)
        if (adapter := body.get("lora_path")) is not None and adapter == body.get("model"):
            raw = _with_adapter(raw, adapter)  # its name alone
        sent = self._prepare(raw, True, caller(request))
        self.passed += 1
        session, reason = session_id(request, body), f"{medium.kind} at {medium.path}"
        logger.info("not captured: path=%s session=%.100r reason=%s", path, session, reason)
        target = f"{path}?{request.rel_url.raw_query_string}".rstrip("?")
        async with self._flight(session):
            return await self._hand_on(
                request, target, sent, {**headers, RECEIPT: _receipt(reason)}
            )


def is_free_of_media(message: Any) -> bool:
    """Whether there are no media in a message, whichever API it is for."""
    return next(_within(message, ""), None) is None


def _with_adapter(raw: bytes, adapter: str) -> bytes:
    """The object in `raw` with its adapter at the end, where it wins; the rest is as it came."""
    return raw.rstrip()[:-1] + b',"lora_path":' + orjson.dumps(adapter) + b"}"


def _receipt(reason: str) -> str:
    """With the keys of every receipt: no token reused, none encoded, no turn continued."""
    fields = {
        "status": STATUS,
        "reused": 0,
        "encoded": 0,
        "turn": "",
        "reason": reason,
    }
    return orjson.dumps(fields).decode("ascii")


def media_in(body: Mapping[str, Any]) -> Iterator[Medium]:
    """The media in the order of the conversation, whichever API it is for."""
    for name in CONVERSATIONS:
        messages = body.get(name)
        if isinstance(messages, list):
            for i, message in enumerate(messages):
                yield from _within(message, f"{name}[{i}]")


def _within(holder: Any, path: str) -> Iterator[Medium]:
    """The media in a message, or in a tool's result, which is a part with parts of its own."""
    if not isinstance(holder, dict):
        return
    for name in CONTENTS:
        parts = holder.get(name)
        if not isinstance(parts, list):
            continue
        for j, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            place = f"{path}.{name}[{j}]"
            if isinstance(kind, str) and kind in KINDS:
                yield Medium(KINDS[kind], place)
            elif kind == "tool_result":
                yield from _within(part, place)
