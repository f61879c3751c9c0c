"""The way into SGLang's pure modules: its parsers and encoders, without its engine.

They live in a package whose own `__init__` loads the whole engine: where that is not installed,
its packages are entered by their paths, and a stand-in replaces `xgrammar`, of which only the
shapes of its values are used. Libraries of which these modules use nothing but names take most of
the time of their import: for as long as that takes, stand-ins replace these, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from slime_router.errors import SetupError

_PACKAGES = ("sglang", "sglang.srt")
_ONLY_NAMED = ("IPython", "openai", "requests")  # what serves, downloads or shows needs them
_DICT = "Param"  # how openai's names of dictionaries end
HOW_TO_INSTALL = "run `slime-router install-parsers`"
_BUILDERS = ("get_model_structural_tag",)  # these compute: they cannot be replaced by stand-ins


def import_from_sglang(name: str) -> Any:
    """A module of SGLang, `name` without the leading `sglang.srt.`.

    Raises:
        ModuleNotFoundError: of the name `sglang`: it is not installed.
        ImportError: it is too old to have this module, or misses something.
    """
    module = f"sglang.srt.{name}"
    if module in sys.modules or _has_engine():
        return importlib.import_module(module)
    _enter_without_engine()
    known = frozenset(sys.modules)
    try:
        with _stood_in(_ONLY_NAMED):
            return importlib.import_module(module)
    except Exception:  # noqa: BLE001 - a SGLang that does more with them than name them
        _forget_all_but(known)
        return importlib.import_module(module)


def _forget_all_but(known: Collection[str]) -> None:
    """Has the modules of SGLang that are not `known` imported again: they hold stand-ins."""
    for name in [name for name in sys.modules if name.startswith("sglang.") and name not in known]:
        package, _, own = name.rpartition(".")
        if package in sys.modules:  # where `from package import own` looks first
            vars(sys.modules[package]).pop(own, None)
        del sys.modules[name]


def _has_engine() -> bool:
    """Whether SGLang itself can be imported. torch alone may be a trainer's."""
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        importlib.import_module("sglang")
    except ImportError:  # something that the engine needs is missing
        for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
            del sys.modules[name]
        return False
    return True


def _enter_without_engine() -> None:
    """Makes the packages known by their paths, with stand-ins for what needs torch."""
    if "sglang" in sys.modules:
        return
    found = PathFinder.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("no module named sglang", name=_PACKAGES[0])
    root = str(found.submodule_search_locations[0])
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = [root + name.removeprefix("sglang").replace(".", "/")]
        sys.modules[name] = package
    for name in ("xgrammar", "xgrammar.structural_tag"):
        sys.modules.setdefault(name, _Shapes(name))


class _Shape(BaseModel):
    """A value that holds what it is given and writes it as JSON."""

    model_config = ConfigDict(extra="allow")


class _Shapes(ModuleType):
    """A module in which every name is a shape."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _BUILDERS:
            raise AttributeError(name)
        shape = _dictionary(name) if name.endswith(_DICT) else type(name, (_Shape,), {})
        setattr(self, name, shape)
        return shape


def _dictionary(name: str) -> Any:
    """The type of dictionaries of this name, of which no key is known."""
    return TypedDict(name, {})  # type: ignore[operator]


class _StandIns(MetaPathFinder, Loader):
    """Finds modules of shapes in place of these libraries."""

    def __init__(self, libraries: Collection[str]) -> None:
        self._libraries = libraries

    def find_spec(self, fullname: str, *_: Any, **__: Any) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._libraries:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Shapes(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: its shapes are made when they are asked for."""


@contextmanager
def _stood_in(libraries: Collection[str]) -> Iterator[None]:
    """Within the block, stand-ins are imported for those that nobody has imported yet."""
    finder = _StandIns([name for name in libraries if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in [*sys.modules.items()]:
            if getattr(module, "__loader__", None) is finder:
                del sys.modules[name]


def check_fit(part: Any, fields: Mapping[str, type], methods: tuple[str, ...]) -> None:
    """A part of SGLang has what is used of it: `fields` of these types, and `methods`.

    Raises:
        SetupError: it has not.
    """
    name = getattr(part, "__name__", type(part).__name__)
    for field, kind in fields.items():
        value = getattr(part, field, None)
        if not isinstance(value, kind):
            found = "is missing" if value is None else f"is of type {type(value).__name__}"
            raise SetupError(f"this version of SGLang does not fit: {name}.{field} {found}")
    for method in methods:
        found_method: Callable[..., Any] | None = getattr(part, method, None)
        if not callable(found_method):
            raise SetupError(f"this version of SGLang does not fit: {name}.{method}() is missing")
