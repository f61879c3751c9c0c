"""`--strict-fields`: fields that an API does not know are ignored, named, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_create_params as anthropic_params
from anthropic.types.beta import message_create_params as anthropic_beta_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from slime_router.api.anthropic import request as messages_request
from slime_router.api.known.names import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    MESSAGES_FIELDS,
    RESPONSES_FIELDS,
    TOKEN_FIELDS,
)
from slime_router.api.known.strictness import HEADER, MAX_LOGGED, MAX_NAMED, Strictness
from slime_router.errors import BadRequest
from tests.integration.gateway import CHAT, served, user
from tests.integration.test_request_fields import PASSED, SAMPLED

TOKENS = "/inference/v1/generate"
ASK: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [user("Hi")]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": [user("Hi")], "max_tokens": 8},
    "/v1/responses": {"input": "Hi"},
    TOKENS: {"token_ids": [5]},
}


class Watched(dict[str, Any]):
    """A body that remembers which of its fields were asked for by name."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)


# What is known


OF_SDKS = [
    ("Chat completions", CHAT_FIELDS, chat_params.CompletionCreateParamsBase),
    ("Completions", COMPLETION_FIELDS, completion_create_params.CompletionCreateParamsBase),
    ("Responses", RESPONSES_FIELDS, response_create_params.ResponseCreateParamsBase),
    ("Messages", MESSAGES_FIELDS, anthropic_params.MessageCreateParamsBase),
    ("Messages", MESSAGES_FIELDS, anthropic_beta_params.MessageCreateParamsBase),
]


@pytest.mark.parametrize(("section", "known", "params"), OF_SDKS)
def test_whatever_an_sdk_can_send_is_known(section, known, params):
    assert set(params.__annotations__) | {"stream"} <= known


@pytest.mark.parametrize(("section", "known", "params"), OF_SDKS)
def test_the_api_page_says_what_becomes_of_whatever_an_sdk_can_send(section, known, params):
    """At its API, or where it is the same as in chat."""
    told = named_in(section) | named_in("Chat completions")
    assert set(params.__annotations__) - told == set()


def named_in(section: str) -> set[str]:
    """The fields that a section of the page has between backticks."""
    page = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
    [_, text] = re.split(rf"^## {section}$", page, flags=re.MULTILINE)
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return {name for span in re.findall(r"`([^`]*)`", text) for name in re.findall(r"\w+", span)}


def test_what_has_an_effect_is_known():
    fields = {name for body, _ in (*SAMPLED, *PASSED) for name in body}
    assert len(fields) > 30
    assert fields <= CHAT_FIELDS
    assert set(messages_request._AS_IN_CHAT) <= MESSAGES_FIELDS


@pytest.mark.parametrize(
    ("path", "known"),
    [
        (CHAT, CHAT_FIELDS),
        ("/v1/completions", COMPLETION_FIELDS),
        ("/v1/messages", MESSAGES_FIELDS),
        ("/v1/responses", RESPONSES_FIELDS),
        (TOKENS, TOKEN_FIELDS),
    ],
)
async def test_whatever_is_read_is_known(path, known, monkeypatch):
    """A field that a door begins to read has to be listed."""
    bodies: list[Watched] = []

    async def read(*arguments: Any) -> Watched:
        bodies.append(Watched(ASK[path]))
        return bodies[-1]

    monkeypatch.setattr("slime_router.api.endpoint.read_allowed", read)
    async with served() as (router, _):
        status, reply = await router.post(path, json={})
        assert status == 200, reply
    [body] = bodies
    assert body.asked
    assert body.asked - known - {"type"} == set()  # media are looked for at every depth


# What becomes of others


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, body in ASK.items():
        yield path, {**body, "temprature": 0.5}


@pytest.mark.parametrize(("path", "body"), list(bodies()))
async def test_one_that_is_unknown_is_refused_by_name(path, body):
    async with served(strict_fields="refuse") as (router, worker):
        status, reply = await router.post(path, json=body)
        assert status == 400
        error = reply["error"]
        assert "The field 'temprature' is unknown." in error["message"]
        if path != TOKENS:
            assert "Did you mean 'temperature'?" in error["message"]
        if path != "/v1/messages":
            assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
        assert worker.requests == []
        status, reply = await router.post(path, json=ASK[path])
        assert status == 200, reply


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_is_unknown_is_named_in_a_header_and_once_in_the_log(stream, caplog):
    body = {**ASK[CHAT], "temprature": 0.5, "b,\n\u00e4": 1, "stream": stream}
    async with served(strict_fields="warn") as (router, _):
        for _ in range(2):
            async with router.http.post(CHAT, json=body) as answer:
                assert answer.status == 200
                assert answer.headers[HEADER] == "temprature, b\\x2c\\n\\xe4"
        async with router.http.post(CHAT, json=ASK[CHAT]) as answer:
            assert HEADER not in answer.headers
    said = [r.getMessage() for r in caplog.records if "nobody here knows" in r.getMessage()]
    assert said == ["fields that nobody here knows are ignored: temprature, b\\x2c\\n\\xe4"]


async def test_without_the_flag_nothing_is_said():
    async with served() as (router, _):
        body = {**ASK[CHAT], "temprature": 0.5}
        async with router.http.post(CHAT, json=body) as answer:
            assert answer.status == 200
            assert HEADER not in answer.headers


async def test_the_workers_own_api_is_left_alone():
    async with served(strict_fields="refuse") as (router, _):
        status, _ = await router.post("/generate", json={"input_ids": [5], "tomorrow": 1})
        assert status == 200


def test_neither_the_header_nor_the_log_grows_without_end(caplog):
    strictness = Strictness("warn")
    for number in range(100):
        headers: dict[str, str] = {}
        strictness.check({f"{number}-{i}": 0 for i in range(1000)}, {"a"}, headers)
        assert headers[HEADER].count(",") == MAX_NAMED - 1
    assert len(strictness._logged) == MAX_LOGGED


def test_a_long_name_is_cut():
    with pytest.raises(BadRequest) as caught:
        Strictness("refuse").check({"x" * 10_000: 0}, {"a"}, {})
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
async def test_what_no_worker_keeps_to_is_logged_once(path, caplog):
    async with served() as (router, worker):
        for _ in range(2):
            status, reply = await router.post(
                path,
                {**ASK[path], "bad_words": ["a"], "use_beam_search": True, "length_penalty": None},
            )
            assert status == 200, reply
        assert "bad_words" not in worker.requests[0].body
    said = [r.getMessage() for r in caplog.records if "nobody here knows" in r.getMessage()]
    assert said == ["fields that nobody here knows are ignored: bad_words, use_beam_search"]
