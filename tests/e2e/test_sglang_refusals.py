"""Against a real SGLang server: what it refuses is a 400 in each door's own words, and it lives on.

Streamed or not: SGLang finds most of it only after its own stream has begun with a 200.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from slime_router.client import Client, Session
from tests.e2e.test_sglang_trajectories import rows_of

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

PATIENCE_S = 60
EOS = "8191"
CONTEXT_LEN = 2048
LONG = "word " * 2 * CONTEXT_LEN
BAD_SCHEMA = {"type": "nosuch"}
ASKED: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 4},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 4}},
}
FORM: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD_SCHEMA}}
TOO_MANY: dict[str, Any] = {
    "/v1/responses": {"max_output_tokens": CONTEXT_LEN},
    "/generate": {"sampling_params": {"max_new_tokens": CONTEXT_LEN}},
}
FORMS: dict[str, Any] = {
    "/v1/responses": {"text": {"format": {**FORM["json_schema"], "type": "json_schema"}}},
    "/generate": {"sampling_params": {"json_schema": json.dumps(BAD_SCHEMA)}},
}
every_door = pytest.mark.parametrize("path", ASKED)
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture
def session(parsing_router_url: str) -> Iterator[Session]:
    with Client(parsing_router_url).open_session() as session:
        yield session


def post(url: str, body: Any) -> tuple[int, str, bytes]:
    """Status, content type and body of the answer, whatever it is."""
    data = json.dumps({"model": "tiny", **body}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return reply.status, reply.headers.get_content_type(), reply.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers.get_content_type(), refused.read()


def refusal(session: Session, path: str, body: Any, *, stream: bool) -> Any:
    """What the client reads; the worker takes the next request, and nothing is recorded."""
    status, content_type, raw = post(f"{session.url}{path}", {**body, "stream": stream})
    assert (status, content_type) == (400, "application/json"), raw
    again = {"max_tokens": 1, "max_output_tokens": 1, "sampling_params": {"max_new_tokens": 1}}
    url = session.url.partition("/sessions")[0]
    assert post(f"{url}{path}", {**ASKED[path], **again})[0] == 200
    assert rows_of(session)["rows"] == []
    error = json.loads(raw)
    if path == "/v1/messages":
        assert (error["type"], error["error"].keys()) == ("error", {"type", "message"})
    elif path != "/generate":
        assert error["error"].keys() == {"message", "type", "param", "code"}
    if path != "/generate":
        assert error["error"]["type"] == "invalid_request_error"
    return error["error"]


@every_door
@streamed_or_not
def test_a_prompt_that_does_not_fit_the_context(session, path, stream):
    body = json.loads(json.dumps(ASKED[path]).replace("Hi", LONG))
    error = refusal(session, path, body, stream=stream)
    assert "context length" in error["message"]
    if path == "/v1/messages":
        assert error["message"].startswith("prompt is too long")
    elif path != "/generate":
        assert error["code"] == "context_length_exceeded"


@every_door
@streamed_or_not
def test_a_limit_that_does_not_fit_the_context(parsing_router_url, path, stream):
    """The reply may have what is left; `/generate` hands on what the worker says to it."""
    body = {**ASKED[path], **TOO_MANY.get(path, {"max_tokens": CONTEXT_LEN})}
    with Client(parsing_router_url).open_session(sampling={"logit_bias": {EOS: 100}}) as session:
        if path == "/generate":
            error = refusal(session, path, body, stream=stream)
            assert "Requested token count exceeds" in error["message"]
        else:
            assert post(f"{session.url}{path}", {**body, "stream": stream})[0] == 200
            assert rows_of(session)["stats"]["sampled_tokens"] == 1


@every_door
@streamed_or_not
def test_an_adapter_that_is_not_there(session, path, stream):
    error = refusal(session, path, {**ASKED[path], "lora_path": "nosuch"}, stream=stream)
    assert "LoRA" in error["message"]


@pytest.mark.parametrize("path", [path for path in ASKED if path != "/v1/messages"])
@streamed_or_not
def test_a_schema_that_is_none(session, path, stream):
    """Anthropic's API has no field for one. A stream of `/generate` is handed on as it comes."""
    body = {**ASKED[path], **FORMS.get(path, {"response_format": FORM})}
    if path == "/generate" and stream:
        status, _, raw = post(f"{session.url}{path}", {**body, "stream": True})
        reason = json.loads(raw.split(b"\n")[0].removeprefix(b"data: "))["meta_info"]
        assert (status, reason["finish_reason"]["status_code"]) == (200, 400)
        assert rows_of(session)["stats"]["sampled_tokens"] == 0  # the token in it is junk
        return
    assert "json grammar" in refusal(session, path, body, stream=stream)["message"]


@pytest.mark.parametrize("path", [path for path in ASKED if path != "/generate"])
@streamed_or_not
def test_a_regex_of_the_session_that_is_none(parsing_router_url, path, stream):
    with Client(parsing_router_url).open_session(sampling={"regex": "(unclosed["}) as session:
        error = refusal(session, path, ASKED[path], stream=stream)
    assert "Regex parsing error" in error["message"]


@streamed_or_not
def test_a_tool_whose_schema_is_none_cannot_be_forced(session, stream):
    function = {"name": "f", "parameters": BAD_SCHEMA, "strict": True}
    tools = [{"type": "function", "function": function}]
    body = {**ASKED["/v1/chat/completions"], "tools": tools, "tool_choice": "required"}
    assert refusal(session, "/v1/chat/completions", body, stream=stream)["message"]
