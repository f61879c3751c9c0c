"""The command: runs the server until a signal stops it, or a sub-command.

Exit codes: 0 stopped by a signal, 1 cannot start, 2 wrong arguments, 130 interrupted before it
was up or while it was stopping.

What serves takes more than a second to import, so that waits until the arguments are read.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from slime_router.cli.commands import COMMANDS, command
from slime_router.cli.flags import read_settings
from slime_router.cli.one_line import error_line
from slime_router.cli.processes.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from slime_router.cli.standard_streams import fill_standard_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM, or run a sub-command; returns the exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:  # while its code is loaded
        return EXIT_INTERRUPTED


def _main(given: list[str]) -> int:
    fill_standard_streams()
    try:
        os.getcwd()
    except OSError as exc:  # much of what is imported asks for it
        sys.stderr.write(error_line(f"the working directory cannot be used: {exc.strerror}"))
        return EXIT_FAILED
    if given and given[0] in COMMANDS:
        return command(given[0])(given[1:])
    settings = read_settings(given)
    if settings.config.processes > 1:
        from slime_router.cli.processes.parent import run_all

        return run_all(settings.config, given)
    gc.disable()  # hardly anything of what is loaded is garbage
    try:
        from slime_router.cli.run import run

        return run(settings.config, settings.read_again)
    finally:
        gc.enable()
