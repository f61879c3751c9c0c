"""Conversations with pictures that are captured: each picture becomes a word of its message.

The pictures themselves go along beside the tokens. What cannot be captured is left as it is, for a
worker to answer: see `media`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from slime_router.api.media.media_pass import CONTENTS, CONVERSATIONS, KINDS, media_in
from slime_router.generation.prompts.pictures import PROVES, SOURCES, PictureProof
from slime_router.template.pictures import Pictures, digest_of, mark_of
from slime_router.types import GenerateCall
from slime_router.values import replace

# Of a template's variables, those that change nothing about pictures; others may number them.
_HARMLESS = frozenset({"enable_thinking", "thinking", "reasoning_effort"})
LONG_LEN = 2**17  # bytes of a body
_RESULTS = frozenset({"tool_result", "function_call_output", "custom_tool_call_output"})
_DATA = "data:"


class Pictured(dict[str, Any]):
    """The body of a request in which marks stand for pictures.

    Attributes:
        as_it_came: the body with the pictures.
        sources: the pictures in order, as URLs, mostly with the data in them.
        digest_of: the digest of each of them.
    """

    def __init__(self, body: Mapping[str, Any], known: Mapping[str, str]) -> None:
        super().__init__(body)
        self.as_it_came = body
        self.sources: list[str] = []
        self.digest_of = dict(known)

    def mark(self, source: str) -> str:
        """Take one more picture; returns what stands for it."""
        self.sources.append(source)
        if source not in self.digest_of:
            self.digest_of[source] = _digest(source)
        return mark_of(self.digest_of[source])

    def on(self, call: GenerateCall) -> GenerateCall:
        """The call with the pictures, for the worker."""
        fields = {**call.worker_fields, SOURCES: self.sources, PROVES: not call.stream}
        digests = tuple(self.digest_of[source] for source in self.sources)
        return replace(call, pictures=digests, worker_fields=fields)


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

    async def take(self, body: Mapping[str, Any], size: int) -> Pictured | None:
        """`taken`, in a thread for a body of many bytes: pictures are decoded, 3 ms a megabyte."""
        if size < LONG_LEN or not self.is_on:
            return self.taken(body)
        return await asyncio.to_thread(self.taken, body)

    def taken(
        self, body: Mapping[str, Any], known: Mapping[str, str] = MappingProxyType({})
    ) -> Pictured | None:
        """The body with marks in place of its pictures; None if it is not to be captured.

        `known` are digests of some of its pictures.
        """
        if not self.is_on or not _may_be_captured(body):
            return None
        if next(media_in(body), None) is None:
            return None
        pictured = Pictured(body, known)
        try:
            for name in CONVERSATIONS:
                messages = body.get(name)
                if isinstance(messages, list):
                    pictured[name] = [self._marked(each, pictured, "user") for each in messages]
        except _Unfit:
            return None
        return pictured

    def _marked(self, holder: Any, pictured: Pictured, role: str) -> Any:
        """A message or a result with marks in place of pictures."""
        if not isinstance(holder, dict):
            return holder
        role = "tool" if _kind(holder) in _RESULTS else str(holder.get("role") or role).lower()
        marked = {
            name: [*self._parts(holder[name], pictured, role)]
            for name in CONTENTS
            if isinstance(holder.get(name), list)
        }
        return {**holder, **marked}

    def _parts(self, parts: list[Any], pictured: Pictured, role: str) -> Iterator[Any]:
        for part in parts:
            kind = _kind(part)
            if kind in _RESULTS:
                yield self._marked(part, pictured, role)
            elif kind in KINDS:
                if role not in self._roles:
                    raise _Unfit
                text_kind = "input_text" if kind == "input_image" else "text"
                yield {"type": text_kind, "text": pictured.mark(_source(kind, part))}
            else:
                yield part


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


def _may_be_captured(body: Mapping[str, Any]) -> bool:
    """Whether what a body asks besides leaves a picture to its own message."""
    kwargs = body.get("chat_template_kwargs") or {}
    return isinstance(kwargs, dict) and kwargs.keys() <= _HARMLESS


def _source(kind: str, part: Mapping[str, Any]) -> str:
    """The URL of a picture; `_Unfit` if it is not one, or anything more is asked of it."""
    fields, read = _READERS.get(kind, (frozenset[str](), None))
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
_READERS: Mapping[str, tuple[frozenset[str], _Reader]] = MappingProxyType(
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
