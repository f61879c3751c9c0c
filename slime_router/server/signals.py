"""Signals: one that comes before the router is up, and the second one.

The second ends at once what the first one lets run on for the grace period.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from aiohttp import web

from slime_router.server.slow_clients import SlowClients


class StartUp:
    """Until it `is_over`, SIGINT is an interruption; behind that it is an ordinary end."""

    def __init__(self, app: web.Application) -> None:
        self.is_over = False
        self.was_interrupted = False
        app.on_startup.insert(0, self._listen)  # before what may take minutes

    async def _listen(self, _: web.Application) -> None:
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)

    def _interrupt(self) -> None:
        if self.was_interrupted:  # it cannot wait for what it is stopping
            raise KeyboardInterrupt
        self.was_interrupted = not self.is_over
        raise web.GracefulExit


def hurry_at_second_signal(app: web.Application, clients: SlowClients) -> None:
    """From the beginning of the shutdown on, SIGINT and SIGTERM cut all clients.

    Their generations end as if they had left. Where none is left to be cut, the signal interrupts
    whatever else the shutdown waits for.
    """

    def hurry() -> None:
        if not clients.cut_all():
            raise KeyboardInterrupt

    async def listen(_: web.Application) -> None:
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # on Windows
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, hurry)

    app.on_shutdown.append(listen)
