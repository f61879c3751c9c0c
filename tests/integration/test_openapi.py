"""The API's description: it is OpenAPI, has every route and every field that is known, and its page
loads nothing from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from slime_router.api.chat.fields import ChatFields
from slime_router.api.openapi.bodies import BODIES
from slime_router.server.app import Gateway
from tests.integration.gateway import CHAT, served
from tests.integration.test_docs import real_routes


async def described(**settings: Any) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """The description, and the routes that there are, without those that a session repeats."""
    async with served(**settings) as (router, _):
        status, document = await router.get("/openapi.json")
        assert status == 200
    gateway = Gateway(router.gateway.config)  # an application is made once of each
    real, in_session = real_routes(gateway)
    gateway.tokenizer.close()
    repeated = {(m, f"/sessions/{{}}{path}") for m, path in in_session if (m, path) in real}
    return document, real - repeated


def schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    methods = document["paths"][path]
    body = methods["post" if "post" in methods else "put"]["requestBody"]
    found: dict[str, Any] = body["content"]["application/json"]["schema"]
    return found


async def test_it_is_openapi_and_has_every_route():
    document, real = await described()
    OpenAPIV31SpecValidator(document).validate()
    told = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert told == real
    titles = [
        each["summary"] for methods in document["paths"].values() for each in methods.values()
    ]
    assert [title for title in titles if not re.fullmatch(r"[A-Z`].*[^.]", title)] == []


async def test_a_body_has_the_fields_that_its_api_knows():
    document, _ = await described()
    for path, body in BODIES.items():
        assert set(schema(document, path)["properties"]) == body.fields, path
        assert set(schema(document, path)["required"]) == set(body.required) <= body.fields
    scalars = schema(document, CHAT)["properties"]
    assert scalars.keys() >= ChatFields.model_fields.keys()
    [number, _] = scalars["temperature"]["anyOf"]
    assert number == {"type": "number", "minimum": 0, "maximum": 2}


async def test_chat_is_described_where_it_is_served():
    document, _ = await described(openai_chat_completion_path="/chat")
    assert "messages" in schema(document, "/chat")["properties"]
    assert CHAT not in document["paths"]


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_it_needs_no_key(path):
    async with served(api_key="secret-1") as (router, _), router.http.get(path) as answer:
        assert answer.status == 200


async def test_the_page_loads_nothing_from_elsewhere():
    async with served() as (router, _), router.http.get("/docs") as answer:
        text = await answer.text()
        policy = answer.headers["Content-Security-Policy"]
    assert answer.content_type == "text/html"
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert re.findall(r"(?:src|href)=\"([^\"]+)\"", text) == ["openapi.json"]
    assert "http:" not in text
    assert "https:" not in text
    assert "prefers-color-scheme: dark" in text
