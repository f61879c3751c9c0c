"""What the kit asks of a gateway: somewhere to chat, and the tokens of what was said there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
import orjson

from slime_router.conformance.worker import MODEL

REPLY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class HandedRow:
    """One training sample as the gateway gives it; `logprobs` is None where it gives none."""

    tokens: Sequence[int]
    loss_mask: Sequence[int]
    logprobs: Sequence[float] | None

    @classmethod
    def of_answer(
        cls,
        tokens: Sequence[Any],
        loss_mask: Sequence[Any],
        logprobs: Sequence[Any] | None,
    ) -> HandedRow:
        """A row whose mask and log-probabilities may cover its last tokens alone.

        Raises:
            TypeError, ValueError: it is not a row.
        """
        before = [0] * (len(tokens) - len(loss_mask))
        if len(before) + len(loss_mask) != len(tokens):
            raise ValueError(f"{len(loss_mask)} entries of a mask for {len(tokens)} tokens")
        known = None
        if logprobs is not None and len(logprobs) == len(loss_mask):
            known = [*before, *(nan if each is None else float(each) for each in logprobs)]
        return cls([*map(int, tokens)], [*before, *map(int, loss_mask)], known)


class GatewayError(Exception):
    """The gateway did not do what it was asked; the message is its answer."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """For the block, an answer is read. Raises GatewayError: it is not of its form."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise GatewayError(f"the {what} cannot be read: {exc!r:.160}") from exc


@dataclass(slots=True)
class Chat:
    """One agent's place at a gateway; what it said and heard."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)  # in the body of each request
    name: str = ""
    replies: list[dict[str, Any]] = field(default_factory=list)  # whole, as they came
    prompts: list[Sequence[Mapping[str, Any]]] = field(default_factory=list)


class Adapter(Protocol):
    """A kind of gateway. All methods raise GatewayError."""

    async def open(self) -> Chat:
        """A place for one agent."""

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """The training samples of what was said there."""


class Http:
    """Requests to one gateway; an async context manager."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        self._headers = headers
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REPLY_TIMEOUT_S)
        # A connection for each request: that a gateway closes one after an error is its right.
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=timeout, connector=connector
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(self, method: str, url: str, **fields: Any) -> bytes:
        """The body of a good answer.

        Raises:
            GatewayError: it was not good, or none came.
        """
        try:
            async with self._session.request(method, url, **fields) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise GatewayError(f"{type(exc).__name__}: {exc}".rstrip(": ")) from exc
        if response.status >= 300:
            said = " ".join(body[:400].decode(errors="replace").split())
            raise GatewayError(f"{response.status}: {said[:160]}")
        return body

    async def json(self, method: str, url: str, **fields: Any) -> Any:
        """The body of a good answer as JSON. Raises GatewayError."""
        raw = await self.send(method, url, **fields)
        try:
            return orjson.loads(raw)
        except ValueError as exc:
            raise GatewayError(f"not JSON: {raw[:80]!r}") from exc

    async def opened(self) -> tuple[str, Any]:
        """The name of a new session, by `POST /sessions`, and the answer. Raises GatewayError."""
        answer = await self.json("POST", f"{self.url}/sessions", json={})
        with reading("new session"):
            return str(answer["session_id"]), answer

    async def say(self, chat: Chat, messages: Sequence[Mapping[str, Any]]) -> str:
        """One turn of a chat; the text of the reply. Raises GatewayError."""
        body = {"model": MODEL, "messages": messages, "temperature": 1.0, **chat.extra}
        url = f"{chat.url}/chat/completions"
        reply = await self.json("POST", url, json=body, headers=chat.headers)
        try:
            content = reply["choices"][0]["message"]["content"] or ""
        except (LookupError, TypeError) as exc:
            raise GatewayError(f"not a chat reply: {str(reply)[:120]}") from exc
        chat.prompts.append(list(messages))
        chat.replies.append(reply)
        return str(content)
