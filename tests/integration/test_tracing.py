"""Traces: what a collector gets of requests, and what workers get of traces."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from slime_router.errors import SetupError
from slime_router.telemetry.tracing import Tracing
from tests.integration.gateway import CHAT, served, serving, tiny_worker, user

TRACE = "a" * 32
PARENT = f"00-{TRACE}-{'b' * 16}-01"
SECRET = "a secret prompt"


class Collector:
    """An endpoint of OTLP over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.raw = b""
        self.spans: list[Span] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return web.Response()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        collector.url = str(server.make_url("")).rstrip("/")
        yield collector


def attributes(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        assert kind is not None
        value = getattr(each.value, kind)
        is_list = kind == "array_value"
        found[each.key] = [v.string_value for v in value.values] if is_list else value
    return found


async def test_a_request_and_its_hop_are_spans_of_the_clients_trace():
    async with collecting() as collector, tiny_worker() as worker:
        settings: dict[str, Any] = {"otlp_endpoint": collector.url, "served_model_name": "tiny"}
        async with serving(worker.url, **settings) as router:
            sent = {"traceparent": PARENT, "x-request-id": "mine"}
            body = {"messages": [user(SECRET)]}
            _, reply = await router.post(f"/sessions/s{CHAT}", body, headers=sent)
            await router.get("/health")
    [request] = collector.named("chat tiny")
    [hop] = collector.named(f"generate {worker.url}")
    assert len(collector.spans) == 2, "probes have none"
    assert request.trace_id.hex() == hop.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == "b" * 16
    assert hop.parent_span_id == request.span_id
    assert CIMultiDict(worker.requests[0].headers)["traceparent"] == (
        f"00-{TRACE}-{hop.span_id.hex()}-01"
    )
    told = attributes(request)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "tiny"
    assert told["gen_ai.usage.input_tokens"] == reply["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == reply["usage"]["completion_tokens"]
    assert told["gen_ai.response.finish_reasons"] == [reply["choices"][0]["finish_reason"]]
    assert told["gen_ai.conversation.id"] == "s"
    assert told["http.response.status_code"] == 200
    assert (told["http.route"], told["slime_router.request_id"]) == (CHAT, "mine")
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert request.start_time_unix_nano <= hop.start_time_unix_nano
    assert hop.end_time_unix_nano <= request.end_time_unix_nano
    assert SECRET.encode() not in collector.raw


async def test_each_worker_that_was_tried_is_a_hop_and_a_failure_says_so():
    async with collecting() as collector, tiny_worker() as one, tiny_worker() as other:
        settings: dict[str, Any] = {"otlp_endpoint": collector.url}
        async with serving(one.url, other.url, **settings) as router:
            for worker in (one, other):
                for _ in range(9):
                    worker.answer_next(500, b"boom")
            status, _ = await router.post("/generate", {"text": "Hi"})
            assert status == 502
    hops = [span for span in collector.spans if span.name.startswith("generate ")]
    [request] = [span for span in collector.spans if span not in hops]
    assert {span.name for span in hops} == {f"generate {one.url}", f"generate {other.url}"}
    assert len(hops) == len(one.requests) + len(other.requests)
    for span in (request, *hops):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert span.trace_id == request.trace_id
    assert attributes(request)["error.type"] == "upstream_error"
    assert attributes(request)["gen_ai.operation.name"] == "text_completion"


@pytest.mark.slow
async def test_a_collector_that_is_not_there_delays_nobody():
    async with served(otlp_endpoint="http://127.0.0.1:9") as (router, _):
        await router.chat([user("Hi")])


def test_what_is_missing_is_one_line(monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match=r"--otlp-endpoint: .*pip install 'slime-router\[otel\]'"):
        Tracing("http://localhost:4318")
    assert Tracing.of(None, "m") is None
