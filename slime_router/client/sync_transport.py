"""How a blocking client reaches a router: with the standard library alone."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from slime_router.client.address import Address
from slime_router.client.calls import Call
from slime_router.client.errors import TimedOut, no_answer, refusal

BLOCK_BYTES = 2**16


class Answer:
    """The body of an answer with a good status."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response

    def read(self) -> bytes:
        """The whole body."""
        return self._response.read()

    def blocks(self) -> Iterator[bytes]:
        """The body in parts, each as soon as it arrives."""
        while block := self._response.read1(BLOCK_BYTES):
            yield block


class Transport:
    """One connection for each call, so threads may share it."""

    def __init__(self, address: Address, *, timeout_s: float, headers: Mapping[str, str]) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._headers = dict(headers)

    def open(self) -> None:
        """Connections are opened call by call."""

    def close(self) -> None:
        """Do nothing: no connection stays open between calls."""

    @contextmanager
    def answer(self, call: Call) -> Iterator[Answer]:
        """An answer with a good status; the connection ends with the block.

        Raises:
            Refused: the status is not a good one.
            TimedOut: the router was silent for too long.
            Unreachable: the answer did not come, or is not complete.
        """
        timeout_s = self._timeout_s + call.wait_s
        connection = self._address.connect(timeout_s)
        path = self._address.path + call.path
        try:
            connection.request(call.method, path, call.payload, {**self._headers, **call.headers})
            response = connection.getresponse()
            if response.status >= 300:
                raise refusal(response.status, response.read())
            yield Answer(response)
        except TimeoutError as error:
            raise TimedOut(f"{self._address.url} was silent for {timeout_s:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            raise no_answer(self._address.url, error) from error
        finally:
            connection.close()
