"""Command line, environment and file to a `Config`; what is wrong ends the program with one line.

A flag counts more than the environment, the environment more than the file.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from slime_router import __version__
from slime_router.cli.commands import COMMANDS, summaries
from slime_router.cli.one_line import OneLineParser
from slime_router.cli.settings.option import ENVIRONMENT, Option, options
from slime_router.cli.settings.sources import (
    CONFIG_VARIABLE,
    BadSource,
    from_environment,
    from_file,
)
from slime_router.config import Config
from slime_router.errors import SetupError
from slime_router.launch.command import ROUTERS_OWN

_SUBCOMMANDS = f"""\
Each setting can also be a variable, such as {ENVIRONMENT}PORT, or stand in the file of --config.

{summaries()}"""
_HIDDEN = "***"


class _HintingParser(OneLineParser):
    """An argument parser that guesses what a wrong flag was meant to be."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse overloads it
        """Parse, or exit with code 2 and a hint."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._hint(unknown[0]))
        for action in self._actions:  # argparse before 3.13 turns `--host=--` into an empty list
            if action.nargs is None and isinstance(getattr(parsed, action.dest, None), list):
                self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")
        return parsed

    def _hint(self, flag: str) -> str:
        name = flag.partition("=")[0]  # its value may be a key
        if name in COMMANDS:
            return f"unknown argument {name}: a command is the first argument"
        flags = [name for action in self._actions for name in action.option_strings]
        kind, known = ("", flags) if name.startswith("-") else ("the command ", [*COMMANDS])
        close = difflib.get_close_matches(name, known, n=1)
        return f"unknown argument {name}: " + (
            f"did you mean {kind}{close[0]}?" if close else "--help lists all commands and flags"
        )


def parser() -> argparse.ArgumentParser:
    """All flags. What is not given is not in the namespace."""
    p = _HintingParser(
        prog="slime-router",
        description="A token-exact gateway to SGLang workers.",
        usage="%(prog)s --hf-checkpoint PATH_OR_ID [FLAG ...] [-- SGLANG_FLAG ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        epilog=_SUBCOMMANDS,
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    p.add_argument("--config", metavar="FILE", help="a .toml or .yaml file with settings")
    p.add_argument(
        "--print-config",
        action="store_true",
        help="print all settings as TOML, without secrets, and where each comes from",
    )
    for title, group in options().items():
        added = p.add_argument_group(title)
        for option in group:
            if option.flags:
                added.add_argument(*option.flags, **_of_flag(option))
            for flag, value, text in option.setting.shorthands:
                added.add_argument(
                    flag, dest=option.dest, action="store_const", const=value, help=text
                )
    return p


def _of_flag(option: Option) -> dict[str, Any]:
    """What `argparse` is to know of a flag."""
    known: dict[str, Any] = {"dest": option.dest, "help": option.setting.help}
    if not option.is_required:
        known["help"] += f" (default: {option.default_in_words()})"
    if option.kind is bool:
        return {**known, "action": argparse.BooleanOptionalAction}
    choices = f"{{{','.join(option.choices)}}}" if option.choices else None
    if option.setting.is_repeated:
        known |= {"nargs": "+", "action": "append"}
    elif option.is_list:
        known["nargs"] = "*"
    return {**known, "type": option.argument, "metavar": option.setting.metavar or choices}


class Settings:
    """What the user gave on the command line, and the sources beside it, which may change.

    Attributes:
        config: all of it put together, as it was first read.
    """

    def __init__(self, given: Mapping[str, Any], path: str, environ: Mapping[str, str]) -> None:
        self._given, self._path, self._environ = given, path, environ
        self._known = [option for group in options().values() for option in group]
        self._origins: dict[str, str] = {}
        self.config = self._read()

    def __repr__(self) -> str:
        return f"<Settings of {len(self._origins)} values>"

    def read_again(self) -> Config:
        """The configuration as it is now: the file, and the files of secrets, are read again.

        Raises:
            SetupError: something in them cannot be used.
        """
        try:
            return self._read()
        except BadSource as exc:
            raise SetupError(str(exc)) from None  # what it came from may hold a secret

    def printed(self) -> str:
        """The configuration as a file that `--config` reads, with the origin of each value."""
        return _printed(self.config, self._origins)

    def _read(self) -> Config:
        in_file = from_file(self._known, self._path) if self._path else {}
        in_environment = from_environment(self._known, self._environ)
        values = {**in_file, **in_environment, **self._given}
        if not values.get("hf_checkpoint"):  # argparse would say so before a misspelled flag
            raise BadSource(
                "--hf-checkpoint is required: a directory, or an id on the hub (see --help)"
            )
        config = Config(**values)
        _check(config)
        self._origins = dict.fromkeys(in_file, self._path)
        self._origins |= {o.dest: o.variable for o in self._known if o.dest in in_environment}
        self._origins |= dict.fromkeys(self._given, "flag")
        return config


def read_settings(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """What the user asks for; exits with code 2 on wrong values.

    With `--print-config`, it is printed instead, and the exit code is 0.
    """
    p = parser()
    environ = os.environ if environ is None else environ
    own, worker_flags = _split(sys.argv[1:] if argv is None else argv)
    given = vars(p.parse_args(own))
    path = given.pop("config", None) or environ.get(CONFIG_VARIABLE) or ""
    is_to_print = given.pop("print_config", False)
    given = {name: _frozen(value) for name, value in given.items()}
    if worker_flags:
        given["worker_flags"] = tuple(worker_flags)
    try:
        settings = Settings(given, path, environ)
    except BadSource as exc:
        p.error(str(exc))
    if is_to_print:
        sys.stdout.write(settings.printed())
        p.exit()
    return settings


def read_config(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """The configuration alone; see `read_settings`."""
    return read_settings(argv, environ).config


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our own arguments, and those after `--`, which are SGLang's."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def _check(config: Config) -> None:
    """Refuses settings that do not go together."""
    if config.worker_flags and not config.launch_workers:
        raise BadSource(
            "flags after -- (worker_flags) are for workers: --launch-workers sets how many"
        )
    for flag in config.worker_flags:
        if flag.partition("=")[0] in ROUTERS_OWN:
            raise BadSource(f"{flag} after --: the router chooses where its workers listen")
    if not config.openai_chat_completion_path.startswith("/"):
        raise BadSource("--openai-chat-completion-path must begin with /")


def _printed(config: Config, origins: Mapping[str, str]) -> str:
    """All settings, as a file that `--config` reads; those without a value are comments."""
    lines = []
    for title, group in options().items():
        lines.append(f"# {title}")
        for option in group:
            value = getattr(config, option.dest)
            shown = option.shown(value)
            if shown is None:
                line = f"# {option.key} is not set"
            elif option.setting.is_secret:
                line = f"# {option.key} = {_HIDDEN}"
            else:
                line = f"{option.key} = {shown}"
            lines.append(f"{line}  # {origins.get(option.dest, 'default')}")
        lines.append("")
    return "\n".join(lines)
