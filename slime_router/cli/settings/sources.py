"""Where settings come from beside the command line: the environment, and a file."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slime_router.cli.settings.option import ENVIRONMENT, Option
from slime_router.configured_file import configured_text
from slime_router.errors import one_line

CONFIG_VARIABLE = f"{ENVIRONMENT}CONFIG"  # the same as --config
_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")  # set for a service that is called slime-router
_ALSO_OF_KUBERNETES = re.compile(r"(.*_)?(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)")
_CLOSE = 0.75  # how similar a variable must be to a setting to be taken for a misspelled one


class BadSource(Exception):
    """A setting that cannot be used; the message is one line for the user."""


def from_environment(options: Iterable[Option], environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of the variables that are set; a secret may stand in a file that one names.

    Raises:
        BadSource: a value is not allowed, or a secret is empty, unreadable or given twice, or a
            variable is nearly the name of a setting.
    """
    options = list(options)
    _check_names(options, environ)
    found: dict[str, Any] = {}
    for option in options:
        text = environ.get(option.variable)
        if option.setting.is_secret:
            text = _secret(option, environ)
        elif not text or (option.dest == "port" and _OF_KUBERNETES.match(text)):
            continue
        if text is None:
            continue
        try:
            found[option.dest] = option.read_variable(text)
        except ValueError as exc:
            raise BadSource(f"{option.variable} ({option.name}): {exc}") from None
    return found


def _check_names(options: Iterable[Option], environ: Mapping[str, str]) -> None:
    """Refuses what must be a misspelled setting; other variables may be for other programs."""
    known = {CONFIG_VARIABLE, *(option.variable for option in options)}
    known |= {f"{option.variable}_FILE" for option in options if option.setting.is_secret}
    names = [name.removeprefix(ENVIRONMENT) for name in known]
    for variable, text in environ.items():
        name = variable.removeprefix(ENVIRONMENT)
        is_ours = variable.startswith(ENVIRONMENT) and variable not in known
        if not is_ours or _ALSO_OF_KUBERNETES.fullmatch(name) or _OF_KUBERNETES.match(text):
            continue
        if close := difflib.get_close_matches(name, names, n=1, cutoff=_CLOSE):
            raise BadSource(f"unknown variable {variable}: did you mean {ENVIRONMENT}{close[0]}?")


def _secret(option: Option, environ: Mapping[str, str]) -> str | None:
    """An empty one is an error: the router would be open to all."""
    in_file = f"{option.variable}_FILE"
    if option.variable in environ and in_file in environ:
        raise BadSource(f"{option.variable} and {in_file} are both set")
    text = environ.get(option.variable)
    name = option.variable
    if in_file in environ:
        name, text = in_file, _text(environ[in_file], named=in_file).strip()
    if text == "":
        raise BadSource(f"{name} ({option.name}): the secret is empty")
    return text


def from_file(options: Iterable[Option], path: str) -> dict[str, Any]:
    """The settings in a TOML or YAML file. Keys are flags, with `_` or `-`, without `--`.

    Raises:
        BadSource: the file cannot be read, or a key or value is not allowed.
    """
    keys: dict[str, Option] = {}
    for option in options:
        for flag in (option.key, *option.flags):
            keys[flag.lstrip("-").replace("-", "_")] = option
    found: dict[str, Any] = {}
    for given, value in _table(path).items():
        key = str(given).replace("-", "_")
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f": did you mean '{close[0]}'?" if close else ""
            raise BadSource(f"{path}: unknown setting '{given}'{hint}")
        option = keys[key]
        if option.dest in found:
            raise BadSource(f"{path}: {given} ({option.name}): it is set twice")
        try:
            found[option.dest] = option.take(value)
        except ValueError as exc:
            raise BadSource(f"{path}: {given} ({option.name}): {exc}") from None
    return found


def _table(path: str) -> dict[Any, Any]:
    kind = Path(path).suffix.lower()
    if kind not in (".toml", ".yaml", ".yml"):
        raise BadSource(f"--config: {path} is neither .toml nor .yaml")
    text = _text(path, named="--config")
    if kind == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as exc:  # a number of thousands of digits is the former
            raise BadSource(f"{path}: {exc}") from None
    import yaml  # it takes longer to import than all the rest

    try:
        table = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except Exception as exc:  # noqa: BLE001 - its constructors let through whatever they meet
        raise BadSource(f"{path}: {one_line(exc)}") from None
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise BadSource(f"{path}: it must hold settings by name")
    names = Counter(str(name.value) for name, _ in root.value)  # YAML's last one would count
    [(name, count)] = names.most_common(1) or [("", 0)]
    if count > 1:
        raise BadSource(f"{path}: {name}: it is set twice")
    return table


def _text(path: str, *, named: str) -> str:
    try:
        return configured_text(Path(os.path.expanduser(path)))
    except OSError as exc:
        raise BadSource(f"{named}: cannot read {path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise BadSource(f"{named}: {path} is not UTF-8") from None
