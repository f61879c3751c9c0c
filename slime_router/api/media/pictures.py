"""Conversations with pictures that are captured: each picture becomes a word of its message.

The pictures themselves go along beside the tokens. What cannot be captured is left as it is, for a
worker to answer: see `media`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from slime_router.generation.prompts.pictures import PROVES, SOURCES, PictureProof
from slime_router.template.pictures import Pictures, digest_of, mark_of
from slime_router.types import GenerateCall
from slime_router.values import replace

# Of a template's variables, those that change nothing about pictures; others may number them.
_HARMLESS = frozenset({"enable_thinking", "thinking", "reasoning_effort"})
_MEDIA = ("image", "audio", "video")
_CONVERSATIONS = ("messages", "input")
_CONTENTS = ("content", "output")  # of messages; of a tool's result in the Responses API
_RESULTS = frozenset({"tool_result", "function_call_output", "custom_tool_call_output"})
_DATA = "data:"


class Pictured(dict[str, Any]):
    """The body of a request in which marks stand for pictures.

    Attributes:
        sources: the pictures in order, as URLs, mostly with the data in them.
        digests: those of the pictures.
    """

    sources: list[str]
    digests: tuple[str, ...]

    def on(self, call: GenerateCall) -> GenerateCall:
        """The call with the pictures, for the worker."""
        fields = {**call.worker_fields, SOURCES: self.sources, PROVES: not call.stream}
        return replace(call, pictures=self.digests, worker_fields=fields)


class _Unfit(Exception):
    """Something cannot be captured."""


class PictureDoor:
    """Takes conversations with pictures, where the template shows them and workers keep the rest.

    `shows` is the template's way; None if it shows none, or none are to be captured.
    """

    def __init__(self, shows: Pictures | None, proof: PictureProof | None = None) -> None:
        self._roles = frozenset[str]() if shows is None else shows.roles
        self._proof = proof or PictureProof(None)

    @property
    def is_on(self) -> bool:
        """Whether pictures are captured at the moment."""
        return bool(self._roles) and self._proof.is_on

    def taken(self, body: Mapping[str, Any]) -> Pictured | None:
        """The body with marks in place of its pictures; None if it is not to be captured."""
        if not self.is_on or not _may_be_captured(body):
            return None
        sources: list[str] = []
        pictured = Pictured(body)
        try:
            for name in _CONVERSATIONS:
                messages = body.get(name)
                if type(messages) is list:
                    pictured[name] = [self._marked(each, sources, "user") for each in messages]
        except _Unfit:
            return None
        pictured.sources = sources
        pictured.digests = tuple(map(_digest, sources))
        return pictured if sources else None

    def _marked(self, holder: Any, sources: list[str], role: str) -> Any:
        """A message or a result with marks in place of pictures, which are added to `sources`."""
        if not isinstance(holder, dict):
            return holder
        is_result = holder.get("type") in _RESULTS
        role = "tool" if is_result else str(holder.get("role") or role).lower()
        marked = {
            name: [*self._parts(holder[name], sources, role)]
            for name in _CONTENTS
            if isinstance(holder.get(name), list)
        }
        return {**holder, **marked}

    def _parts(self, parts: list[Any], sources: list[str], role: str) -> Iterator[Any]:
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in _RESULTS:
                yield self._marked(part, sources, role)
            elif isinstance(kind, str) and any(name in kind for name in _MEDIA):
                if role not in self._roles:
                    raise _Unfit
                source = _source(kind, part)
                sources.append(source)
                text_kind = "input_text" if kind == "input_image" else "text"
                yield {"type": text_kind, "text": mark_of(_digest(source))}
            else:
                yield part


def _may_be_captured(body: Mapping[str, Any]) -> bool:
    """Whether what a body asks besides leaves a picture to its own message.

    A stored response would be continued from its text, without the picture.
    """
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict) or not kwargs.keys() <= _HARMLESS:
        return False
    return "input" not in body or (
        body.get("store") is False and body.get("previous_response_id") is None
    )


def _source(kind: str, part: Mapping[str, Any]) -> str:
    """The URL of a picture; `_Unfit` if it is not one, or anything more is asked of it."""
    fields, read = _KINDS.get(kind, (frozenset[str](), None))
    url = read(part) if read is not None and part.keys() <= fields else None
    if not isinstance(url, str) or not url:
        raise _Unfit
    return url


def _of_chat(part: Mapping[str, Any]) -> Any:
    given = part.get("image_url")
    if not isinstance(given, dict):
        return given
    return given.get("url") if given.keys() <= {"url", "detail"} and _is_usual(given) else None


def _of_responses(part: Mapping[str, Any]) -> Any:
    return part.get("image_url") if _is_usual(part) else None


def _of_messages(part: Mapping[str, Any]) -> Any:
    source = part.get("source")
    if not isinstance(source, dict):
        return None
    if source.get("type") == "base64":
        return f"{_DATA}{source.get('media_type')};base64,{source.get('data')}"
    return source.get("url") if source.get("type") == "url" else None


def _is_usual(given: Mapping[str, Any]) -> bool:
    return given.get("detail") in (None, "auto")


_Reader = Callable[[Mapping[str, Any]], Any]
_KINDS: Mapping[str, tuple[frozenset[str], _Reader]] = MappingProxyType(
    {
        "image_url": (frozenset({"type", "image_url"}), _of_chat),
        "input_image": (frozenset({"type", "image_url", "detail"}), _of_responses),
        "image": (frozenset({"type", "source", "cache_control"}), _of_messages),
    }
)


def _digest(source: str) -> str:
    """Of the bytes that a data URL holds; of any other URL, as nobody here fetches it."""
    head, comma, data = source.partition(",")
    if comma and head[: len(_DATA)].lower() == _DATA and head.lower().endswith(";base64"):
        try:
            return digest_of(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            pass  # a worker will say what is wrong with it
    return digest_of(source.encode(errors="surrogatepass"))
