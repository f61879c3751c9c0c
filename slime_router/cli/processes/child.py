"""One process of several: the whole router, started by `slime_router.cli.processes.parent`.

    python -m slime_router.cli.processes.child DIRECTORY NUMBER COUNT LIVES

It says to its parent what another router would print; its log goes where its parent's does.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from slime_router.cli.flags import read_settings
from slime_router.cli.log import start_log
from slime_router.cli.processes.exit_codes import leave
from slime_router.cli.run import serving
from slime_router.config import Config
from slime_router.errors import SetupError
from slime_router.server.app import Gateway
from slime_router.siblings.place import Place
from slime_router.siblings.portions import portion_of

logger = logging.getLogger("slime_router.cli.processes.child")


def child_main(argv: Sequence[str]) -> int:
    """Serve until a signal; returns the exit code."""
    place = Place.of(argv)
    config = place.config
    start_log(config.log_level, config.log_format, number=place.number)
    logger.info("process %d of %d has pid %d", place.number, place.count, os.getpid())

    def read_again() -> Config:
        return portion_of(_settings_now(place), place)

    def new_gateway() -> Gateway:
        mine = portion_of(_settings_of(place), place)
        return Gateway(mine, place=place, read_again=read_again)

    return serving(new_gateway, place)


def _settings_of(place: Place) -> Config:
    """What all were started with; in a later life what is there now, as others may have it."""
    if place.lives > 1:
        try:
            return _settings_now(place)
        except SetupError as exc:
            logger.warning("the settings of the start are used: %s", exc.message)
    return place.config


def _settings_now(place: Place) -> Config:
    """The files that the command line names are read again. Raises SetupError."""
    try:
        return read_settings(place.argv).config
    except SystemExit:
        raise SetupError("the settings cannot be read: see the line above") from None


if __name__ == "__main__":
    leave(child_main(sys.argv[1:]))
