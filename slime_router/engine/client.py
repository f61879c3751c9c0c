"""Talks to the workers: generations, aborts, and every other request to one of them.

For every request, however it ends: its lease is returned, its connection is closed or kept for the
next, and a generation that did not end by itself is aborted on the worker that runs it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, Mapping
from itertools import chain
from types import TracebackType

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from slime_router.choices import Capture
from slime_router.engine.answer import Item
from slime_router.engine.chunks import ChunkReader
from slime_router.engine.connector import Connector, Use, note_in
from slime_router.engine.exchange import Exchange, NotTaken, UnderWay, WorkerAnswer, framed
from slime_router.engine.kept import (
    Answer,
    KeptConnections,
    drain,
    lines_of,
    read_some,
    read_whole,
    translation,
)
from slime_router.engine.masks import MaskPlan, mask_plan
from slime_router.engine.request import (
    Body,
    experts_start,
    fitted,
    generate_body,
    read_error,
    sampling_params,
    wants_logprobs,
)
from slime_router.engine.top_logprobs import TopPlan, top_plan
from slime_router.engine.wire.event_tap import tapped
from slime_router.engine.wire.rids import name_at_worker
from slime_router.errors import RouterError, WorkerFailed
from slime_router.pool.worker import Worker
from slime_router.tokens.written.prompt_text import PromptTexts
from slime_router.types import GenerateCall, GenerateChunk

logger = logging.getLogger(__name__)

KEEPALIVE_S = 3.0  # uvicorn, in the workers, closes an idle connection after 5 s
READ_BUFFER_LEN = 256 * 2**10  # bytes; a backlog of cumulative items is read in one go
PROBE_TIMEOUT_S = 10.0

_JSON = {"Content-Type": "application/json"}


class WorkerClient:
    """Owns the connections to the workers, and the aborts still running after closed requests."""

    def __init__(
        self,
        *,
        vocab_size: int,
        capture: Capture,
        request_timeout_s: float,
        connect_timeout_s: float = 5.0,
        abort_timeout_s: float = 5.0,
    ) -> None:
        self.aborts_sent = 0
        self.aborts_failed = 0
        self._vocab_size = vocab_size
        self._capture = capture
        self._request_timeout_s = request_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._abort_timeout_s = abort_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._kept: KeptConnections | None = None
        self._texts = PromptTexts()
        self._aborts: set[asyncio.Task[None]] = set()
        self._exchanges: UnderWay = {}

    def __repr__(self) -> str:
        state = "closed" if self._session is None else "open"
        return f"<WorkerClient {state}, {len(self._aborts)} aborts in progress>"

    async def __aenter__(self) -> WorkerClient:
        connector = Connector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._kept = KeptConnections(connector, READ_BUFFER_LEN)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            read_bufsize=READ_BUFFER_LEN,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._aborts:
                await asyncio.wait(self._aborts, timeout=self._abort_timeout_s)
        finally:
            late = tuple(self._aborts)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            session, self._session = self.session, None
            await session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open HTTP session; it decompresses nothing and keeps no cookies."""
        assert self._session is not None, "the client is used inside its `async with`"
        return self._session

    async def generate(
        self, worker: Worker, call: GenerateCall, *, timeout_s: float
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Runs `call`, whose prompt has been made, on `worker`; yields chunks as they arrive.

        `timeout_s` applies until the last chunk.

        Raises:
            NotTaken: the worker did not take the request.
            WorkerRefused: the worker's own answer to a bad request, or to one request too many.
            WorkerFailed: the worker died, or its answer cannot be read.
            WorkerTimeout: the whole generation took longer than `timeout_s`.
        """
        capture, params = self._capture, fitted(sampling_params(call), call, worker.context_len)
        masks, tops = mask_plan(call, params, capture, worker), top_plan(call, capture)
        with_logprobs, more = wants_logprobs(call, capture), {**tops.fields, **masks.fields}
        rid = name_at_worker(call)
        sending = self.exchange(
            worker,
            "POST",
            "/generate",
            headers=_headers(call),
            body=generate_body(  # it has no name here: it would stay until the reply is out
                call, params, more, rid=rid, with_logprobs=with_logprobs, texts=self._texts
            ),
            timeout_s=timeout_s,
            rid=rid,
        )
        is_over = False  # the worker no longer runs it
        try:
            async with sending as (exchange, answer):
                if is_over := answer.status != 200:
                    raise read_error(answer.status, await read_whole(answer))
                prompt, lines = call.prompt, lines_of(answer)
                reader = self._reader(call, params, exchange, masks, tops, with_logprobs)
                way = call.shortcut
                tap = None if way is None else tapped(answer, way, lines, reader)
                data = b"-"
                while data and not reader.is_finished:
                    data = await (read_some(answer) if tap is None else tap.read(answer))
                    payloads = lines.feed(data) if data else lines.end()
                    chunks = reader.feed(payloads) if payloads else ()
                    if chunks and reader.weight_version != exchange.weight_version:
                        exchange.hear(reader.weight_version)
                    if is_over := reader.is_finished:
                        await drain(answer)
                    for chunk in chunks:
                        if prompt is not None:
                            chunk, prompt = chunk._replace(prompt=prompt), None
                        yield chunk
                    if reader.failure is not None:
                        raise reader.failure
                if not reader.is_finished:
                    raise WorkerFailed("The worker's answer ended before the generation did.")
        except NotTaken:
            is_over = True
            raise
        finally:
            if not is_over:
                self.abort_later(worker, call)

    def exchange(
        self,
        worker: Worker,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Body | None = None,
        timeout_s: float,
        rid: str = "",
    ) -> Exchange:
        """Sends a request to `worker`; within the block, `give_up` or `cut` by `rid` can end it.

        The answer may have any status, and is closed on leaving the block.

        Raises:
            NotTaken: the worker did not take the request.
            WorkerFailed: it closed the connection without an answer, or was given up.
            WorkerTimeout: no answer within `timeout_s`.
        """
        use = Use()
        sending = self.send(
            worker, method, path, headers=headers, body=body, timeout_s=timeout_s, use=use
        )
        return Exchange(worker, rid, sending, use, self._exchanges)

    def give_up(self, worker: Worker) -> int:
        """Cuts off everything `worker` runs; whoever waits for it gets WorkerFailed at once."""
        under_way = list(chain.from_iterable(self._exchanges.get(worker, {}).values()))
        for exchange in under_way:
            exchange.cut()
        return len(under_way)

    def cut(self, worker: Worker, call: GenerateCall) -> None:
        """Cuts off the one generation that `worker` runs for this call."""
        for exchange in tuple(self._exchanges.get(worker, {}).get(name_at_worker(call), ())):
            exchange.cut()

    async def tokenize(self, worker: Worker, text: str) -> tuple[list[int], int | None] | None:
        """The ids that `worker` makes of `text`, and the length of its context if it reports one.

        None if the worker has no such route or fails to answer.
        """
        body = orjson.dumps({"prompt": text, "add_special_tokens": False})
        try:
            answer = await self.ask(
                worker, "POST", "/tokenize", headers=_JSON, body=body, timeout_s=PROBE_TIMEOUT_S
            )
            reply = orjson.loads(answer.body) if answer.status == 200 else {}
            length = reply.get("max_model_len")
            is_length = type(length) is int and length > 0
            return [int(token) for token in reply["tokens"]], length if is_length else None
        except (RouterError, AttributeError, KeyError, TypeError, ValueError) as exc:
            logger.debug("tokenize probe failed: worker=%s reason=%r", worker.url, exc)
            return None

    async def ask(
        self,
        worker: Worker,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float | None = None,
    ) -> WorkerAnswer:
        """The whole answer of `worker`, whatever its status; takes no lease.

        Without `timeout_s`, the request timeout applies.

        Raises:
            WorkerFailed: the worker could not be reached, or broke the connection.
            WorkerTimeout: the answer was not complete in time.
        """
        timeout_s = self._request_timeout_s if timeout_s is None else timeout_s
        is_repeated = False
        while True:
            try:
                async with self.exchange(
                    worker, method, path, headers=headers, body=body, timeout_s=timeout_s
                ) as (_, answer):
                    return WorkerAnswer(answer.status, answer.headers, await read_whole(answer))
            except NotTaken as exc:
                if not exc.is_stale or is_repeated:
                    raise WorkerFailed(f"The worker was not reached: {exc.reason}.") from exc
                logger.info(
                    "asking again: worker=%s %s %s: %s", worker.url, method, path, exc.reason
                )
                is_repeated = True

    async def send(
        self,
        worker: Worker,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Body | None = None,
        timeout_s: float,
        use: Use | None = None,
    ) -> Answer:
        """Sends one request to `worker`; returns once the head of the answer has arrived.

        The caller closes the answer. `path` is sent exactly as written; `timeout_s` applies until
        the last byte of the answer.

        Raises:
            NotTaken: the worker did not take the request.
            WorkerFailed: it closed the connection without an answer.
            WorkerTimeout: no answer within `timeout_s`.
            OutOfDescriptors: no connection could be opened.
        """
        if worker.api_key is not None:
            headers = CIMultiDict(headers)
            headers["Authorization"] = f"Bearer {worker.api_key}"
        use, url = use or Use(), worker.url + path
        try:
            if method == "POST" and self._kept is not None:
                kept = await self._kept.post(url, headers, body, timeout_s=timeout_s)
                if kept is not None:
                    return kept
            note_in(use)
            headers, body = framed(headers, body)
            return await self.session.request(
                method,
                URL(url, encoded=True),
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(timeout_s, connect=self._connect_timeout_s),
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as exc:
            is_refused = exc.os_error.errno == errno.ECONNREFUSED
            raise NotTaken("the connection failed", is_refused=is_refused) from exc
        except aiohttp.ConnectionTimeoutError as exc:
            raise NotTaken("the connection took too long") from exc
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
            if use.is_fresh:
                words = "The worker closed the connection without an answer."
                raise WorkerFailed(words) from exc
            raise NotTaken("the connection was closed", is_stale=True) from exc
        except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
            raise translation(exc) from exc
        except ValueError as exc:  # of the address, such as a name that idna refuses
            raise NotTaken("the worker's address cannot be used") from exc

    def _reader(
        self,
        call: GenerateCall,
        params: Item,
        exchange: Exchange,
        masks: MaskPlan,
        tops: TopPlan,
        with_logprobs: bool,
    ) -> ChunkReader:
        limit: int | None = params.get("max_new_tokens")
        running, own = self._exchanges[exchange.worker], ("", exchange.rid)
        is_scored = not call.is_passed_on and call.asked.get("logprob_start_len") == 0
        return ChunkReader(
            vocab_size=self._vocab_size,
            with_logprobs=with_logprobs,
            scored=call.prompt.ids if is_scored and call.prompt and not len(call.sampled) else None,
            max_len=exchange.worker.context_len if limit is None else limit,
            is_native=call.is_passed_on,
            shows_items=call.shows_items,
            is_stream=call.stream,
            sampled_under=exchange.sampled_under,
            experts_start=experts_start(call),
            masks=masks,
            tops=tops,
            worker_url=exchange.worker.url,
            is_anothers=lambda rid: type(rid) is str and rid not in own and rid in running,
        )

    def abort_later(self, worker: Worker, call: GenerateCall, name: str | None = None) -> None:
        """Aborts after the request was closed: its caller, even a cancelled one, need not wait.

        `name`: what the worker calls it, where that is not the name of `call`.
        """
        if self._session is None:
            logger.warning("abort not sent, client closed: worker=%s rid=%s", worker.url, call.rid)
            return
        task = asyncio.get_running_loop().create_task(
            self._abort(worker, call, name or name_at_worker(call))
        )
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _abort(self, worker: Worker, call: GenerateCall, name: str) -> None:
        self.aborts_sent += 1
        try:
            answer = await self.ask(
                worker,
                "POST",
                "/abort_request",
                headers=_headers(call),
                body=orjson.dumps({"rid": name}),
                timeout_s=self._abort_timeout_s,
            )
            if answer.status != 200:
                raise read_error(answer.status, b"")
        except RouterError as exc:
            self.aborts_failed += 1
            logger.warning("abort failed: worker=%s rid=%s reason=%s", worker.url, call.rid, exc)
        except Exception:  # a fault of ours, and nobody waits for this task
            self.aborts_failed += 1
            logger.exception("abort failed: worker=%s rid=%s", worker.url, call.rid)


def _headers(call: GenerateCall) -> Mapping[str, str]:
    headers = CIMultiDict(call.headers)
    headers["Content-Type"] = "application/json"
    return headers
