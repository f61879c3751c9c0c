"""A worker without a model: SGLang's HTTP contract on a free port, with answers from a script.

    async with FakeWorker() as worker:
        worker.script([5, 6, 7])
        ...                                # ask worker.url
    assert worker.requests[0].body["input_ids"] == [1, 2, 3]

Without a script it answers with ids made from the prompt, equal ones to equal prompts. Like the
real one it dies of token ids that are outside its vocabulary, stops at 128 tokens where
`max_new_tokens` is absent, and refuses sampling keys that it does not know.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import orjson
from aiohttp import web

from slime_router.testing.controls import ControlAnswers, Received, echo, json_object, json_reply
from slime_router.testing.engine import Engine, PlayedRun
from slime_router.testing.held_port import HeldPort
from slime_router.testing.script import Numbers, Refusal, Script, ScriptTokenizer, is_batch, parts

BAD_JSON = {"object": "error", "message": "JSON decode error", "code": 400}
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Dropped(Exception):
    """The connection is to break here."""


class FakeWorker:
    """A scripted worker; an async context manager that listens while it is open.

    Attributes:
        requests: every `/generate` request, in order.
        controls: every other request but `/abort_request`.
        aborted: the rids that an abort was asked for, unknown ones too.
        disconnected: the rids whose client went away before the end.
        running: the rids that are being answered.
        weight_version: what answers say, and `/update_weight_version` sets.
        queued: the waiting requests of each data-parallel rank, as `/v1/loads` reports them.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 32_000,
        context_len: int = 2048,
        eos_ids: Sequence[int] = (2,),
        incremental: bool = False,
        chunk_tokens: int = 1,
        echo_len: int = 8,
        tokenizer: ScriptTokenizer | None = None,
        reply: Callable[[dict[str, Any]], Script] | None = None,
        weight_version: str | int = "default",
        notices_disconnect: bool = True,
        mask_cap: int | None = 4096,
        lays_tops_flat: bool = True,
        preferred: Mapping[str, Any] | None = None,
        port: int = 0,
    ) -> None:
        self.requests: list[Received] = []
        self.controls: list[Received] = []
        self.aborted: list[str] = []
        self.disconnected: list[str] = []
        self.queued = [0]
        self._tokenizer = tokenizer
        self._engine = Engine(
            decode=(tokenizer or Numbers()).decode,
            vocab_size=vocab_size,
            context_len=context_len,
            eos_ids=tuple(eos_ids),
            incremental=incremental,
            chunk_tokens=chunk_tokens,
            echo_len=echo_len,
            reply=reply,
            weight_version=weight_version,
            mask_cap=mask_cap,
            lays_tops_flat=lays_tops_flat,
            preferred=dict(preferred or {}),
        )
        self._controls = ControlAnswers(self._engine, tokenizer)
        self._notices_disconnect = notices_disconnect
        self._aborts_open = asyncio.Event()
        self._aborts_open.set()
        self._is_awake = asyncio.Event()
        self._is_awake.set()
        self._answers: deque[tuple[int, bytes, str]] = deque()
        self._failure: int | None = None  # the status of every answer
        self._drops: deque[int] = deque()
        self._deaths: deque[int] = deque()
        self._runner: web.AppRunner  # while it is open
        self._site: web.SockSite | None = None
        self._port = port  # 0: a free one
        self._held: HeldPort  # while it is open

    def __repr__(self) -> str:
        return f"<FakeWorker {self.url}, {len(self.running)} running>"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**30, middlewares=[self._once_awake])
        app.router.add_route("*", "/generate", self._generate)
        app.router.add_post("/abort_request", self._abort_request)
        app.router.add_route("*", "/echo{tail:.*}", echo)
        self.add_doors(app)
        app.router.add_route("*", "/{path:v1/loads|[^/]+}", self._control)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=self._notices_disconnect,
            access_log=None,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        self._held = HeldPort(self._port)
        self._port = self._held.number
        await self.accept_connections()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
        self.recover()
        self._engine.go_on()
        for rid in self.running:
            self._engine.abort(rid)
        await self._runner.cleanup()
        self._held.close()

    @property
    def url(self) -> str:
        """The URL that it listens at, or did."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def running(self) -> list[str]:
        """The rids that are being answered."""
        return list(self._engine.runs)

    @property
    def weight_version(self) -> str | int:
        """What answers say about the weights."""
        return self._engine.weight_version

    @weight_version.setter
    def weight_version(self, version: str | int) -> None:
        self._engine.weight_version = version

    def add_doors(self, app: web.Application) -> None:
        """More routes, for a worker that serves more."""

    # What it says

    def script(
        self,
        ids: Sequence[int],
        *,
        finish: str | Mapping[str, Any] = "length",
        logprobs: Sequence[float | None] | None = None,
        **meta: Any,
    ) -> None:
        """Queues what the next generation samples; see `Script`."""
        self._engine.scripts.append(Script(ids=ids, finish=finish, logprobs=logprobs, meta=meta))

    def hold(self, after_tokens: int = 0) -> None:
        """Stops every generation after that many tokens, until `release`."""
        self._engine.held_after = after_tokens

    def release(self) -> None:
        """Lets all generations continue."""
        self._engine.release()
        self._aborts_open.set()

    async def wait_running(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Waits until that many generations are being answered; held ones, until they stand still.

        Raises:
            TimeoutError: it did not come to that.
        """
        async with asyncio.timeout(timeout_s):
            while not self._engine.runs_steadily(count):  # noqa: ASYNC110 - keeps the engine plain
                await asyncio.sleep(0)

    # How it fails

    def hold_aborts(self) -> None:
        """Answers no abort until `release`."""
        self._aborts_open.clear()

    def answer_next(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Answers the next generation with this, and nothing else."""
        self._answers.append((status, body, content_type))

    def drop_next(self, *, after_bytes: int = 0) -> None:
        """Breaks the next generation's connection after that many bytes of its answer's body.

        With 0 not even a status line is sent.
        """
        self._drops.append(after_bytes)

    def die_next(self, *, after_tokens: int = 0) -> None:
        """Dies when the next generation has sent that many tokens: every connection breaks.

        Of a reply that is not streamed nothing is sent then. `accept_connections` restarts it.
        """
        self._deaths.append(after_tokens)

    def fail_all(self, status: int = 500) -> None:
        """Answers every request with that status, until `recover`."""
        self._failure = status

    def hang(self) -> None:
        """Takes connections and stays silent, until `recover`."""
        self._is_awake.clear()
        self._engine.held_after = 0

    def recover(self) -> None:
        """Answers again; generations that were running continue."""
        self._failure = None
        if not self._is_awake.is_set():
            self._is_awake.set()
            self._engine.release()

    async def refuse_connections(self) -> None:
        """Breaks all connections and takes no new ones, like a dead worker."""
        site, self._site = self._site, None
        if site is not None:  # asyncio leaks what it has just accepted when a server is closed
            asyncio.get_running_loop().remove_reader(self._held.fileno())
        assert self._runner.server is not None
        try:
            for _ in range(20):  # those just accepted are connected in the loop's next rounds
                for handler in self._runner.server.connections:
                    if handler.transport is not None:
                        handler.transport.abort()
                await asyncio.sleep(0)
        finally:  # a handler that calls this is cancelled with its connection
            if site is not None:
                await site.stop()
                self._held.refuse()

    async def accept_connections(self) -> None:
        """Listens (again), on the same port."""
        self._site = web.SockSite(self._runner, self._held.listening())
        await self._site.start()

    # Routes

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = json_object(await request.read())
        if body is None:
            return json_reply(BAD_JSON, 400)
        self.requests.append(Received(request.path, body, dict(request.headers)))
        if self._failure is not None:
            return web.Response(status=self._failure)
        if self._answers:
            status, answer, content_type = self._answers.popleft()
            return web.Response(status=status, body=answer, content_type=content_type)
        is_stream = bool(body.get("stream"))
        left = self._drops.popleft() if self._drops else None
        dies_after = self._deaths.popleft() if self._deaths else None
        runs: list[PlayedRun] = []
        try:
            if left == 0:
                raise _Dropped
            ids = self._prompt_ids(body)
            if not self._survives(body, ids):
                await self.refuse_connections()
                raise _Dropped
            runs = self._engine.start(body, ids)
            if is_stream:
                mixed = self._events(body, runs, is_batch(body, ids))
                return await self._stream(request, mixed, left, dies_after)
            if dies_after is not None:
                await self.refuse_connections()
                raise _Dropped
            items = [await self._engine.next_item(run, body, is_whole=True) for run in runs]
            whole = self.write(items if is_batch(body, ids) else items[0])
            if left is not None:
                await self._write_and_drop(request, whole[:left])
            return web.Response(body=whole, content_type="application/json")
        except Refusal as refusal:
            if not (is_stream and refusal.is_late):
                return json_reply(refusal.body, 400)
            error = {**refusal.body["error"], "type": "invalid_request_error", "code": 400}
            events = b"data: %s\n\ndata: [DONE]\n\n" % orjson.dumps({"error": error})
            return web.Response(body=events, content_type="text/event-stream")
        except _Dropped:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        except asyncio.CancelledError:
            self.disconnected += [run.rid for run in runs]
            raise
        finally:
            self._engine.drop(runs)

    async def _stream(
        self,
        request: web.Request,
        events: AsyncIterator[tuple[bytes, int]],
        left: int | None,
        dies_after: int | None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        told = 0
        async for event, count in events:
            if dies_after is not None and count > dies_after:
                await self.refuse_connections()
                raise _Dropped
            if left is not None and told + len(event) >= left:
                await response.write(event[: left - told])
                raise _Dropped
            told += len(event)
            await response.write(event)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _events(
        self, body: dict[str, Any], runs: list[PlayedRun], is_batch: bool
    ) -> AsyncIterator[tuple[bytes, int]]:
        """Every event of a stream, with how many tokens its generation has then."""
        playing = deque(enumerate(runs))
        while playing:  # a round robin: the items of a batch arrive mixed
            index, run = playing.popleft()
            item = await self._engine.next_item(run, body)
            if item is None:
                continue
            playing.append((index, run))
            told = {**item, "index": index} if is_batch else item
            yield b"data: %s\n\n" % self.write(told), run.count

    def write(self, item: Any) -> bytes:
        """An item, or the list of those of a batch, as it is sent."""
        return orjson.dumps(item)

    async def _write_and_drop(self, request: web.Request, begin: bytes) -> None:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(begin)
        raise _Dropped

    async def _abort_request(self, request: web.Request) -> web.Response:
        body = json_object(await request.read())
        if body is None:
            return json_reply(BAD_JSON, 400)
        await self._aborts_open.wait()
        rid = body.get("rid") or ""
        if not isinstance(rid, str):
            return json_reply({"detail": [{"loc": ["body", "rid"]}]}, 422)
        for each in self.running if body.get("abort_all") else [rid]:
            self.aborted.append(each)
            self._engine.abort(each)
        return web.Response()

    async def _control(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = json_object(raw) if raw else {}
        if body is None:
            return json_reply(BAD_JSON, 400)
        path = request.match_info["path"]
        self.controls.append(Received(request.path, body, dict(request.headers)))
        if self._failure is not None:
            return web.Response(status=self._failure)
        if path == "v1/loads":
            return self._controls.loads(len(self.running), self.queued)
        return await self._controls.answer(path, body)

    @web.middleware
    async def _once_awake(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await self._is_awake.wait()
        if self._site is None and request.transport is not None:
            request.transport.abort()  # accepted while it closed: a dead worker answers nobody
            raise asyncio.CancelledError
        return await handler(request)

    def _survives(self, body: dict[str, Any], ids: Any) -> bool:
        prompts = (prompt for prompt, _ in parts(body, ids))
        return all(0 <= token < self._engine.vocab_size for prompt in prompts for token in prompt)

    def _prompt_ids(self, body: dict[str, Any]) -> Any:
        if body.get("input_ids") is not None:
            return body["input_ids"]
        if self._tokenizer is None or not body.get("text"):
            raise Refusal({"error": {"message": "Either text or input_ids should be provided."}})
        text, encode = body["text"], self._tokenizer.encode
        return (
            list(encode(text)) if isinstance(text, str) else [list(encode(part)) for part in text]
        )
