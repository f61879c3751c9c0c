"""`--processes N`: starts N processes that are one router, and keeps them until a signal.

It serves nothing itself. The port is its own as long as it lives: a process that is started again
finds it free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

from slime_router.cli.log import start_log
from slime_router.cli.one_line import error_line
from slime_router.cli.processes.exit_codes import EXIT_FAILED, EXIT_GAVE_UP, EXIT_INTERRUPTED
from slime_router.cli.standard_streams import show
from slime_router.config import Config
from slime_router.edge.listener import bound, reason_of
from slime_router.errors import SetupError
from slime_router.host_port import host_port
from slime_router.launch.keeper import Keeper, Kept
from slime_router.launch.launcher import Launcher
from slime_router.launch.process import KILL_TIMEOUT_S, ask_to_end, ask_to_reload
from slime_router.server.signals import Terminal, endings, hang_ups, note_unused, unused
from slime_router.siblings.place import MAX_SOCKET_PATH_LEN, Place, write_settings
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

STARTUP_TIMEOUT_S = 1800.0  # a checkpoint may have to be fetched
POLL_S = 0.1
# Before each new start of one that served for less than `STEADY_S`, several times in a row.
RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0)
STEADY_S = 10.0
END_S = 30.0  # after the grace period of requests: a journal is written, connections are closed
HURRY_S = 5.0  # after a second signal
KILL_GRACE_S = 2.0  # between SIGTERM and SIGKILL, for one that did not answer in time
_TERMINATED = 128 + signal.SIGTERM  # the exit code of one that had no handler yet


class Child(Kept):
    """One of the processes."""

    def __init__(self, directory: Path, number: int, count: int) -> None:
        # Where modules are found is the same for all: plug-ins are modules, too.
        env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)) or "."}
        super().__init__(f"process {number}", env=env)
        self.place = Place(directory, number, count)

    @property
    def url(self) -> str:
        """The address of the child's own socket."""
        return str(self.place.socket())

    def arguments(self) -> Sequence[str]:
        """The command line of its next life."""
        self.place.begin()
        place = Place(self.place.directory, self.place.number, self.place.count, self.starts)
        command = (sys.executable, "-P", "-m", "slime_router.cli.processes.child")
        return (*command, *place.arguments)


