"""Settings of the router that a sub-command has too: as flags, variables, and keys of a file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from slime_router.cli.settings.option import options
from slime_router.cli.settings.sources import (
    CONFIG_VARIABLE,
    BadSource,
    from_environment,
    from_file,
)
from slime_router.errors import SetupError


def add_config(p: argparse.ArgumentParser) -> None:
    """Adds `--config`, which names the router's own file."""
    p.add_argument("--config", metavar="FILE", help="the router's file with settings")


def shared_settings(
    asked: argparse.Namespace, *names: str, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The settings among `names` that have a value: from a flag, else a variable, else a file.

    A flag that was not given is None, or False, in `asked`. Other settings in the file are checked
    and left out.

    Raises:
        SetupError: the file or a variable cannot be used.
    """
    environ = os.environ if environ is None else environ
    known = [option for group in options().values() for option in group]
    path = asked.config or environ.get(CONFIG_VARIABLE)
    try:
        values = from_file(known, path) if path else {}
        values |= from_environment(known, environ)
    except BadSource as exc:
        raise SetupError(str(exc)) from None  # what it came from may hold a secret
    values |= {name: given for name in names if (given := getattr(asked, name, None))}
    return {name: values[name] for name in names if values.get(name)}
