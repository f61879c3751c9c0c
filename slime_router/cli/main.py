"""The command: runs the server until a signal stops it.

Exit codes: 0 stopped by a signal, 1 cannot start, 2 wrong arguments, 130 interrupted before it
was up or while it was stopping.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from slime_router.cli.banner import banner
from slime_router.cli.check import check_main
from slime_router.cli.diagnose import diagnose_main
from slime_router.cli.flags import read_config
from slime_router.cli.install_parsers import install_parsers_main
from slime_router.errors import SetupError
from slime_router.server.app import Gateway
from slime_router.server.signals import StartUp, hurry_at_second_signal

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
GC_THRESHOLD = 10_000  # objects: a request makes hundreds, and leaves hardly any in cycles
MIN_GRACE_S = 0.01  # aiohttp takes 0 for "without end"
AIOHTTP_WAITS = 2  # it waits that often, one after the other, before it cancels a handler


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM, or run a sub-command; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["check"]:
        return check_main(given[1:])
    if given[:1] == ["diagnose"]:
        return diagnose_main(given[1:])
    if given[:1] == ["install-parsers"]:
        return install_parsers_main(given[1:])
    config = read_config(given)
    _start_log(config.log_level)
    try:
        return serve(Gateway(config))
    except SetupError as exc:
        return _failed(exc.message)
    except KeyboardInterrupt:  # while it loads, or for the second time
        return EXIT_INTERRUPTED


def serve(gateway: Gateway) -> int:
    """Serve on the configured address. On SIGTERM: stop accepting, drain, then cancel.

    A second signal cancels at once.

    Raises:
        SetupError: the chat path cannot be used.
    """
    config = gateway.config
    app = gateway.app()
    start_up = StartUp(app)
    hurry_at_second_signal(app, gateway.slow_clients)
    if (warning := gateway.access.warning(config.host)) is not None:
        logger.warning("%s", warning)

    def announce(_: str) -> None:
        start_up.is_over = True
        sys.stdout.write(banner(gateway))
        sys.stdout.flush()

    gc.set_threshold(GC_THRESHOLD)
    gc.collect()
    gc.freeze()  # a hundred thousand objects stay: to look through them would stall every stream
    try:
        web.run_app(
            app,
            host=config.host,
            port=config.port,
            print=announce,
            access_log=None,
            handler_cancellation=True,  # or a client that leaves would not be noticed
            shutdown_timeout=max(config.shutdown_grace_period_s, MIN_GRACE_S) / AIOHTTP_WAITS,
            loop=_event_loop(),
            ssl_context=gateway.tls,
        )
    except OSError as exc:
        return _failed(f"cannot listen on {config.host}:{config.port}: {_reason(exc)}")
    return EXIT_INTERRUPTED if start_up.was_interrupted else 0


def _failed(message: str) -> int:
    sys.stderr.write(f"slime-router: error: {message}\n")
    return 1


def _reason(exc: OSError) -> str:
    """Without the address, which an event loop's own message says again."""
    if exc.errno is not None and exc.errno > 0:  # a resolver's numbers are negative
        return os.strerror(exc.errno)
    return str(exc.strerror or exc)


def _start_log(level: str) -> None:
    """Our own log at `level`; from libraries only warnings."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("slime_router").setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_without_headers)


def _without_headers(record: logging.LogRecord) -> bool:
    """aiohttp shows the header that it cannot read: there may be a key in it."""
    exc = record.exc_info[1] if record.exc_info else None
    if isinstance(exc, HttpProcessingError):
        record.msg, record.args, record.exc_info = "a request that is not HTTP", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not to be had on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
