"""The fake worker's other routes: health, pauses, caches, weights, the tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from slime_router.testing.engine import Engine
from slime_router.testing.script import ScriptTokenizer

Rule: TypeAlias = Callable[[Mapping[str, Any]], web.Response]


@dataclass(frozen=True, slots=True)
class Received:
    """One request that a worker got."""

    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]


class ControlAnswers:
    """Answers control requests, and applies them to the engine."""

    def __init__(self, engine: Engine, tokenizer: ScriptTokenizer | None) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    async def answer(self, path: str, body: Mapping[str, Any]) -> web.Response:
        """The answer to a request to `path`, without its first slash."""
        if path in ("health", "health_generate"):
            while self._engine.is_paused:  # noqa: ASYNC110 - SGLang is silent then
                await asyncio.sleep(0.001)
            return web.Response()
        if path == "ping":
            return web.Response()
        if path in ("model_info", "get_model_info"):
            said = {"weight_version": self._engine.weight_version}
            preferred = self._engine.preferred or None
            return json_reply(
                {"model_path": "fake", "preferred_sampling_params": preferred, **said}
            )
        rule = self._rules().get(path)
        if rule is not None:
            return rule(body)
        return json_reply({"detail": "Not Found"}, 404)

    def _rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {
            "pause_generation": self._pause,
            "continue_generation": self._go_on,
            "release_memory_occupation": self._sleep,
            "resume_memory_occupation": self._go_on,
            "flush_cache": self._flush,
            "update_weight_version": self._rename,
            "close_session": lambda _: web.Response(),
        }
        if self._tokenizer is not None:
            rules |= {"tokenize": self._tokenize, "detokenize": self._detokenize}
        return rules

    def loads(self, running: int, queued: Sequence[int]) -> web.Response:
        """What `/v1/loads` says of each data-parallel rank; the first has all that is `running`."""
        ranks = [
            {
                "dp_rank": rank,
                "num_running_reqs": 0 if rank else running,
                "num_waiting_reqs": waiting,
                "max_total_num_tokens": 100_000,
            }
            for rank, waiting in enumerate(queued)
        ]
        return json_reply({"loads": ranks})

    def _pause(self, body: Mapping[str, Any]) -> web.Response:
        mode = body.get("mode", "abort")
        if mode not in ("abort", "retract", "in_place"):
            return json_reply({"error": {"message": "mode"}}, 400)
        self._engine.pause(mode)
        return json_reply({"message": "Generation paused successfully.", "status": "ok"})

    def _sleep(self, _: Mapping[str, Any]) -> web.Response:
        self._engine.pause("retract")
        return web.Response()

    def _go_on(self, _: Mapping[str, Any]) -> web.Response:
        self._engine.go_on()
        return json_reply({"message": "Generation continued successfully.", "status": "ok"})

    def _flush(self, _: Mapping[str, Any]) -> web.Response:
        self._engine.seen.clear()
        return web.Response(text="Cache flushed.\n")

    def _rename(self, body: Mapping[str, Any]) -> web.Response:
        if not isinstance(body.get("new_version"), str | int):
            return json_reply({"error": {"message": "new_version"}}, 400)
        self._engine.weight_version = body["new_version"]
        return json_reply({"success": True, "new_version": self._engine.weight_version})

    def _tokenize(self, body: Mapping[str, Any]) -> web.Response:
        assert self._tokenizer is not None
        ids = list(self._tokenizer.encode(body["prompt"]))
        counts = {"count": len(ids), "max_model_len": self._engine.context_len}
        return json_reply({"tokens": ids, **counts})

    def _detokenize(self, body: Mapping[str, Any]) -> web.Response:
        assert self._tokenizer is not None
        return json_reply({"text": self._tokenizer.decode(body["tokens"])})


def json_reply(value: Any, status: int = 200) -> web.Response:
    """A value as JSON."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


async def echo(request: web.Request) -> web.Response:
    """Answers with what was received: method, target, header pairs, body."""
    body = await request.read()
    received = {
        "method": request.method,
        "target": request.raw_path,
        "headers": [[name, value] for name, value in request.headers.items()],
        "body": body.decode("latin-1"),
    }
    return json_reply(received)


def json_object(raw: bytes) -> dict[str, Any] | None:
    """The object that a body holds; None where it is something else."""
    try:
        body = orjson.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
