"""Signals: one that arrives before the router is up, one that asks for a reload, a second one.

The second ends at once what the first lets run for the grace period.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from aiohttp import web

from slime_router.launch.launcher import Launcher
from slime_router.server.slow_clients import SlowClients

logger = logging.getLogger(__name__)


class Terminal:
    """The terminal that the process was started in, if it was started in one."""

    def __init__(self) -> None:
        self._was_there = _has_terminal()

    @property
    def is_gone(self) -> bool:
        """Whether there was one, and somebody has closed it."""
        return self._was_there and not _has_terminal()


class StartUp:
    """Until it `is_over`, SIGINT is an interruption; after that it is an ordinary shutdown.

    SIGHUP calls `reload`, unless it says that the terminal is closed: then it ends the router.
    """

    def __init__(self, app: web.Application, reload: Callable[[], None]) -> None:
        self.is_over = False
        self.was_interrupted = False
        self._reload = reload
        self._terminal = Terminal()
        app.on_startup.insert(0, self._listen)  # before anything that may take minutes

    async def _listen(self, _: web.Application) -> None:
        with suppress(NotImplementedError):  # on Windows
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, self._interrupt)
            for number in hang_ups():
                loop.add_signal_handler(number, self._hang_up, number)
            for number in endings():
                loop.add_signal_handler(number, _end, number)
            for number in unused():
                loop.add_signal_handler(number, note_unused, number)

    def _hang_up(self, number: signal.Signals) -> None:
        if self._terminal.is_gone:
            _end(number)
        logger.info("%s: settings are read again", number.name)
        self._reload()

    def _interrupt(self) -> None:
        if self.was_interrupted:  # it cannot wait for what it is stopping
            raise KeyboardInterrupt
        self.was_interrupted = not self.is_over
        raise web.GracefulExit


def end_now() -> None:
    """Ends the server from within; to be called by the loop itself, as signal handlers are.

    Raises:
        GracefulExit: always.
    """
    raise web.GracefulExit


def _end(number: signal.Signals) -> NoReturn:
    logger.info("%s: the router ends", number.name)
    raise web.GracefulExit


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def endings() -> tuple[signal.Signals, ...]:
    """Those that end the router; service managers and containers send one or the other."""
    return _known("SIGTERM", "SIGQUIT")


def unused() -> tuple[signal.Signals, ...]:
    """Those that others send to have a log opened again, and that would end a process at once."""
    return _known("SIGUSR1", "SIGUSR2")


def note_unused(number: signal.Signals) -> None:
    """Says in the log that it does nothing."""
    logger.warning("%s: it means nothing to the router", number.name)


def _known(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


def hang_ups() -> tuple[signal.Signals, ...]:
    """SIGHUP, unless whoever started the router has it ignored, as `nohup` does."""
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return ()
    return (signal.SIGHUP,)


def hurry_at_second_signal(app: web.Application, clients: SlowClients, launcher: Launcher) -> None:
    """Once shutdown has begun, SIGINT, SIGTERM, SIGQUIT and SIGHUP cut off all clients.

    Their generations end as if they had left, and launched workers are given no time to end. If
    there is no client left to cut off, the signal interrupts whatever else the shutdown is waiting
    for.
    """

    def hurry() -> None:
        launcher.hurry()
        if not clients.cut_all():
            raise KeyboardInterrupt

    async def listen(_: web.Application) -> None:
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # on Windows
            for number in (signal.SIGINT, *endings(), *hang_ups()):
                loop.add_signal_handler(number, hurry)

    app.on_shutdown.append(listen)
