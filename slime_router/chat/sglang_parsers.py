"""SGLang's own parsers of tool calls and reasoning, without SGLang's engine.

They are what the models' formats are described by (44 of tool calls, 36 of reasoning), so none of
that is written here again. They live in a package whose own `__init__` loads the whole engine:
where the engine is not installed its packages are entered by their paths, and `xgrammar`, of which
only the shapes of its values are used, is stood in for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

from slime_router.errors import SetupError
from slime_router.types import ReplyFormat

_PACKAGES = ("sglang", "sglang.srt")
_BUILDERS = ("get_model_structural_tag",)  # these compute: nothing can stand in for them
MISSING = "tool-call and reasoning parsers need SGLang: run `slime-router install-parsers`"


@dataclass(frozen=True, slots=True)
class SGLangParsers:
    """The classes that are used of SGLang."""

    FunctionCallParser: Any
    JsonArrayParser: Any
    ReasoningParser: Any
    Tool: Any
    ToolChoice: Any
    get_json_schema_constraint: Any

    def json_schema(self, tools: list[Any], choice: Any, form: ReplyFormat) -> Any:
        """The schema of a JSON array of calls; None where the tools contradict one another."""
        return self.get_json_schema_constraint(tools, choice, parallel_tool_calls=form.is_parallel)

    @property
    def tool_formats(self) -> list[str]:
        """The names that `--tool-call-parser` takes."""
        return sorted(self.FunctionCallParser.ToolCallParserEnum)

    @property
    def reasoning_formats(self) -> list[str]:
        """The names that `--reasoning-parser` takes."""
        return sorted(self.ReasoningParser.DetectorMap)


def load_parsers() -> SGLangParsers:
    """SGLang's parser classes.

    Raises:
        SetupError: SGLang is not installed, or too old.
    """
    try:
        if not _has_engine():
            _enter_without_engine()
        protocol = importlib.import_module("sglang.srt.entrypoints.openai.protocol")
        calls = importlib.import_module("sglang.srt.function_call.function_call_parser")
        arrays = importlib.import_module("sglang.srt.function_call.json_array_parser")
        reasoning = importlib.import_module("sglang.srt.parser.reasoning_parser")
        return SGLangParsers(
            FunctionCallParser=calls.FunctionCallParser,
            JsonArrayParser=arrays.JsonArrayParser,
            ReasoningParser=reasoning.ReasoningParser,
            Tool=protocol.Tool,
            ToolChoice=protocol.ToolChoice,
            get_json_schema_constraint=calls.get_json_schema_constraint,
        )
    except (ImportError, AttributeError) as exc:
        raise SetupError(f"{MISSING} ({exc})") from exc


def _has_engine() -> bool:
    """Whether SGLang itself can be imported. torch alone may be a trainer's."""
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        importlib.import_module("sglang")
    except ImportError:  # of what the engine needs, something is missing
        for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
            del sys.modules[name]
        return False
    return True


def _enter_without_engine() -> None:
    """Makes the packages known by their paths, and stands in for what needs torch."""
    if "sglang" in sys.modules:
        return
    found = PathFinder.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        raise ImportError("no module named sglang")
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
    """A module of which every name is a shape."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _BUILDERS:
            raise AttributeError(name)
        shape = type(name, (_Shape,), {})
        setattr(self, name, shape)
        return shape
