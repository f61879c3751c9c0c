"""The text that a model is shown of Anthropic's blocks that are not plain text.

Search results read as they do at SGLang's own route. What Anthropic's service ran itself (searches,
code, MCP servers) is in the history of a conversation that began there: its calls are calls, and
its results are results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from slime_router.api.request import missing, wrong_type
from slime_router.errors import BadRequest

_OPAQUE = frozenset(  # for Anthropic's service alone, or about the block and not in it
    {
        "type", "cache_control", "citations", "encrypted_content", "encrypted_index",
        "encrypted_stdout", "signature", "tool_use_id",
    }
)  # fmt: skip

_SILENT = ("fallback", "mcp_tool_listing")  # of one model's turn to another, of tools


def is_service_call(kind: str) -> bool:
    """Whether a block is a call that Anthropic's service ran."""
    return kind in ("server_tool_use", "mcp_tool_use")


def is_service_result(kind: str) -> bool:
    """Whether a block is the result of such a call."""
    return kind.endswith("_tool_result")


def is_silent(block: Mapping[str, Any]) -> bool:
    """Whether a block says nothing to a model: its service alone reads it, or it is a summary that
    failed.
    """
    kind = block["type"]
    return kind in _SILENT or (kind == "compaction" and block.get("content") is None)


def block_text(block: Mapping[str, Any], path: str) -> str:
    """The text of a block that is shown as text.

    Raises:
        BadRequest: blocks of its kind have none; with the path of its type.
    """
    match block["type"]:
        case "text":
            return string_of(block, "text", path)
        case "search_result":
            return _search_result(block, path)
        case "document":
            return _document(block, path)
        case "compaction" if isinstance(block.get("content"), str):
            return str(block["content"])
        case "browser_state":
            return _shown(block)
    raise BadRequest(
        f"'{str(block['type'])[:40]}' blocks are not supported here for this model.",
        param=f"{path}.type",
    )


def result_text(content: Any, path: str) -> str:
    """The result of a call that Anthropic's service ran, whatever its kind."""
    if isinstance(content, list):
        return "\n".join(result_text(each, f"{path}[{i}]") for i, each in enumerate(content))
    if not isinstance(content, dict):
        return "" if content is None else str(content)
    if content.get("type") in ("text", "document", "search_result"):
        return block_text(content, path)
    if isinstance(content.get("content"), dict | list):
        head = {name: value for name, value in content.items() if name != "content"}
        return "\n".join(filter(None, (_shown(head), result_text(content["content"], path))))
    return _shown(content)


def string_of(block: Mapping[str, Any], name: str, path: str) -> str:
    """A string that must be there.

    Raises:
        BadRequest: it is not.
    """
    value = block.get(name)
    if value is None:
        raise missing(f"{path}.{name}")
    if not isinstance(value, str):
        raise wrong_type(f"{path}.{name}", "a string")
    return value


def _shown(values: Mapping[str, Any]) -> str:
    """Names and values, line by line, without what only Anthropic's service can read."""
    lines = []
    for name, value in values.items():
        if name in _OPAQUE or value in (None, "", []):
            continue
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        lines.append(f"{name}: {text}")
    return "\n".join(lines)


def _search_result(block: Mapping[str, Any], path: str) -> str:
    lines = []
    if title := block.get("title"):
        lines.append(f"Title: {title}")
    source = block.get("source")
    if isinstance(source, dict):
        source = source.get("url") or source.get("text")
    if source:
        lines.append(f"Source: {source}")
    if texts := _texts(block.get("content"), f"{path}.content"):
        lines.append("Content: " + "\n".join(texts))
    return "\n".join(lines)


def _document(block: Mapping[str, Any], path: str) -> str:
    """A document of plain text; a file has to be read by its sender."""
    source = block.get("source")
    if not isinstance(source, dict):
        raise wrong_type(f"{path}.source", "an object")
    match source.get("type"):
        case "text":
            texts = [string_of(source, "data", f"{path}.source")]
        case "content":
            texts = _texts(source.get("content"), f"{path}.source.content")
        case kind:
            raise BadRequest(
                f"Documents from '{str(kind)[:40]}' are not supported for this model;"
                " send their text.",
                param=f"{path}.source.type",
            )
    heads = (("Title", block.get("title")), ("Context", block.get("context")))
    lines = [f"{name}: {value}" for name, value in heads if value]
    return "\n".join([*lines, "\n".join(texts)])


def _texts(content: Any, path: str) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise wrong_type(path, "a string or a list of blocks")
    texts = []
    for i, part in enumerate(content):
        place = f"{path}[{i}]"
        if not isinstance(part, dict):
            raise wrong_type(place, "an object")
        if part.get("type") is None:
            raise missing(f"{place}.type")
        texts.append(block_text(part, place))
    return [text for text in texts if text]
