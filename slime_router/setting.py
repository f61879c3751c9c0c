"""One setting of the router, declared where its field stands: the command line, the environment,
the configuration file and the documentation are all derived from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")
_KEY = "setting"
MOST = 2**40
FOREVER_S = 1e9
SOON = 0.001  # seconds; what may not be 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to know of a setting beside its name, type and default.

    Numbers must be in `[low, high]`. `flag` replaces the spelling that follows from the name; None
    means there is no flag. `shorthands` are flags without a value: their spelling, value and help.
    """

    help: str
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    flag: str | None = ""
    aliases: tuple[str, ...] = ()
    shorthands: tuple[tuple[str, Any, str], ...] = ()
    default_help: str | None = None  # what a default of None or () means
    is_secret: bool = False
    is_repeated: bool = False  # a list of lists: each use of the flag adds one
    is_path: bool = False  # `~` stands for the home directory: shells leave it in `--journal=~/x`
    read: Callable[[str], Any] | None = None  # raises ValueError with a message for the user
    show: Callable[[Any], str] = str  # the inverse of `read`


def setting(default: T, help: str, **more: Any) -> T:
    """A field of a dataclass with its default; `more` are fields of `Setting`."""
    known = Setting(help, **more)
    made: T = field(default=default, repr=not known.is_secret, metadata={_KEY: known})
    return made  # typed as a dataclass takes it: a default has the type of its field


def required(help: str, **more: Any) -> Any:
    """A field of a dataclass that has no default."""
    return field(metadata={_KEY: Setting(help, **more)})


def seconds(
    default: float, help: str, *, low: float = 0.0, high: float = FOREVER_S, **more: Any
) -> float:
    """A field that says how long something may take, in seconds."""
    return setting(default, help, metavar="S", low=low, high=high, **more)


def path(help: str, metavar: str = "FILE", **more: Any) -> str | None:
    """A field that names a file or a directory; None unless the user does."""
    return setting(None, help, metavar=metavar, is_path=True, **more)


def count(default: T, help: str, *, metavar: str = "N", low: int = 1, **more: Any) -> T:
    """A field that says how many there may be; at least one, unless `low` is 0."""
    return setting(default, help, metavar=metavar, low=low, high=more.pop("high", MOST), **more)


def declared(made: Field[Any]) -> Setting:
    """What was declared with a field."""
    return cast(Setting, made.metadata[_KEY])


def flags_of(made: Field[Any]) -> tuple[str, ...]:
    """The spellings of its flag, the usual one first: `worker_wait_s` is `--worker-wait-secs`."""
    known = declared(made)
    if known.flag is None:
        return ()
    name = made.name.removesuffix("_s") + "_secs" if made.name.endswith("_s") else made.name
    return (known.flag or f"--{name.replace('_', '-')}", *known.aliases)
