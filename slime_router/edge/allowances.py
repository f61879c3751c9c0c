"""What clients may have a worker run or open: refused in every body unless a flag allows it.

A worker unpickles logit processors, and opens the files and addresses that media name: its own
files, and addresses that only it can reach.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any
from urllib.parse import urlsplit

from slime_router.errors import BadRequest

MAX_DEPTH = 100

_MEDIA_FIELDS = frozenset(
    {"image_data", "video_data", "audio_data", "images", "videos", "audios", "image", "video"}
    | {"audio", "image_url", "video_url", "audio_url"}
)
_MEDIA_TYPES = frozenset(
    {"image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video"}
    | {"video_url", "input_video", "file", "input_file", "document"}
)
_SOURCES = frozenset(
    {"image_url", "video_url", "audio_url", "input_audio", "url", "source", "file_url"}
    | {"file_data", "file", "image", "video", "audio", "data", "path", "uri"}
)
_NO_SOURCES = frozenset({"detail", "format", "media_type", "type", "filename", "file_id", "title"})
_DATA_SOURCES = frozenset({"base64"})
_TEXT_SOURCES = frozenset({"text", "content"})  # parts of a content are looked at by themselves
# Calls of tools and their schemas may have fields of any name.
_OF_TOOLS = frozenset({"tools", "functions", "arguments", "metadata", "chat_template_kwargs"})
_CALLS = frozenset({"tool_use", "server_tool_use", "function_call", "mcp_call"})
_SESSION_FIELDS: Mapping[str, type] = {
    "id": str,
    "rid": str,
    "offset": int,
    "replace": bool,
    "drop_previous_output": bool,
}
_SUSPECTS = _MEDIA_FIELDS | {"custom_logit_processor", "session_params", "type"}
_HOLDERS = frozenset({dict, list})
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]*")
_SIGNATURES = re.compile(  # how files of media begin
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|BM....\0\0\0\0"
    rb"|RIFF....(WEBP|WAVE|AVI )|....ftyp|\x1a\x45\xdf\xa3|OggS|fLaC|ID3|%PDF",
    re.DOTALL,
)
_SIGNED_LEN = 16  # characters of base64, which have every signature
_MAX_PATH_LEN = 4096  # characters; Linux opens no longer one
_FILE_ENDINGS = (
    *("png", "jpg", "jpeg", "webp", "gif", "bmp", "mp4", "avi", "mov", "mkv", "webm"),
    *("wav", "mp3", "flac", "ogg", "m4a"),
)
_LOCAL_NAMES = ("localhost", "local", "internal", "localdomain", "home", "lan", "arpa")


@dataclass(frozen=True, slots=True)
class Allowances:
    """What flags allow.

    Attributes:
        local_media: media from files of the workers, and from addresses that are not public.
        logit_processors: code that the worker runs between two tokens.
    """

    local_media: bool = False
    logit_processors: bool = False

    def check(self, body: Any) -> None:
        """Looks through a body for what is not allowed.

        Raises:
            BadRequest: it has some, or session parameters that no worker takes.
        """
        if type(body) is dict and _is_plain(body):
            return
        for where, holder in _objects(body, "", 0):
            self._check_object(holder, where)

    def _check_object(self, holder: Mapping[str, Any], where: str) -> None:
        if holder.keys().isdisjoint(_SUSPECTS):
            return
        if not self.logit_processors and _is_there(holder.get("custom_logit_processor")):
            raise BadRequest(
                "Custom logit processors are not allowed: --allow-custom-logit-processors.",
                param=_at(where, "custom_logit_processor"),
            )
        params = holder.get("session_params")
        if params is not None:
            _check_sessions(params, _at(where, "session_params"))
        if self.local_media:
            return
        is_part = _is_one_of(holder.get("type"), _MEDIA_TYPES) and not _is_text(holder)
        for name, value in holder.items():
            if name in _MEDIA_FIELDS or (is_part and name in _SOURCES):
                _check_sources(value, _at(where, name), 0)


NOTHING_ALLOWED = Allowances()


def is_public(url: str) -> bool:
    """Whether an http(s) URL names a host that could be anywhere.

    Names are not looked up: one that points to a private address is not noticed.
    """
    if any(char.isspace() or not char.isprintable() or char == "\\" for char in url):
        return False
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").partition("%")[0]
    except ValueError:
        return False
    if parts.scheme.lower() not in ("http", "https") or not host:
        return False
    try:
        return _is_public_address(ipaddress.ip_address(host))
    except ValueError:
        pass
    last = host.rpartition(".")[2]
    is_number = last.isdigit() or last.startswith("0x")  # another way to write an address
    return "." in host and not is_number and last not in _LOCAL_NAMES


def _is_public_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return address.is_global and not address.is_multicast and (mapped is None or mapped.is_global)


def _objects(value: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All objects in a body but those in calls of tools, and those that hold nothing suspect."""
    if depth > MAX_DEPTH:
        raise BadRequest("The request body is nested too deeply.", code="invalid_json")
    if isinstance(value, list):
        if _HOLDERS.isdisjoint(map(type, value)):  # token ids, say: there may be a million
            return
        for i, item in enumerate(value):
            if type(item) is list or (type(item) is dict and not _is_bare(item)):
                yield from _objects(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, dict):
        yield where, value
        is_call = _is_one_of(value.get("type"), _CALLS)
        for name, item in value.items():
            if name in _OF_TOOLS or (is_call and name == "input"):
                continue
            if type(item) is dict or type(item) is list:
                yield from _objects(item, _at(where, name), depth + 1)


