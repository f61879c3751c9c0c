"""`python -m slime_router`, and the script of that name."""

from typing import NoReturn

from slime_router.cli.main import main
from slime_router.cli.processes.exit_codes import leave


def run() -> NoReturn:
    """Runs what the command line asks for, and ends the process."""
    leave(main())


if __name__ == "__main__":
    run()
