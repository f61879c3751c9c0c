"""The form of an error: that of the route's API, or of the API that was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web

from slime_router.api.anthropic.reply import ANTHROPIC_ERRORS
from slime_router.api.errors import NATIVE_ERRORS, OPENAI_ERRORS, ErrorStyle
from slime_router.api.responses.reply import RESPONSES_ERRORS
from slime_router.auth.access import ANY_PATH, IN_SESSION

# By path as in the routing table, in a session too; all others are in OpenAI's form.
_STYLES: Mapping[str, ErrorStyle] = MappingProxyType(
    {
        "/generate": NATIVE_ERRORS,
        "/v1/responses": RESPONSES_ERRORS,
        "/v1/responses/input_tokens": RESPONSES_ERRORS,
        "/v1/responses/compact": RESPONSES_ERRORS,
        "/v1/responses/{id}": RESPONSES_ERRORS,
        "/v1/responses/{id}/input_items": RESPONSES_ERRORS,
        "/v1/responses/{id}/cancel": RESPONSES_ERRORS,
        "/v1/messages": ANTHROPIC_ERRORS,
        "/v1/messages/count_tokens": ANTHROPIC_ERRORS,
    }
)
_ANTHROPIC = re.compile(r"/v1/messages(/count_tokens)?$")


def error_style(request: web.Request) -> ErrorStyle:
    """How an error of this request is written."""
    resource = request.match_info.route.resource
    path = ANY_PATH if resource is None else resource.canonical.removeprefix(IN_SESSION)
    if path != ANY_PATH:
        return _STYLES.get(path, OPENAI_ERRORS)
    # No route: a path that ends like one of Anthropic's was meant for that API.
    return ANTHROPIC_ERRORS if _ANTHROPIC.search(request.path) is not None else OPENAI_ERRORS
