"""Requests that nobody would write, at every route: never a 5xx, and nothing is left behind.

Bodies are drawn from the fields that the router and the SDKs know, with values that they do not
expect. `make fuzz` draws fifty times as many as `make test`: 37,000.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import orjson
import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from slime_router.api.chat.fields import ChatFields
from slime_router.auth.surface import SURFACE
from slime_router.testing import FakeWorker
from tests.examples import examples
from tests.integration.gateway import Served, serving, tiny_worker

EXAMPLES = examples(6)
T = TypeVar("T")

TEXT = {"messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BASES: dict[str, dict[str, Any]] = {  # what is drawn is laid over these
    "/v1/chat/completions": {**TEXT, "max_tokens": 3},
    "/invocations": {**TEXT, "max_tokens": 3},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/messages": {**TEXT, "max_tokens": 3},
    "/v1/messages/count_tokens": TEXT,
    "/v1/responses": {"input": "Hi", "max_output_tokens": 3},
    "/v1/responses/input_tokens": {"input": "Hi"},
    "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 3}},
    "/inference/v1/generate": {"token_ids": [5, 6], "sampling_params": {"max_tokens": 3}},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
    "/sessions": {},
    "/rows": {"group_id": "g"},
    "/retrieve_from_text": {"text": "Hi"},
    "/retrieve_from_messages_template": TEXT,
    "/diagnose": TEXT,
    "/workers": {"url": "http://127.0.0.1:9"},
    "/add_worker": {"url": "http://127.0.0.1:9"},
    "/remove_worker": {"url": "http://127.0.0.1:9"},
}
OWN = (
    *(path for path in BASES if path not in SURFACE),
    "/sessions/s",
    "/sessions/s/close",
    "/sessions/s/reward",
    "/sessions/s/rows",
    "/sessions/s/samples",
    "/sessions/s/v1/chat/completions",
    "/workers/x",
    "/list_workers",
    "/metrics",
    "/metrics/prometheus",
    "/engine_metrics",
    "/readiness",
    "/liveness",
    "/template",
    "/v1/responses/resp_1/input_items",
    "/nobody/knows",
)
ROUTES = sorted({*OWN, *(path.replace("{", "").replace("}", "") for path in SURFACE)})
FIELDS = sorted(
    {
        *ChatFields.model_fields,
        *(
            name
            for params in (
                CompletionCreateParamsBase,
                TextParams,
                ResponseCreateParamsBase,
                MessageCreateParamsBase,
            )
            for name in typing.get_type_hints(params)
        ),
        *(
            "text",
            "input_ids",
            "token_ids",
            "sampling_params",
            "rid",
            "image_data",
            "session_params",
        ),
        *("return_logprob", "top_logprobs_num", "logprob_start_len", "token_ids_logprob", "url"),
        *("query", "items", "label_token_ids", "instances", "documents", "inputs", "embeddings"),
        *("session_id", "group_id", "max_turns", "reward", "in_flight", "worker_type", "priority"),
        *("max_seq_len", "session_ids", "add_generation_prompt", "token", "mode", "weight_version"),
    }
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ("", "\x00", "\ud7ff\ue000", "\N{GRINNING FACE}", "../..", "a\nb", "http://[", "{}", "%s%n")
    ),
)
NUMBERS = st.one_of(
    st.integers(-5, 600),
    st.sampled_from((2**31, -(2**31), 2**53, 2**63 - 1, 10**18, 0.5, -0.0, 1e308, 1e-320)),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(("text", "image_url", "tool_use", "tool_result", "reasoning", "x"))},
    optional={
        "text": LEAVES, "content": LEAVES, "id": LEAVES, "input": LEAVES, "tool_use_id": LEAVES,
        "image_url": LEAVES, "source": LEAVES, "name": LEAVES,
    },
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("user", "assistant", "system", "tool", "developer", "x", 5))},
        optional={
            "content": st.one_of(LEAVES, st.lists(PARTS, max_size=2)),
            "tool_calls": st.one_of(LEAVES, st.lists(st.just(TOOL), max_size=2)),
            "tool_call_id": LEAVES,
            "name": LEAVES,
        },
    ),
    max_size=3,
)
VALUES = st.one_of(
    st.recursive(
        st.one_of(LEAVES, PARTS, st.just(TOOL)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
        ),
        max_leaves=6,
    ),
    MESSAGES,
)
METHODS = st.sampled_from(("POST", "POST", "POST", "GET", "PUT", "DELETE", "PATCH", "HEAD"))
QUERIES = st.dictionaries(
    st.sampled_from(("format", "url", "state", "limit", "after", "order", "max_len", "x")),
    st.text(st.characters(codec="ascii"), max_size=8),
    max_size=2,
)
JUNK = st.one_of(
    st.binary(max_size=20), st.sampled_from((b"", b"[", b"[1]", b"null", b"5", b'"x"', b"{}"))
)


class Stage:
    """A gateway and a worker on an event loop of their own, which examples share.

    The loop runs only while something is asked. In a thread, the router would draw random numbers
    while Hypothesis draws its own, which takes that for a strategy that does not repeat.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self.router: Served
        self.worker: FakeWorker
        self.run(self._open())

    async def _open(self) -> None:
        self.worker = await self._stack.enter_async_context(tiny_worker(echo_len=3))
        self.router = await self._stack.enter_async_context(
            serving(self.worker.url, queue_timeout_s=2.0, request_timeout_s=5.0)
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.close()

    async def ask(
        self, method: str, path: str, body: bytes, query: dict[str, str]
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self.router.http.request(
            method, path, data=body, params=query, headers=headers
        ) as response:
            return response.status, await response.read()

    async def still_serves(self) -> bool:
        """The workers are as they were, and a plain chat gets a reply."""
        await self.router.http.post("/continue_generation", json={})
        await self.router.http.post("/resume_memory_occupation", json={})
        asked = {**TEXT, "max_tokens": 3}
        async with self.router.http.post("/v1/chat/completions", json=asked) as response:
            return response.status == 200


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    opened = Stage()
    yield opened
    assert opened.run(opened.still_serves())
    opened.close()


@pytest.mark.parametrize("path", ROUTES)
def test_no_request_is_a_fault_of_the_router(stage: Stage, path: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        METHODS,
        st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
        st.one_of(st.none(), st.none(), st.none(), JUNK),
        QUERIES,
    )
    def attack(
        method: str, fields: dict[str, Any], junk: bytes | None, query: dict[str, str]
    ) -> None:
        plain = path.removeprefix("/sessions/s") or path
        body = orjson.dumps({**BASES.get(plain, {}), **fields}) if junk is None else junk
        status, raw = stage.run(stage.ask(method, path, body, query))
        # What is not served at all, or waits for a worker that is paused, says so.
        assert status < 500 or status in (501, 503), (status, raw, method, body)

    attack()
    assert stage.run(stage.still_serves())
    assert stage.worker.url
