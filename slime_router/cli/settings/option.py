"""A setting as users give it: by a flag, a variable of the environment, or a key of a file."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from slime_router.config import GROUPS, Config
from slime_router.setting import Setting, declared, flags_of

ENVIRONMENT = "SLIME_ROUTER_"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_JSON = "JSON"  # the metavar of what may take several lines
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


class Option:
    """One field of `Config`, and how its values are read and shown."""

    def __init__(self, made: Field[Any], hint: Any) -> None:
        self.dest = made.name
        self.default: Any = made.default
        self.is_required = made.default is MISSING
        self.setting: Setting = declared(made)
        self.flags = flags_of(made)
        self.is_list = get_origin(hint) is tuple
        if isinstance(hint, UnionType):
            (hint,) = (one for one in get_args(hint) if one is not NoneType)
        self.choices: tuple[str, ...] = get_args(hint) if get_origin(hint) is Literal else ()
        self.kind: type = hint if hint in (bool, int, float) else str
        self.key = (self.flags[0] if self.flags else self.dest).lstrip("-").replace("-", "_")
        self.variable = ENVIRONMENT + self.key.upper()

    @property
    def name(self) -> str:
        """How messages call it: its usual flag, if it has one."""
        return self.flags[0] if self.flags else self.key

    def read(self, text: str) -> Any:
        """The value of one word, such as an argument.

        Raises:
            ValueError: it is not allowed; the message is for the user.
        """
        if "\0" in text:  # only a file can say it
            raise ValueError("it has a NUL character")
        if not text.isascii() and text.encode(errors="ignore").decode() != text:
            raise ValueError("it is not UTF-8")
        if self.setting.read is not None:
            return self.setting.read(text)
        if self.choices:
            return self._chosen(text)
        if self.kind is bool:
            if text.lower() not in _BOOLEANS:
                raise ValueError(f"{text} is neither true nor false")
            return _BOOLEANS[text.lower()]
        if self.kind is str:
            if self.flags and not self.is_required and not text.strip():  # "$NOT_SET"
                raise ValueError("it is empty")
            if self._is_one_line and _CONTROLS.search(text):
                raise ValueError("it has control characters")
            return os.path.expanduser(text) if self.setting.is_path else text
        try:
            value = self.kind(text)
        except ValueError:
            raise ValueError(f"invalid {self.kind.__name__} value: {text!r}") from None
        return self._within(value, text)

    @property
    def _is_one_line(self) -> bool:
        """Whether it stands in headers, URLs, replies and the log."""
        return not self.setting.is_path and self.setting.metavar != _JSON

    def argument(self, text: str) -> Any:
        """The same for `argparse`, which shows only messages of its own exception."""
        try:
            return self.read(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    def read_variable(self, text: str) -> Any:
        """The value of a variable: a list is separated by commas or spaces.

        Raises:
            ValueError: it is not allowed.
        """
        if not self.is_list:
            return self.read(text)
        if self.setting.is_repeated:  # one list after the other, with semicolons between them
            return tuple(tuple(_words(each)) for each in text.split(";") if each.strip())
        if not self.flags:  # the worker's own flags, quoted as in a shell
            return tuple(shlex.split(text))
        return tuple(_words(text))

    def take(self, value: Any) -> Any:
        """The value that stands in a file: of its own type, or as text.

        Raises:
            ValueError: it is not allowed.
        """
        if self.setting.is_repeated:
            if not isinstance(value, list) or not all(map(_is_strings, value)):
                raise ValueError("must be a list of lists of strings")
            if [] in value:
                raise ValueError("one list of them is empty")
            return tuple(tuple(map(self.read, words)) for words in value)
        if self.is_list:
            if not _is_strings(value):
                raise ValueError("must be a list of strings")
            return tuple(map(self.read, value))
        if isinstance(value, str):
            return self.read(value)
        if self.kind is bool and isinstance(value, bool):
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.setting.read is None and is_number:
            if self.kind is float or (self.kind is int and isinstance(value, int)):
                self._within(value, str(value))
                return self.kind(value)
            if self.kind is int:
                raise ValueError("must be a whole number")
        words = {bool: "true or false", int: "a number", float: "a number"}
        kind = str if self.setting.read is not None else self.kind
        raise ValueError(f"must be {words.get(kind, 'a string')}")

    def shown(self, value: Any) -> str | None:
        """The value in TOML; None if it stands for something that has no value."""
        if self.setting.read is not None:
            return _quoted(self.setting.show(value))
        if value is None:
            return None
        if self.setting.is_repeated:
            return f"[{', '.join(map(_quoted_list, value))}]"
        if self.is_list:
            return _quoted_list(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        return _quoted(value) if isinstance(value, str) else repr(value)

    def default_in_words(self) -> str:
        """What holds if the user says nothing."""
        if self.setting.default_help is not None:
            return self.setting.default_help
        if self.default in (None, ()):
            return "none"
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        is_whole = isinstance(self.default, float) and self.default.is_integer()
        return str(int(self.default) if is_whole else self.default)

    def _chosen(self, text: str) -> str:
        if text.lower() not in self.choices:
            raise ValueError(f"invalid choice: {text!r} (choose from {', '.join(self.choices)})")
        return text.lower()

    def _within(self, value: float, text: str) -> float:
        low, high = self.setting.low, self.setting.high
        if low is not None and high is not None and not low <= value <= high:  # nor is NaN
            raise ValueError(f"{text} is not in [{low}, {high}]")
        return value


def options() -> dict[str, list[Option]]:
    """All settings, by the title of their group."""
    hints = get_type_hints(Config)
    return {group.title: [Option(f, hints[f.name]) for f in fields(group)] for group in GROUPS}


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _quoted_list(words: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, words))}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