def _is_plain(body: Mapping[str, Any]) -> bool:
    """Whether neither it nor the objects in it have anything to check: as most bodies.

    What is deeper than an object in a list is not looked at: then it is not plain.
    """
    if not body.keys().isdisjoint(_SUSPECTS):
        return False
    for name in compress(body, map(_HOLDERS.__contains__, map(type, body.values()))):
        value = body[name]
        if name in _OF_TOOLS:
            continue
        if type(value) is dict:
            if not _is_bare(value):
                return False
        elif not _HOLDERS.isdisjoint(map(type, value)):  # token ids, say: there may be a million
            for item in value:
                if type(item) is list or (type(item) is dict and not _is_bare(item)):
                    return False
    return True


def _is_bare(holder: Mapping[str, Any]) -> bool:
    """Whether it has nothing to check, and nothing in it that could: as most messages."""
    return holder.keys().isdisjoint(_SUSPECTS) and _HOLDERS.isdisjoint(map(type, holder.values()))


def _check_sources(value: Any, where: str, depth: int) -> None:
    """Every text in a part that is media: a URL, a path, or the data itself."""
    if depth > MAX_DEPTH:
        raise BadRequest("The request body is nested too deeply.", code="invalid_json")
    if isinstance(value, str):
        if not _is_harmless(value):
            raise BadRequest(
                f"'{where}' must be data or a public http(s) URL: --allow-local-media.",
                param=where,
            )
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if not isinstance(item, int | float):
                _check_sources(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, dict):
        is_data = _holds_data(value)
        for name, item in value.items():
            if name not in _NO_SOURCES and not (is_data and name == "data"):
                _check_sources(item, _at(where, name), depth + 1)


def _is_harmless(source: str) -> bool:
    if not source.strip() or source.lower().startswith("data:"):
        return True
    if "://" in source or ":" in source[:16]:
        return is_public(source)
    if _BASE64.fullmatch(source) is None or source.lower().endswith(_FILE_ENDINGS):
        return False
    return len(source) > _MAX_PATH_LEN or _begins_a_file(source)


def _begins_a_file(source: str) -> bool:
    """Whether base64 as short as a path is that of a medium: workers open what may be a path."""
    begin = "".join(source.split())[:_SIGNED_LEN].rstrip("=")
    try:
        decoded = b64decode(begin[: len(begin) // 4 * 4], validate=True)
    except ValueError:
        return False
    return _SIGNATURES.match(decoded) is not None


def _holds_data(part: Mapping[str, Any]) -> bool:
    """Whether its `data` is base64 to every worker, as `input_audio` and sources of messages."""
    is_data = isinstance(part.get("format"), str) or _is_one_of(part.get("type"), _DATA_SOURCES)
    data = part.get("data")
    return is_data and isinstance(data, str) and _BASE64.fullmatch(data) is not None


def _check_sessions(params: Any, where: str) -> None:
    if isinstance(params, list):
        for i, each in enumerate(params):
            _check_sessions(each, f"{where}[{i}]")
        return
    if params is None:
        return
    if not isinstance(params, dict):
        raise BadRequest(f"'{where}' must be an object.", param=where, code="invalid_type")
    for name, value in params.items():
        kind = _SESSION_FIELDS.get(name)
        if kind is None:
            raise BadRequest(f"'{_at(where, name)}' is not a parameter.", param=_at(where, name))
        if value is not None and type(value) is not kind:
            raise BadRequest(
                f"'{_at(where, name)}' has the wrong type.",
                param=_at(where, name),
                code="invalid_type",
            )


def _is_one_of(value: Any, names: frozenset[str]) -> bool:
    return isinstance(value, str) and value in names


def _is_text(part: Mapping[str, Any]) -> bool:
    """Whether a document holds its text, in place of a file."""
    source = part.get("source")
    if part.get("type") != "document" or not isinstance(source, dict):
        return False
    return _is_one_of(source.get("type"), _TEXT_SOURCES)


def _is_there(value: Any) -> bool:
    """Lists of nothing are sent for batches of which no prompt has one."""
    if isinstance(value, list):
        return any(map(_is_there, value))
    return value is not None and value != ""


def _at(where: str, name: str) -> str:
    return f"{where}.{name}"[:200] if where else name[:200]
