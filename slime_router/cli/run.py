"""Runs the server until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from aiohttp import web

from slime_router import __version__
from slime_router.archive.shared import SharedArchive
from slime_router.cli.banner import banner
from slime_router.cli.log import start_log
from slime_router.cli.one_line import error_line
from slime_router.cli.processes.exit_codes import EXIT_FAILED, EXIT_GAVE_UP, EXIT_INTERRUPTED
from slime_router.cli.standard_streams import show
from slime_router.config import Config
from slime_router.edge.listener import Listener, reason_of
from slime_router.errors import SetupError
from slime_router.host_port import host_port
from slime_router.server.app import Gateway
from slime_router.server.boundary import protocols
from slime_router.server.loop.garbage import GarbageCollector
from slime_router.server.loop.huge_pages import HugePages
from slime_router.server.signals import StartUp, hurry_at_second_signal

logger = logging.getLogger(__name__)


FAREWELL_S = 1.0  # after the grace period, to tell clients that it is over
WATCH_S = 0.1  # between two looks at the journal that is read
_PROGRESS = "slime_router.cli.terminal.progress"
AIOHTTP_WAITS = 2  # it waits that often, one after the other, before it cancels a handler


class Herald(Protocol):
    """Says to whoever started the router how that went."""

    def up(self, banner: str) -> None:
        """The router serves."""

    def failed(self, message: str) -> None:
        """The router cannot serve; `message` says why in one line."""


class Terminal:
    """Says it to the user."""

    def up(self, banner: str) -> None:
        """See `Herald`."""
        show(banner)

    def failed(self, message: str) -> None:
        """See `Herald`."""
        sys.stderr.write(error_line(message))


def run(config: Config, read_again: Callable[[], Config] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code.

    `read_again` gives the configuration as it is when the router is asked to reload it.
    """
    start_log(config.log_level, config.log_format)
    return serving(lambda: Gateway(config, read_again=read_again), Terminal())


def serving(new_gateway: Callable[[], Gateway], herald: Herald) -> int:
    """Serve until SIGINT or SIGTERM, and say so; returns the exit code."""
    gc.disable()  # until it serves: hardly anything of what is loaded is garbage
    try:
        return serve(new_gateway(), herald)
    except SetupError as exc:
        herald.failed(exc.message)
        return EXIT_FAILED
    except KeyboardInterrupt:  # while it loads, or for the second time
        return EXIT_INTERRUPTED
    finally:
        gc.enable()


def serve(gateway: Gateway, herald: Herald) -> int:
    """Serve on the configured address. On SIGTERM: stop accepting, drain, then cancel.

    A second signal cancels at once.

    Raises:
        SetupError: the chat path cannot be used.
    """
    config = gateway.config
    app = gateway.app()
    start_up = StartUp(app, gateway.reloader.start)
    hurry_at_second_signal(app, gateway.slow_clients, gateway.fleet.launcher)
    if (warning := gateway.access.warning(config.host)) is not None:
        logger.warning("%s", warning)

    def announce() -> None:
        start_up.is_over = True
        logger.info(
            "slime-router %s serves %s on %s",
            __version__,
            config.model_name,
            host_port(config.host, config.port),
        )
        found = gateway.template.findings
        is_odd = found.has_template and not found.prints_messages
        level = logging.WARNING if is_odd else logging.INFO
        logger.log(level, "chat template: %s", found.summary())
        herald.up(banner(gateway))

    if gateway.journal is not None and sys.stderr.isatty():
        import_module(_PROGRESS)  # in time: later it would hold the loop

    gc.freeze()  # hundreds of thousands of objects stay
    try:
        _run(_serving(gateway, app, announce), gateway.guard.note_exit)
    except OSError as exc:
        herald.failed(f"cannot listen on {host_port(config.host, config.port)}: {reason_of(exc)}")
        return EXIT_FAILED
    logger.info("slime-router has stopped")
    if gateway.failure is not None:
        herald.failed(gateway.failure)
        return EXIT_GAVE_UP if gateway.place is not None else EXIT_FAILED
    return EXIT_INTERRUPTED if start_up.was_interrupted else 0


async def _serving(gateway: Gateway, app: web.Application, announce: Callable[[], None]) -> None:
    """Serves until it is cancelled.

    Raises:
        OSError: the address cannot be used.
    """
    config = gateway.config
    runner = web.AppRunner(
        app,
        handle_signals=True,
        access_log=None,
        handler_cancellation=True,  # or a client that leaves would not be noticed
        shutdown_timeout=(config.shutdown_grace_period_s + FAREWELL_S) / AIOHTTP_WAITS,
    )
    with GarbageCollector(lambda: not gateway.slow_clients.has_requests).collecting():
        await runner.setup()
        try:
            await listener(gateway, runner).start()
            announce()
            gateway.supervisor.start("huge pages", partial(_gather_pages, gateway))
            if gateway.journal is not None:
                await _watch(gateway.journal)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


async def _gather_pages(gateway: Gateway) -> None:
    """Has the memory in huge pages once everything is loaded."""
    await asyncio.wait({gateway.encoder_choice})
    await HugePages().gather()


async def _watch(journal: SharedArchive) -> None:
    """Shows how far the journal is read, where somebody looks at a terminal."""
    if not sys.stderr.isatty():
        return
    from slime_router.cli.terminal.progress import bar

    with bar() as shown:
        task = shown.add_task("journal")
        while (progress := journal.progress) is not None:
            shown.update(task, completed=progress.turns, total=progress.of)
            await asyncio.sleep(WATCH_S)


def listener(gateway: Gateway, runner: web.AppRunner) -> Listener:
    """What accepts the clients of `gateway`, once it is started; the runner was set up.

    Raises:
        SetupError: this version of aiohttp does not fit.
    """
    return Listener(
        runner,
        protocols(runner),
        gateway.config.host,
        gateway.config.port,
        tls=gateway.tls,
        descriptors=gateway.descriptors,
        supervisor=gateway.supervisor,
        on_connection=gateway.slow_clients.note_new,
        on_full=gateway.slow_clients.close_idle,
        is_shared=gateway.place is not None,
    )


def _run(serving: Coroutine[Any, Any, None], on_exit: Callable[[SystemExit], None]) -> None:
    """Runs `serving` until a signal ends it, in its own loop.

    What it started goes on until `serving` has cleaned up, unlike in `asyncio.run`: requests have
    their grace period. Where a task of somebody else's raises SystemExit, which ends a loop,
    `on_exit` is called with it, and the loop goes on. At the end it does not wait long for those
    who go on though they are cancelled.
    """
    loop = _event_loop()
    asyncio.set_event_loop(loop)
    main = loop.create_task(serving)
    try:
        while not main.done():
            try:
                loop.run_until_complete(main)
            except web.GracefulExit:
                raise
            except SystemExit as exc:
                on_exit(exc)
    except (web.GracefulExit, KeyboardInterrupt):
        pass
    finally:
        try:
            if not main.done():
                main.cancel()
                with suppress(asyncio.CancelledError):
                    loop.run_until_complete(main)
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=FAREWELL_S))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not to be had on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
