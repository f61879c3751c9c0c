"""SGLang's own parsers of tool calls and reasoning, without SGLang's engine.

They are what the models' formats are described by (44 of tool calls, 36 of reasoning), so none of
that is written here again. `sglang_entry.py` opens the package without its engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from slime_router.checkpoint.sglang_entry import HOW_TO_INSTALL, import_from_sglang
from slime_router.errors import SetupError
from slime_router.replies.detectors import read_any_json, read_whole_numbers
from slime_router.types import ReplyFormat

MISSING = f"tool-call and reasoning parsers need SGLang: {HOW_TO_INSTALL}"
_ASK_ORJSON = (  # whether what came of a call's arguments is JSON already
    "base_format_detector",
    "deepseekv3_detector",
    "deepseekv31_detector",
    "dots_detector",
    "mistral_detector",
)


class NamedTokens:
    """The tokenizer as SGLang's detectors use it: the names of added tokens."""

    def __init__(self, names: Iterable[str]) -> None:
        self._ids = {name: number for number, name in enumerate(names)}

    def get_vocab(self) -> dict[str, int]:
        """The names; their numbers are not token ids."""
        return self._ids


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
        protocol = import_from_sglang("entrypoints.openai.protocol")
        calls = import_from_sglang("function_call.function_call_parser")
        arrays = import_from_sglang("function_call.json_array_parser")
        reasoning = import_from_sglang("parser.reasoning_parser")
        base, *others = (import_from_sglang(f"function_call.{name}") for name in _ASK_ORJSON)
        read_any_json([base, *others])
        read_whole_numbers(base, import_from_sglang("function_call.utils"))
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
