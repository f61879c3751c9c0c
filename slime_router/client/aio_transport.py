"""How an awaiting client reaches a router: with aiohttp."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from slime_router.client.address import Address
from slime_router.client.calls import Call
from slime_router.client.errors import TimedOut, no_answer, refusal


class AsyncAnswer:
    """The body of an answer with a good status."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        """The whole body."""
        return await self._response.read()

    def blocks(self) -> AsyncIterator[bytes]:
        """The body in parts, each as soon as it arrives."""
        return self._response.content.iter_any()


class AsyncTransport:
    """One connection for each call: none can have gone stale, and no call waits for another's."""

    def __init__(self, address: Address, *, timeout_s: float, headers: Mapping[str, str]) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._headers = dict(headers)
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Now it can answer."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._http = aiohttp.ClientSession(connector=connector, headers=self._headers)
        self._http._retry_connection = False  # it would send a DELETE twice; the client retries

    async def close(self) -> None:
        """Calls in progress are broken off."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    @asynccontextmanager
    async def answer(self, call: Call) -> AsyncIterator[AsyncAnswer]:
        """An answer with a good status; the connection ends with the block.

        Raises:
            Refused: the status is not a good one.
            TimedOut: the router was silent for too long.
            Unreachable: the answer did not come, or is not complete.
        """
        if self._http is None:
            raise RuntimeError("Use the AsyncClient in an `async with` block.")
        timeout_s = self._timeout_s + call.wait_s
        silence = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        url = URL(self._address.url + call.path, encoded=True)
        try:
            async with self._http.request(
                call.method,
                url,
                data=call.payload,
                headers=call.headers,
                timeout=silence,
                allow_redirects=False,
            ) as response:
                if response.status >= 300:
                    raise refusal(response.status, await response.read())
                yield AsyncAnswer(response)
        except TimeoutError as error:
            raise TimedOut(f"{self._address.url} was silent for {timeout_s:g} s.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise no_answer(self._address.url, error) from error