def run_all(config: Config, argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; returns the worst exit code of the processes.

    `argv` is what the settings come from: the processes read it again when they are to reload them.
    """
    start_log(config.log_level, config.log_format)
    try:
        with _directory() as directory:
            write_settings(directory, config, argv)
            return asyncio.run(Parent(config, directory).serve())
    except SetupError as exc:
        _say(exc.message)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class Parent:
    """Starts the processes, keeps them, and ends them."""

    def __init__(self, config: Config, directory: Path) -> None:
        self._config = config
        count = config.processes
        self._children = [Child(directory, number, count) for number in range(1, count + 1)]
        self._keeping: dict[Child, asyncio.Task[None]] = {}
        self._to_reload: set[Kept] = set()  # they were not up yet when a signal asked for it
        self._news = asyncio.Event()  # something that somebody waits for may have come
        self._signals: list[signal.Signals] = []
        self._terminal = Terminal()
        self._launcher: Launcher | None = None
        self._keeper = Keeper(
            answers=self._answers,
            on_up=self._note_up,
            on_down=self._note,
            startup_timeout_s=STARTUP_TIMEOUT_S,
            grace_s=KILL_GRACE_S,
            hopeless=(EXIT_FAILED,),
            restart_delays_s=RESTART_DELAYS_S,
            steady_s=STEADY_S,
            poll_s=POLL_S,
        )

    async def serve(self) -> int:
        """Until a signal, or until no process can serve any more; returns the exit code.

        Raises:
            SetupError: nobody can listen on the address.
        """
        self._heed_signals()
        async with AsyncExitStack() as stack:
            for sock in await self._reserved():
                stack.callback(sock.close)
            supervisor = await stack.enter_async_context(Supervisor())
            await self._launch(stack, supervisor)
            stack.push_async_callback(self._end, supervisor)
            for child in () if self._signals else self._children:
                keep = partial(self._keeper.keep, child)
                task = supervisor.start("watch of", keep, about=child.name)
                task.add_done_callback(self._note)
                self._keeping[child] = task
            await self._until(lambda: self._are_up or self._is_over(any))
            was_interrupted = not self._are_up and signal.SIGINT in self._signals
            if self._are_up:
                self._announce()
                await self._until(lambda: self._is_over(all))
        if was_interrupted:
            return EXIT_INTERRUPTED
        return self._code()

    async def _launch(self, stack: AsyncExitStack, supervisor: Supervisor) -> None:
        """Starts the workers that are to be launched, and waits until one of them answers.

        Raises:
            SetupError: none does.
        """
        if not self._config.launch_workers:
            return
        from slime_router.cli.processes.launched import parents_launcher  # takes long to import

        file = self._children[0].place.launched
        self._launcher = parents_launcher(self._config, file, supervisor)
        launching = asyncio.ensure_future(self._launcher.__aenter__())
        launching.add_done_callback(self._note)
        await self._until(lambda: launching.done() or bool(self._signals))
        if launching.done():
            launching.result()
            stack.push_async_exit(self._launcher)
            return
        launching.cancel()
        await asyncio.wait([launching])

    @property
    def _are_up(self) -> bool:
        return all(child.was_up for child in self._children)

    def _is_over(self, some: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether there was a signal, one of them said that all must end, or they are given up."""
        is_told = any(child.code == EXIT_GAVE_UP for child in self._children)
        return bool(self._signals) or is_told or some(t.done() for t in self._keeping.values())

    def _note_up(self, child: Kept) -> None:
        if child in self._to_reload and child.process is not None:
            ask_to_reload(child.process)
        self._to_reload.discard(child)
        self._note(child)

    def _note(self, _: object) -> None:
        self._news.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._news.wait()
            self._news.clear()

    async def _answers(self, url: str) -> bool:
        return any(child.url == url and child.place.banner for child in self._children)

    async def _reserved(self) -> list[socket.socket]:
        """The address, bound as long as they are open; only a socket that shares it can listen.

        Raises:
            SetupError: somebody listens there, or nobody can.
        """
        address = (self._config.host, self._config.port)
        try:
            for sock in await bound(*address, is_shared=False):  # another router might share it
                sock.close()
            return await bound(*address, is_shared=True)
        except OSError as exc:
            raise SetupError(f"cannot listen on {host_port(*address)}: {reason_of(exc)}") from exc

    def _announce(self) -> None:
        banner = self._children[0].place.banner or ""
        show(f"{banner}  {'processes':<9} {len(self._children)}\n")

    # The end

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, *endings()):
            loop.add_signal_handler(number, self._heed, number)
        for number in unused():
            loop.add_signal_handler(number, note_unused, number)
        for number in hang_ups():
            loop.add_signal_handler(number, self._hang_up, number)

    def _hang_up(self, number: signal.Signals) -> None:
        """All read their settings again; or all end, where it says that the terminal is closed."""
        if self._terminal.is_gone or self._signals:
            self._heed(number)
            return
        for child in self._children:
            if child.process is not None and child.is_up:
                ask_to_reload(child.process)
            else:  # it may have read them already, or have those of the start
                self._to_reload.add(child)

    def _heed(self, number: signal.Signals) -> None:
        """The first one lets requests finish, the second does not; both do so in all processes."""
        logger.info("%s: the router ends", number.name)
        self._signals.append(number)
        self._news.set()
        self._tell_all()
        if self._launcher is not None and len(self._signals) > 1:
            self._launcher.hurry()

    def _tell_all(self) -> None:
        self._keeper.is_ending = True
        for child in self._children:
            if child.process is not None:
                ask_to_end(child.process)

    async def _end(self, supervisor: Supervisor) -> None:
        """Waits for the end of all of them; without a signal, it asks them to end."""
        if not self._signals:
            self._tell_all()
        for child, task in self._keeping.items():
            if child.process is None:  # it waits for its next start
                task.cancel()
        try:
            async with asyncio.timeout(self._config.shutdown_grace_period_s + END_S) as limit:
                loop = asyncio.get_running_loop()
                while left := [task for task in self._keeping.values() if not task.done()]:
                    await self._next(left)
                    if len(self._signals) > 1:
                        limit.reschedule(min(limit.when() or 0.0, loop.time() + HURRY_S))
        except TimeoutError:
            logger.error("the processes do not end: they are killed")
            self._keeper.grace_s = 0.0
        await supervisor.stop([*self._keeping.values()], timeout_s=2 * KILL_TIMEOUT_S)

    async def _next(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Until one of them has ended, or a signal came."""
        self._news.clear()
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait([news, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    def _code(self) -> int:
        """The worst of theirs; why they cannot serve is said once."""
        for failure in dict.fromkeys(child.place.failure for child in self._children):
            if failure is not None:
                _say(failure)
        codes = [_as_of_a_router(child.code) for child in self._children]
        return max(codes, default=0) or (0 if self._signals else EXIT_FAILED)


@contextmanager
def _directory() -> Iterator[Path]:
    """A private directory with a name that is short enough for sockets in it."""
    where = tempfile.gettempdir()
    is_long = len(os.fsencode(where)) + len("/slime-router-12345678/999.sock") > MAX_SOCKET_PATH_LEN
    with tempfile.TemporaryDirectory(
        prefix="slime-router-", dir="/tmp" if is_long else where, ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


def _as_of_a_router(code: int | None) -> int:
    """What the process would have ended with, had it been alone."""
    if code is None or code == _TERMINATED:
        return 0
    return EXIT_FAILED if code == EXIT_GAVE_UP else code


def _say(message: str) -> None:
    sys.stderr.write(error_line(message))
