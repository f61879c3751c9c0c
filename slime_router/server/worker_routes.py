"""Worker registration: `/workers`, as in sglang-router, and slime's older routes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson
from aiohttp import web

from slime_router.api.request import read_object, require
from slime_router.edge.lengths import NAME_LEN
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import KINDS, Registration, RegistrationFields, Worker
from slime_router.server.boundary import Handler
from slime_router.server.together.merging import merged_workers, silence
from slime_router.server.together.registry import Registry
from slime_router.siblings.siblings import Siblings
from slime_router.values import replace

_URL_REQUIRED = "worker_url is required (use query ?url=... or JSON body)"
_NAMES = {"worker_type": "kind"}  # our name for a field, where it differs
_MAX_LABELS = 100
LISTED = "workers"


class WorkerAdmin:
    """Adds, changes and removes workers; a change takes effect with the next request."""

    def __init__(self, pool: WorkerPool, registry: Registry, siblings: Siblings) -> None:
        self._pool = pool
        self._registry = registry
        self._siblings = siblings
        siblings.answer(LISTED, self._listed)

    def __repr__(self) -> str:
        return f"<WorkerAdmin of {self._pool!r}>"

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every route."""
        return [
            ("POST", "/add_worker", self.add_worker),
            ("POST", "/remove_worker", self.remove_worker),
            ("GET", "/list_workers", self.list_urls),
            ("POST", "/workers", self.create),
            ("GET", "/workers", self.list_all),
            ("GET", "/workers/{worker:.+}", self.show),
            ("PUT", "/workers/{worker:.+}", self.change),
            ("PATCH", "/workers/{worker:.+}", self.change),
            ("DELETE", "/workers/{worker:.+}", self.delete),
        ]

    async def add_worker(self, request: web.Request) -> web.Response:
        """`POST /add_worker?url=` or `{"url"}`."""
        url = await _named(request)
        if url is None:
            return web.json_response({"error": _URL_REQUIRED}, status=400)
        await self._registry.add(url)
        return self._success()

    async def remove_worker(self, request: web.Request) -> web.Response:
        """`POST /remove_worker?url=` or `{"url"}`: gone at once, but its generations finish."""
        url = await _named(request)
        if url is None:
            return web.json_response({"error": _URL_REQUIRED}, status=400)
        await self._registry.remove(url)
        return self._success()

    def _success(self) -> web.Response:
        reply = {"status": "success", "worker_urls": self._pool.loads}
        return web.json_bytes_response(reply, dumps=orjson.dumps)

    async def list_urls(self, _: web.Request) -> web.Response:
        """`GET /list_workers`."""
        return web.json_response({"urls": list(self._pool.loads)})

    async def create(self, request: web.Request) -> web.Response:
        """`POST /workers {"url", ...}`: accepted, and in use at once; a known URL keeps its id."""
        body = await read_object(request)
        url = body.get("url")
        require(isinstance(url, str) and bool(url), "url", "the worker's URL")
        worker = await self._registry.add(str(url), **self._fields(str(url), body))
        return self._accepted(worker, "Worker added")

    async def list_all(self, _: web.Request) -> web.Response:
        """`GET /workers`."""
        heard = await self._siblings.ask(LISTED)
        workers = merged_workers([await self._listed(), *heard.answers.values()])
        kinds = Counter(worker["worker_type"] for worker in workers)
        reply = {
            "workers": workers,
            "total": len(workers),
            "stats": {f"{kind}_count": kinds[kind] for kind in KINDS},
        }
        return web.json_bytes_response({**reply, **silence(heard)}, dumps=orjson.dumps)

    async def show(self, request: web.Request) -> web.Response:
        """`GET /workers/{id or URL}`."""
        worker = _shown(self._pool, self._pool.get(request.match_info["worker"]))
        heard = await self._siblings.ask(LISTED)
        seen = merged_workers([[worker], *heard.answers.values()])
        return web.json_response({**seen[0], **silence(heard)})

    async def _listed(self, _: object = None) -> list[dict[str, Any]]:
        return [_shown(self._pool, worker) for worker in self._pool.list()]

    async def change(self, request: web.Request) -> web.Response:
        """`PUT` or `PATCH /workers/{id or URL}`: changes only the fields in the body."""
        worker = self._pool.get(request.match_info["worker"])
        fields = self._fields(worker.url, await read_object(request))
        await self._registry.add(worker.url, **fields)
        return self._accepted(worker, "Worker updated")

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /workers/{id or URL}`: gets no new requests, and leaves after its last."""
        worker = await self._registry.drain(request.match_info["worker"])
        return self._accepted(worker, "Worker removed when it has answered what it has")

    def _fields(self, url: str, body: Mapping[str, Any]) -> RegistrationFields:
        """A body's fields, which fit with what is known of the worker there, if there is one."""
        fields = _fields(body)
        known = next((each for each in self._pool.list() if each.url == url.rstrip("/")), None)
        made = replace(known.registration if known else Registration(), **fields)
        require(
            made.kind != "prefill" or made.bootstrap_port is not None,
            "bootstrap_port",
            "the port of a prefill worker's bootstrap server",
        )
        return fields

    @staticmethod
    def _accepted(worker: Worker, message: str) -> web.Response:
        location = f"/workers/{worker.id}"
        reply = {
            "status": "accepted",
            "worker_id": worker.id,
            "url": worker.url,
            "location": location,
            "message": message,
        }
        return web.json_response(reply, status=202, headers={"Location": location})


class GroupAdmin:
    """Shows the groups of workers beside the router's own; all have the policy of that name."""

    def __init__(self, pools: Mapping[str, WorkerPool], policy: str) -> None:
        self._pools = pools
        self._policy = policy

    def __repr__(self) -> str:
        return f"<GroupAdmin of {', '.join(self._pools)}>"

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every route."""
        return [("GET", "/worker_groups", self.list_all)]

    async def list_all(self, _: web.Request) -> web.Response:
        """`GET /worker_groups`: each group with its policy, its workers and their weights."""
        groups = [self._json(name, pool) for name, pool in self._pools.items()]
        return web.json_response({"groups": groups, "total": len(groups)})

    def _json(self, name: str, pool: WorkerPool) -> dict[str, Any]:
        workers = [_shown(pool, worker) for worker in pool.list()]
        versions = (each["weight_version"] for each in workers)
        return {
            "name": name,
            "policy": self._policy,
            "is_healthy": any(each["is_healthy"] for each in workers),
            "weight_versions": list(dict.fromkeys(v for v in versions if v is not None)),
            "workers": workers,
        }


def _shown(pool: WorkerPool, worker: Worker) -> dict[str, Any]:
    """A worker as operators see it, without its key."""
    return {
        "id": worker.id,
        "url": worker.url,
        "worker_type": worker.kind,
        "bootstrap_port": worker.bootstrap_port,
        "connection_mode": "HTTP",
        "status": worker.state,
        "reason": worker.reason,
        "is_healthy": pool.is_healthy(worker),
        "load": worker.in_flight,
        "queued": worker.queued,
        "dp_size": len(pool.ranks.of(worker)) or 1,
        "circuit_breaker": pool.breaker_state(worker),
        "priority": worker.registration.priority,
        "cost": worker.registration.cost,
        "labels": dict(worker.registration.labels),
        "context_len": worker.context_len,
        "is_token_exact": worker.is_token_exact,
        "weight_version": worker.weight_version,
    }


def _fields(body: Mapping[str, Any]) -> RegistrationFields:
    """A body's fields about a worker, checked, under our names; unknown fields are ignored."""
    checks: dict[str, tuple[Callable[[object], bool], str]] = {
        "worker_type": (lambda v: v in KINDS, " or ".join(KINDS)),
        "bootstrap_port": (lambda v: v is None or _is_port(v), "a port"),
        "api_key": (lambda v: v is None or _is_key(v), "the worker's key, printable ASCII"),
        "priority": (lambda v: type(v) is int, "a whole number"),
        "cost": (_is_cost, "a number, 0 or more"),
        "labels": (
            _are_labels,
            f"at most {_MAX_LABELS} names with texts, all of them short",
        ),
    }
    fields: dict[str, Any] = {}
    for name, (is_fine, wanted) in checks.items():
        if name in body:
            require(is_fine(body[name]), name, wanted)
            fields[_NAMES.get(name, name)] = body[name]
    return cast(RegistrationFields, fields)  # each was checked above


def _is_cost(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value < 1e9


def _is_port(value: object) -> bool:
    return type(value) is int and 0 < value < 65536


def _is_key(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= 4096
        and value.isascii()
        and value.isprintable()
    )


def _are_labels(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_LABELS
        and all(isinstance(label, str) for label in value.values())
        and all(len(text) <= NAME_LEN for label in value.items() for text in label)
    )


async def _named(request: web.Request) -> str | None:
    named = request.query.get("url") or request.query.get("worker_url")
    if named or not request.can_read_body:
        return named
    body = await read_object(request)
    url = body.get("url") or body.get("worker_url")
    return url if isinstance(url, str) else None
