"""The second signal: it ends at once what the first one lets run on for the grace period."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from aiohttp import web

from slime_router.server.slow_clients import SlowClients


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
