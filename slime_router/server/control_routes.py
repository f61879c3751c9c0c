"""Control routes: a control request that RL code sends to the router goes to all workers at once.

Method, query, headers and body reach every worker unchanged. The router parses only the weight
version in a request and, when there are several answers, their JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from aiohttp import web
from multidict import CIMultiDict

from slime_router.api.errors import openai_error_object
from slime_router.auth.caller import Caller, caller
from slime_router.edge.bodies import read_body
from slime_router.edge.headers import to_client, to_worker
from slime_router.engine import answer as worker_answer
from slime_router.engine.client import WorkerClient
from slime_router.engine.exchange import WorkerAnswer
from slime_router.engine.wire.rids import passed_rid, worker_rid
from slime_router.errors import BadRequest, NoWorker, RouterError, WorkerFailed
from slime_router.json_text import is_text
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.server.boundary import Handler
from slime_router.server.proxy import check_answer
from slime_router.server.together.aborts import Aborts
from slime_router.server.together.registry import Registry
from slime_router.types import WeightVersion
from slime_router.values import replace

logger = logging.getLogger(__name__)

_LOADS = (  # load weights, and empty the worker's cache unless the request says not to
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
)
_NAMES = ("/update_weight_version", "/end_weight_update")
_ADAPTERS = ("/load_lora_adapter", "/load_lora_adapter_from_tensors")
_POST_ONLY = (  # SGLang takes GET for some of them, which any link would send
    *_LOADS,
    *_NAMES,
    "/begin_weight_update",
    "/init_weights_update_group",
    "/destroy_weights_update_group",
    "/abort_request",
    "/pause_generation",
    "/continue_generation",
    *_ADAPTERS,
    "/unload_lora_adapter",
    "/flush_cache",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/start_profile",
    "/stop_profile",
)
_ALSO_PUT = ("/set_internal_state",)
_STOPS = ("/pause_generation", "/release_memory_occupation")
_STARTS = ("/continue_generation", "/resume_memory_occupation")
_FLUSHES = ("/flush_cache", "/release_memory_occupation")

# The body is read whole and unpacked: neither header describes it any more.
_FRAMING = ("content-encoding", "content-length")


@dataclass(frozen=True, slots=True)
class _Update:
    """What a weight update says about itself."""

    version: WeightVersion | None
    flushes: bool


@dataclass(frozen=True, slots=True)
class _Order:
    """The request that every worker is sent."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes
    update: _Update | None
    adapter: str | None  # that is loaded


class ControlRoutes:
    """Sends control requests to all workers, and records which weights they run afterwards.

    `registry` is given what a worker is known to do by then. `aborts` ends what runs in any process
    of the router.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        aborts: Aborts,
        registry: Registry,
    ) -> None:
        self._pool = pool
        self._client = client
        self._aborts = aborts
        self._registry = registry

    def __repr__(self) -> str:
        return f"<ControlRoutes to {self._pool!r}>"

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every control route."""
        methods = {
            "POST": (*_POST_ONLY, *_ALSO_PUT),
            "PUT": _ALSO_PUT,
        }
        return [
            (method, path, partial(self._handle, path))
            for method, paths in methods.items()
            for path in paths
        ]

    async def _handle(self, path: str, request: web.Request) -> web.Response:
        """One worker's answer unchanged, or the answers of all of them.

        Raises:
            BadRequest: the body cannot be read, or a field that the router reads is invalid.
            NoWorker: none is registered.
            WorkerFailed: the only worker could not be reached, or broke the connection.
            WorkerTimeout: the only worker did not answer in time.
        """
        workers = self._pool.list()
        order = await _read(path, request, is_for_many=len(workers) > 1)
        orders = [(worker, order) for worker in workers]
        if path == "/abort_request":
            orders = await self._abort(order, caller(request)) or orders
        if not orders:
            raise NoWorker("No worker is registered.")
        async with asyncio.TaskGroup() as group:
            tasks = [(w.url, group.create_task(self._tell(w, order))) for w, order in orders]
        heard = {url: task.result() for url, task in tasks}
        if len(heard) > 1:
            return _together(heard)
        (answer,) = heard.values()
        if isinstance(answer, RouterError):
            raise answer
        headers = to_client(answer.headers, but=("content-length",))
        return web.Response(status=answer.status, headers=headers, body=answer.body)

    async def _abort(self, order: _Order, who: Caller) -> list[tuple[Worker, _Order]]:
        """The workers that run the generation, each with its name there; empty to abort on all.

        It is one of the caller's own, or of the owner that it names. A generation aborted this way
        is not resumed. A rid that nothing here has may be that of a request which was passed on;
        it must not begin what another caller runs.

        Raises:
            BadRequest: `rid` is not a text, or `abort_all` not a boolean.
        """
        fields = _fields(order.body)
        rid, is_for_all = fields.get("rid"), fields.get("abort_all")
        if not isinstance(rid, str | None):
            raise BadRequest("rid must be a string.", param="rid")
        if not isinstance(is_for_all, bool | None):
            raise BadRequest("abort_all must be a boolean.", param="abort_all")
        if is_for_all:
            await self._aborts.cancel_all()
        if is_for_all or not rid:
            return []
        if not is_text(rid):
            raise BadRequest("rid holds half of a surrogate pair.", param="rid")
        own = who.own_rid(rid)
        found = await self._aborts.cancel(own)
        if not found and (passed := worker_rid(own) if who.tag else passed_rid(rid)) != rid:
            found = [(worker, passed) for worker in self._pool.list()]
        return [
            (worker, replace(order, body=json.dumps({**fields, "rid": name}).encode()))
            for worker, name in found
        ]

    async def _tell(self, worker: Worker, order: _Order) -> WorkerAnswer | RouterError:
        update = order.update
        path = order.target.partition("?")[0]
        was_paused, was_asleep = worker.is_paused, worker.is_asleep
        if path in _STOPS:  # before it takes effect, so nothing new is sent in the meantime
            await self._note_stop(worker, path, order.body)
        before = await self._registry.update_started(worker) if update is not None else None
        try:
            answer = await self._client.ask(
                worker, order.method, order.target, headers=order.headers, body=order.body or None
            )
            check_answer(answer.status)
        except RouterError as exc:  # one worker's failure; the others still get the request
            logger.warning("%s failed: worker=%s reason=%s", order.target, worker.url, exc)
            if path in _STOPS:
                await self._registry.rest(worker, is_paused=was_paused, is_asleep=was_asleep)
            return exc
        is_success = _is_success(answer.status, _parsed(answer.body))
        if path in _STARTS and is_success:
            await self._note_stop(worker, path, order.body)
        if path in _STOPS and not is_success:
            await self._registry.rest(worker, is_paused=was_paused, is_asleep=was_asleep)
        if path in _FLUSHES and is_success:
            await self._registry.flushed(worker)
        if order.adapter is not None and is_success:
            await self._registry.adapter_loaded(worker, order.adapter)
        if update is not None and is_success:
            await self._registry.update_taken(
                worker, update.version, before=before, flushes=update.flushes
            )
        return answer

    async def _note_stop(self, worker: Worker, path: str, body: bytes) -> None:
        """Notes that the worker stops or resumes generating."""
        is_paused, is_asleep = worker.is_paused, worker.is_asleep
        if path in ("/pause_generation", "/continue_generation"):
            is_paused = path == "/pause_generation"
        elif path == "/release_memory_occupation":
            is_asleep = True
        elif _names_the_cache(_fields(body).get("tags")):
            is_asleep = False  # if weights are resumed separately, they come first
        await self._registry.rest(worker, is_paused=is_paused, is_asleep=is_asleep)


