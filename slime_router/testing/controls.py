"""The fake worker's other routes: health, pauses, caches, weights, the tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from slime_router.testing.engine import Engine
from slime_router.testing.script import ScriptTokenizer

Rule: TypeAlias = Callable[[Mapping[str, Any]], web.Response]


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
            return _json({"model_path": "fake", "weight_version": self._engine.weight_version})
        rule = self._rules().get(path)
        if rule is not None:
            return rule(body)
        return _json({"detail": "Not Found"}, 404)

    def _rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {
            "pause_generation": self._pause,
            "continue_generation": self._go_on,
            "release_memory_occupation": self._sleep,
            "resume_memory_occupation": self._go_on,
            "flush_cache": self._flush,
            "update_weight_version": self._rename,
        }
        if self._tokenizer is not None:
            rules |= {"tokenize": self._tokenize, "detokenize": self._detokenize}
        return rules

    def _pause(self, body: Mapping[str, Any]) -> web.Response:
        if body.get("mode") not in ("abort", "retract", "in_place"):
            return _json({"error": {"message": "mode"}}, 400)
        self._engine.pause(body["mode"])
        return _json({"message": "Generation paused successfully.", "status": "ok"})

    def _sleep(self, _: Mapping[str, Any]) -> web.Response:
        self._engine.pause("retract")
        return web.Response()

    def _go_on(self, _: Mapping[str, Any]) -> web.Response:
        self._engine.go_on()
        return _json({"message": "Generation continued successfully.", "status": "ok"})

    def _flush(self, _: Mapping[str, Any]) -> web.Response:
        self._engine.seen.clear()
        return web.Response(text="Cache flushed.\n")

    def _rename(self, body: Mapping[str, Any]) -> web.Response:
        self._engine.weight_version = body["new_version"]
        return _json({"success": True, "new_version": self._engine.weight_version})

    def _tokenize(self, body: Mapping[str, Any]) -> web.Response:
        assert self._tokenizer is not None
        ids = list(self._tokenizer.encode(body["prompt"]))
        counts = {"count": len(ids), "max_model_len": self._engine.context_len}
        return _json({"tokens": ids, **counts})

    def _detokenize(self, body: Mapping[str, Any]) -> web.Response:
        assert self._tokenizer is not None
        return _json({"text": self._tokenizer.decode(body["tokens"])})


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
