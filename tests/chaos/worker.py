"""A scripted worker as a process: says what the oracle says, in its own time; fails to order.

    python -m tests.chaos.worker --checkpoint DIR --port P --control-port C --log FILE

Whatever it hands out stands in FILE before: nothing is lost when it is killed. On the control port
it takes faults (`POST /fault`) and tells how it is (`GET /state`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from aiohttp import web

from slime_router.testing import FakeWorker, Script
from slime_router.testing.controls import ControlAnswers
from slime_router.testing.engine import Engine, PlayedRun
from tests.chaos.oracle import Oracle
from tests.ports import HOST
from tests.tiny import CONTEXT_LEN

MAX_SEEN = 64  # prompts that its prefix cache knows
SPOILT_AFTER = 4  # tokens
NONSENSE: dict[str, Any] = {"text": 7, "output_ids": {"no": "ids"}, "meta_info": []}
GARBAGE = (
    (b"<html>It works!</html>", "text/html"),
    (b'data: {"text": "no end', "text/event-stream"),
    (b"[]", "application/json"),
    (b"\xff\xfe\x00", "application/octet-stream"),
)


class Diary:
    """A file of JSON lines that outlives whoever writes it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, **entry: Any) -> None:
        """One line, whole or not at all."""
        os.write(self._fd, json.dumps(entry).encode() + b"\n")


class PacedEngine(Engine):
    """The fake worker's engine, which takes its time and notes what it says."""

    pace_s: float
    diary: Diary
    spoil_next: int
    spoilt: set[PlayedRun]

    @classmethod
    def like(cls, engine: Engine, pace_s: float, diary: Diary) -> PacedEngine:
        """An engine with the settings of another one."""
        paced = cls(**{field.name: getattr(engine, field.name) for field in fields(Engine)})
        paced.pace_s, paced.diary = pace_s, diary
        paced.spoil_next, paced.spoilt = 0, set()
        return paced

    def start(self, body: dict[str, Any], ids: Any) -> list[PlayedRun]:
        runs = super().start(body, ids)
        del self.seen[:-MAX_SEEN]
        for run in runs:
            self.diary.note(rid=run.rid, prompt=run.heard.prompt)
            if self.spoil_next:
                self.spoil_next -= 1
                self.spoilt.add(run)
        return runs

    def drop(self, runs: Sequence[PlayedRun]) -> None:
        super().drop(runs)
        self.spoilt.difference_update(runs)

    async def next_item(
        self, run: PlayedRun, body: dict[str, Any], *, is_whole: bool = False
    ) -> dict[str, Any] | None:
        item = await super().next_item(run, body, is_whole=is_whole)
        is_spoilt = run in self.spoilt and run.count > SPOILT_AFTER
        return NONSENSE if is_spoilt and item is not None else item

    async def _wait(self, run: PlayedRun) -> None:
        await asyncio.sleep(self.pace_s)
        await super()._wait(run)

    def _item(
        self, run: PlayedRun, body: dict[str, Any], finish: dict[str, Any] | None
    ) -> dict[str, Any]:
        said = run.heard.ids[run.sent : run.count]
        self.diary.note(rid=run.rid, at=run.sent, ids=said, version=self.weight_version)
        return super()._item(run, body, finish)


class ChaosWorker(FakeWorker):
    """Speaks the oracle's words; pauses and takes weights as SGLang does."""

    def __init__(self, oracle: Oracle, *, port: int, pace_s: float, diary: Diary) -> None:
        self._oracle = oracle
        super().__init__(
            vocab_size=oracle.tokenizer.get_vocab_size(),
            context_len=CONTEXT_LEN,
            eos_ids=[oracle.im_end],
            tokenizer=oracle,
            reply=self._reply,
        )
        self._port = port
        self._engine: PacedEngine = PacedEngine.like(self._engine, pace_s, diary)
        self._controls = ControlAnswers(self._engine, oracle)
        self._garbage = 0

    def _reply(self, body: dict[str, Any]) -> Script:
        said = list(self._oracle.reply(body["input_ids"]))
        return Script(ids=[s.token_id for s in said], logprobs=[s.logprob for s in said])

    def fail(self, kind: str, *, times: int = 1, status: int = 500, after_bytes: int = 0) -> None:
        """The next generations come to this."""
        for _ in range(times):
            if kind == "garbage":
                body, content_type = GARBAGE[self._garbage % len(GARBAGE)]
                self._garbage += 1
                self.answer_next(200, body, content_type)
            elif kind == "nonsense":
                self._engine.spoil_next += 1
            elif kind == "reset":
                self.drop_next(after_bytes=after_bytes)
            else:
                assert kind == "status", kind
                error = {"error": {"message": f"scripted {status}"}}
                self.answer_next(status, json.dumps(error).encode())

    def heal(self) -> None:
        """No fault is left to come."""
        self._answers.clear()
        self._drops.clear()
        self._engine.spoil_next = 0

    def state(self) -> dict[str, Any]:
        """What runs, how far it is, and how many faults are still to come."""
        return {
            "running": {run.rid: run.count for run in self._engine.runs.values()},
            "faults": len(self._answers) + len(self._drops) + self._engine.spoil_next,
            "is_paused": self._engine.is_paused,
            "weight_version": self.weight_version,
            "aborted": len(self.aborted),
        }

    async def _control(self, request: web.Request) -> web.Response:
        if request.match_info["path"] != "update_weights_from_disk":
            return await super()._control(request)
        await self._update(await request.json())
        return web.json_response({"success": True, "message": "", "num_paused_requests": 0})

    async def _update(self, body: dict[str, Any]) -> None:
        """As SGLang does it: what runs is over before the weights change."""
        was_paused = self._engine.is_paused
        ending = list(self._engine.runs.values()) if body.get("abort_all_requests") else []
        self._engine.pause("abort" if ending else "in_place")
        while any(self._engine.runs.get(run.rid) is run for run in ending):  # noqa: ASYNC110 - short
            await asyncio.sleep(0.001)
        self.weight_version = body["weight_version"]
        if not was_paused:
            self._engine.go_on()


async def serve(worker: ChaosWorker, control_port: int) -> None:
    """Until the process is ended."""

    async def fault(request: web.Request) -> web.Response:
        worker.fail(**await request.json())
        return web.Response()

    async def heal(_: web.Request) -> web.Response:
        worker.heal()
        return web.Response()

    async def state(_: web.Request) -> web.Response:
        return web.json_response(worker.state())

    control = web.Application()
    control.router.add_post("/fault", fault)
    control.router.add_post("/heal", heal)
    control.router.add_get("/state", state)
    runner = web.AppRunner(control, access_log=None)
    async with worker:
        await runner.setup()
        await web.TCPSite(runner, HOST, control_port).start()
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker without a model that fails to order.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--pace-ms", type=float, default=5.0)
    args = parser.parse_args()
    worker = ChaosWorker(
        Oracle(args.checkpoint),
        port=args.port,
        pace_s=args.pace_ms / 1000,
        diary=Diary(args.log),
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(worker, args.control_port))


if __name__ == "__main__":
    main()