async def _read(path: str, request: web.Request, *, is_for_many: bool) -> _Order:
    _, mark, query = request.raw_path.partition("?")
    # One of several answers is parsed, so it must not be compressed.
    not_sent = (*_FRAMING, "accept-encoding") if is_for_many else _FRAMING
    body = await read_body(request)
    return _Order(
        method=request.method,
        target=path + mark + query,
        headers=to_worker(request, but=not_sent),
        body=body,
        update=_update(path, body),
        adapter=_adapter(path, body),
    )


def _adapter(path: str, body: bytes) -> str | None:
    name = _fields(body).get("lora_name") if path in _ADAPTERS else None
    return name if isinstance(name, str) else None


def _update(path: str, body: bytes) -> _Update | None:
    if path not in _LOADS and path not in _NAMES:
        return None
    fields = _fields(body)
    name = "weight_version" if "weight_version" in fields else "new_version"
    version = fields.get(name)
    version = version if type(version) in (str, int) else None
    try:  # no reply under another one would be believed
        worker_answer.version(version)
    except WorkerFailed:
        raise BadRequest(f"'{name}' must be a short string or an int.", param=name) from None
    return _Update(
        version=version,
        flushes=path in _LOADS and bool(fields.get("flush_cache", True)),
    )


def _names_the_cache(tags: object) -> bool:
    """Whether the KV cache is among what is resumed: without tags, SGLang resumes all."""
    return not tags or (isinstance(tags, list) and "kv_cache" in tags)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)  # not orjson: it allocates a dozen times the body's length
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _together(heard: Mapping[str, WorkerAnswer | RouterError]) -> web.Response:
    """All answers by worker URL; at the top level, what a single worker would have answered.

    That is the first answer if all succeeded, otherwise the first failure.
    """
    entries = {url: _entry(answer) for url, answer in heard.items()}
    failed = [e for e in entries.values() if not _is_success(e["status"], e["body"])]
    speaker = (failed or list(entries.values()))[0]
    reply = dict(speaker["body"]) if isinstance(speaker["body"], dict) else {}
    status = 200
    if failed:
        reply["success"] = False
        status = 207 if len(failed) < len(entries) else speaker["status"]
    reply["workers"] = entries
    return web.Response(status=status, body=orjson.dumps(reply), content_type="application/json")


def _entry(answer: WorkerAnswer | RouterError) -> dict[str, Any]:
    if isinstance(answer, RouterError):
        return {"status": answer.status, "body": openai_error_object(answer)}
    return {"status": answer.status, "body": _parsed(answer.body)}


def _is_success(status: int, body: Any) -> bool:
    """Some workers report a failure with 200."""
    return 200 <= status < 300 and not (isinstance(body, dict) and body.get("success") is False)


def _parsed(body: bytes) -> Any:
    """The JSON value in `body`, or its text if it is not JSON."""
    try:
        return orjson.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
