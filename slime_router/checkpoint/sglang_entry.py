"""The way into SGLang's pure modules: its parsers and encoders, without its engine.

They live in a package whose own `__init__` loads the whole engine: where that is not installed,
its packages are entered by their paths, and a stand-in replaces `xgrammar`, of which only the
shapes of its values are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

_PACKAGES = ("sglang", "sglang.srt")
HOW_TO_INSTALL = "run `slime-router install-parsers`"
_BUILDERS = ("get_model_structural_tag",)  # these compute: they cannot be replaced by stand-ins


def import_from_sglang(name: str) -> Any:
    """A module of SGLang, `name` without the leading `sglang.srt.`.

    Raises:
        ModuleNotFoundError: of the name `sglang`: it is not installed.
        ImportError: it is too old to have this module, or misses something.
    """
    if not _has_engine():
        _enter_without_engine()
    return importlib.import_module(f"sglang.srt.{name}")


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
        shape = type(name, (_Shape,), {})
        setattr(self, name, shape)
        return shape
