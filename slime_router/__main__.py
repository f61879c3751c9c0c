"""`python -m slime_router`, and the script of that name."""

from typing import NoReturn

from slime_router.cli.processes.exit_codes import EXIT_INTERRUPTED, leave


def run() -> NoReturn:
    """Runs what the command line asks for, and ends the process."""
    try:
        from slime_router.cli.main import main
    except KeyboardInterrupt:  # nobody wants to see a traceback of imports
        leave(EXIT_INTERRUPTED)
    leave(main())


if __name__ == "__main__":
    run()
