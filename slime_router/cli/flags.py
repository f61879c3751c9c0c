"""Command-line arguments to a `Config`; wrong ones end the program with one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from slime_router import __version__
from slime_router.cli import flag_groups
from slime_router.cli.one_line import OneLineParser
from slime_router.config import Config
from slime_router.launch.command import ROUTERS_OWN

_SUBCOMMANDS = """\
slime-router check CHECKPOINT  which capabilities of a checkpoint are served exactly
slime-router diagnose FILE     where held tokens and a text diverge, and why
slime-router install-parsers   installs what tool calls and reasoning are read with"""


class _HintingParser(OneLineParser):
    """An argument parser that guesses what a wrong flag was meant to be."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse overloads it
        """Parse, or exit with code 2 and a hint."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._hint(unknown[0]))
        return parsed

    def _hint(self, flag: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(flag.partition("=")[0], known, n=1)
        name = flag.partition("=")[0]  # its value may be a key
        return f"unknown argument {name}" + (f": did you mean {close[0]}?" if close else "")


def parser() -> argparse.ArgumentParser:
    """All flags. Names and aliases are those that users of slime and sglang-router know."""
    p = _HintingParser(
        prog="slime-router",
        description="A token-exact gateway to SGLang workers.",
        usage="%(prog)s --hf-checkpoint PATH_OR_ID [FLAG ...] [-- SGLANG_FLAG ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_SUBCOMMANDS,
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    flag_groups.add_model_flags(p.add_argument_group("model"))
    flag_groups.add_worker_flags(p.add_argument_group("workers"))
    flag_groups.add_retry_flags(p.add_argument_group("worker failures"))
    flag_groups.add_launch_flags(p.add_argument_group("workers that the router starts"))
    flag_groups.add_server_flags(p.add_argument_group("server"))
    flag_groups.add_access_flags(p.add_argument_group("access"))
    flag_groups.add_limit_flags(p.add_argument_group("limits"))
    flag_groups.add_token_flags(p.add_argument_group("tokens"))
    flag_groups.add_session_flags(p.add_argument_group("sessions"))
    flag_groups.add_chat_flags(p.add_argument_group("chat completions"))
    return p


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the arguments ask for; exits with code 2 on wrong ones."""
    p = parser()
    own, worker_flags = _split(sys.argv[1:] if argv is None else argv)
    given = vars(p.parse_args(own))
    if not given["hf_checkpoint"]:  # argparse would say so before it names a misspelled flag
        p.error("--hf-checkpoint is required")
    if given.pop("verbose"):
        given["log_level"] = "debug"
    values = {name: value for name, value in given.items() if value is not None}
    if values.get("version_policy") == -1:
        del values["version_policy"]
    for name in ("worker_urls", "middleware_paths", "cors_allowed_origins"):
        if name in values:
            values[name] = tuple(values[name])
    _check_worker_flags(p, worker_flags, is_launching="launch_workers" in values)
    if not str(values.get("openai_chat_completion_path", "/")).startswith("/"):
        p.error("--openai-chat-completion-path must begin with /")
    return Config(**values, worker_flags=tuple(worker_flags))


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our own arguments, and those after `--`, which are SGLang's."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def _check_worker_flags(
    p: argparse.ArgumentParser, flags: Sequence[str], *, is_launching: bool
) -> None:
    if flags and not is_launching:
        p.error("flags after -- are for workers: --launch-workers sets how many to start")
    for flag in flags:
        if flag.partition("=")[0] in ROUTERS_OWN:
            p.error(f"{flag} after --: the router chooses where its workers listen")
