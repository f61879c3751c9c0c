"""Traces for OpenTelemetry: a span for each request, and one for each worker that it went to.

What goes out has no texts: ids, names, counts and times, under the names of OpenTelemetry's
conventions for HTTP and for generative AI. Each router has its own provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slime_router import __version__
from slime_router.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanKind
    from opentelemetry.trace import Tracer as _Tracer

EXPORT_TIMEOUT_S = 2.0  # with all tries; the end of the router waits for the last one
SERVICE = "slime-router"
PROVIDER = "sglang"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/invocations": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/inference/v1/generate": "text_completion",
}
_NAMES = {  # of the fields of a request's line
    "method": "http.request.method",
    "path": "url.path",
    "status": "http.response.status_code",
    "door": "http.route",
    "request": "slime_router.request_id",
    "key": "slime_router.key",
    "session": "gen_ai.conversation.id",
    "turn": "slime_router.turn",
    "samples": "slime_router.samples",
    "receipt": "slime_router.receipt",
    "prompt": "gen_ai.usage.input_tokens",
    "reused": "slime_router.reused_tokens",
    "output": "gen_ai.usage.output_tokens",
    "first_token_ms": "slime_router.first_token_ms",
    "joined": "slime_router.joined",
    "ended": "slime_router.ended",
    "error": "error.type",
}


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False


class Tracing:
    """Sends spans to `endpoint`, the base URL of a collector that speaks OTLP over HTTP.

    Raises:
        SetupError: OpenTelemetry is not installed, or this is not the URL of a collector.
    """

    def __init__(
        self, endpoint: str, *, model: str = "", exporter: SpanExporter | None = None
    ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as exc:
            raise SetupError(
                f"--otlp-endpoint: {exc.name} is missing: pip install 'slime-router[otel]'"
            ) from exc
        if not _is_http(endpoint):
            raise SetupError(f"--otlp-endpoint {endpoint!r}: it looks like http://host:4318")
        self._endpoint, self._model = endpoint, model
        url = f"{endpoint.rstrip('/')}/v1/traces"
        resource = Resource({"service.name": SERVICE, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S))
        )
        self._tracer = self._provider.get_tracer("slime_router", __version__)

    @classmethod
    def of(cls, endpoint: str | None, model: str) -> Tracing | None:
        """What a configuration asks for. Raises SetupError."""
        return None if endpoint is None else cls(endpoint, model=model)

    def __repr__(self) -> str:
        return f"<Tracing to {self._endpoint}>"

    def begin(self, method: str, door: str, headers: Mapping[str, str]) -> Trace:
        """A request has come; its span continues the trace that `headers` name, if they do."""
        return Trace(self._tracer, method, door, headers, self._model)

    def close(self) -> None:
        """Send what is left, and send nothing more. Blocks for a while."""
        self._provider.shutdown()


class Trace:
    """The span of one request, and those of its hops to workers."""

    def __init__(
        self, tracer: _Tracer, method: str, door: str, headers: Mapping[str, str], model: str
    ) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = TraceContextTextMapPropagator().extract(given)
        operation = _OPERATIONS.get(door)
        known = {"gen_ai.provider.name": PROVIDER, "gen_ai.request.model": model}
        self._span = tracer.start_span(
            f"{method} {door}".strip() if operation is None else f"{operation} {model}".strip(),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=None if operation is None else {**known, "gen_ai.operation.name": operation},
        )

    @contextmanager
    def hop(self, worker_url: str) -> Iterator[dict[str, str]]:
        """For the block, a worker samples; gives the headers that it gets for the trace."""
        from opentelemetry.trace import SpanKind

        span = self._child(f"generate {worker_url}", SpanKind.CLIENT)
        span.set_attribute("server.address", worker_url)
        try:
            yield {"traceparent": _traceparent(span)}
        except Exception as exc:  # whatever it is: the span names it, and it goes on
            self._failed(span, type(exc).__name__)
            raise
        finally:
            span.end()

    def _child(self, name: str, kind: SpanKind) -> Span:
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(name, context=set_span_in_context(self._span), kind=kind)

    def end(self, fields: Mapping[str, Any]) -> None:
        """The request is answered; `fields` are those of its line in the log."""
        for name, value in fields.items():
            if name in _NAMES:
                self._span.set_attribute(_NAMES[name], value)
        if "finish" in fields:
            self._span.set_attribute("gen_ai.response.finish_reasons", [fields["finish"]])
        if fields["status"] >= 500 or "reason" in fields:
            self._failed(self._span, str(fields.get("error", fields["status"])))
        self._span.end()

    def _failed(self, span: Span, what: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", what)
        span.set_status(Status(StatusCode.ERROR, what))


def _traceparent(span: Span) -> str:
    """The span as the header of W3C's trace context names it."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
