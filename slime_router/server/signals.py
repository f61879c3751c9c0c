"""Signals: one that arrives before the router is up, and a second one during shutdown.

The second ends at once what the first lets run for the grace period.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from aiohttp import web

from slime_router.server.slow_clients import SlowClients


class StartUp:
    """Until it `is_over`, SIGINT is an interruption; after that it is an ordinary shutdown."""

    def __init__(self, app: web.Application) -> None:
        self.is_over = False
        self.was_interrupted = False
        app.on_startup.insert(0, self._listen)  # before anything that may take minutes

    async def _listen(self, _: web.Application) -> None:
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)

    def _interrupt(self) -> None:
        if self.was_interrupted:  # it cannot wait for what it is stopping
            raise KeyboardInterrupt
        self.was_interrupted = not self.is_over
        raise web.GracefulExit


def hurry_at_second_signal(app: web.Application, clients: SlowClients) -> None:
    """Once shutdown has begun, SIGINT and SIGTERM cut off all clients.

    Their generations end as if they had left. If there is no client left to cut off, the signal
    interrupts whatever else the shutdown is waiting for.
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
