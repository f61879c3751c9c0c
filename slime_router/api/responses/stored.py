"""What there is under `/v1/responses/{id}`: stored responses are shown, listed and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from slime_router.api.request import require
from slime_router.api.responses.store import Item, ResponseStore, Stored
from slime_router.auth.caller import caller
from slime_router.errors import BadRequest

MAX_PAGE_LEN = 100
DEFAULT_PAGE_LEN = 20

_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_TEXTS = ("input_text", "output_text", "text")


@dataclass(frozen=True, slots=True)
class _Page:
    """Which items are wanted: at most `limit`, following the one with the id `after`."""

    limit: int = DEFAULT_PAGE_LEN
    is_oldest_first: bool = False
    after: str | None = None


def routes(
    kept: ResponseStore, shared: Callable[[Handler], Handler]
) -> list[tuple[str, str, Handler]]:
    """Method, path and handler of each route; `shared` finds the responses that others have."""
    return [
        ("GET", "/v1/responses/{id}", shared(partial(show, kept))),
        ("DELETE", "/v1/responses/{id}", shared(partial(delete, kept))),
        ("GET", "/v1/responses/{id}/input_items", shared(partial(list_items, kept))),
        ("POST", "/v1/responses/{id}/cancel", shared(partial(cancel, kept))),
        ("POST", "/v1/responses/compact", compact),
    ]


async def compact(_: web.Request) -> web.Response:
    """`POST /v1/responses/compact`: refused; agents that find no such route write a summary.

    Codex asks only the provider named OpenAI for it.
    """
    raise BadRequest(
        "Compaction is not served: let the agent write its own summary, as Codex does with a"
        " model provider that is not named OpenAI.",
        code="not_supported",
    )


async def show(kept: ResponseStore, request: web.Request) -> web.Response:
    """`GET /v1/responses/{id}`: a stored response; 404 where it is not, or no longer, here.

    Raises:
        BadRequest: its events are asked for, which nobody keeps.
    """
    stored = _stored(kept, request)
    if request.query.get("stream") == "true":  # SDKs take anything else for a stream of no events
        message = "Only a response that was made in the background can be streamed again."
        raise BadRequest(message, param="stream")
    return _json(stored.response)


async def list_items(kept: ResponseStore, request: web.Request) -> web.Response:
    """`GET /v1/responses/{id}/input_items`: a page of what a stored response answers."""
    return _json(_listing(_stored(kept, request), _read_page(request.query)))


async def cancel(kept: ResponseStore, request: web.Request) -> web.Response:
    """`POST /v1/responses/{id}/cancel`: refused, as no stored response is still running."""
    _stored(kept, request)
    raise BadRequest("Only a response that was made in the background can be cancelled.")


async def delete(kept: ResponseStore, request: web.Request) -> web.Response:
    """`DELETE /v1/responses/{id}`: forgets a stored response."""
    response_id = request.match_info["id"]
    kept.delete(response_id, caller(request))
    return _json({"id": response_id, "object": "response", "deleted": True})


def _stored(kept: ResponseStore, request: web.Request) -> Stored:
    return kept.get(request.match_info["id"], caller(request))


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _read_page(query: Mapping[str, str]) -> _Page:
    """`limit`, `order`, `after`; other parameters are ignored.

    Raises:
        BadRequest: with the name of the parameter at fault.
    """
    limit, order = query.get("limit", str(DEFAULT_PAGE_LEN)), query.get("order", "desc")
    is_count = limit.isascii() and limit.isdecimal() and len(limit) <= len(str(MAX_PAGE_LEN))
    is_fit = is_count and 1 <= int(limit) <= MAX_PAGE_LEN
    require(is_fit, "limit", f"an integer from 1 to {MAX_PAGE_LEN}")
    require(order in ("asc", "desc"), "order", "'asc' or 'desc'")
    return _Page(int(limit), order == "asc", query.get("after"))


def _listing(stored: Stored, page: _Page) -> dict[str, Any]:
    """One page of the items, the whole conversation before the response among them.

    Raises:
        BadRequest: no item has the id `after`.
    """
    items = list(_named(stored))
    if not page.is_oldest_first:
        items.reverse()
    start = 0
    if page.after is not None:
        ids = [name for name, _ in items]
        if page.after not in ids:
            raise BadRequest(f"No item has the id '{page.after[:80]}'.", param="after")
        start = ids.index(page.after) + 1
    shown = items[start : start + page.limit]
    return {
        "object": "list",
        "data": [_written(name, item) for name, item in shown],
        "first_id": shown[0][0] if shown else None,
        "last_id": shown[-1][0] if shown else None,
        "has_more": start + len(shown) < len(items),
    }


def _named(stored: Stored) -> Iterator[tuple[str, Item]]:
    """The items with their ids, the oldest first; no id comes twice, or pages would not end."""
    taken: set[str] = set()
    for step in stored.steps():
        said = step.said if step is not stored else ()
        for index, item in enumerate((*step.asked, *said)):
            name = item.get("id")
            if not isinstance(name, str) or not name or name in taken:
                kind = _ID_PREFIXES.get(item["type"], "item")
                name = f"{kind}_{step.response['id'].partition('_')[2]}_{index}"
            taken.add(name)
            yield name, item


def _written(name: str, item: Item) -> Item:
    """The item as the API shows it: whole parts, and nothing that only the router knows."""
    shown = {key: value for key, value in item.items() if key != "turn"}
    shown |= {"id": name, "status": item.get("status") or "completed"}
    match item["type"]:
        case "message":
            is_reply = str(item.get("role")).lower() == "assistant"
            shown["content"] = _parts(item.get("content"), is_reply=is_reply)
        case "function_call" if not isinstance(item.get("arguments"), str):
            shown["arguments"] = orjson.dumps(item.get("arguments") or {}).decode()
        case "reasoning":
            shown["summary"] = item.get("summary") or []
    return shown


def _parts(content: Any, *, is_reply: bool) -> list[Any]:
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [_part(part, is_reply=is_reply) for part in given]


def _part(part: Item, *, is_reply: bool) -> Item:
    if part["type"] not in _TEXTS:
        return part
    if is_reply:
        return {"annotations": [], **part, "type": "output_text"}
    return {**part, "type": "input_text"}
