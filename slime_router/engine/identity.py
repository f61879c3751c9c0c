"""What answers at a worker's address: SGLang, or something else."""

from __future__ import annotations

import orjson

from slime_router.engine.client import WorkerClient
from slime_router.engine.request import NO_KEY
from slime_router.pool.worker import Worker

INFO = "/model_info"
GENERATE = "/generate"
# Of `/model_info`. Other servers have a route of this name, or answer every path with a page.
_KEYS = {"model_path", "tokenizer_path", "weight_version", "is_generation"}
TIMEOUT_S = 10.0
_NOT_THERE = (404, 501)

STRANGER = "it is not an SGLang worker: it does not serve /generate"


async def trouble(client: WorkerClient, worker: Worker) -> str | None:
    """Why `worker` cannot generate anything for this router; None if it seems that it can.

    How it samples by itself is noted where it says so.

    Older versions and other engines that speak SGLang's protocol may lack `/model_info`. Whether
    `/generate` is there shows in the status of a GET, which runs nothing.

    Raises:
        RouterError: it does not answer.
    """
    answer = await client.ask(worker, "GET", INFO, headers={}, timeout_s=TIMEOUT_S)
    if answer.status in NO_KEY:
        return "it refuses the router's key for workers"
    info = answer.fields if answer.status == 200 else {}
    if _KEYS & info.keys():
        preferred = info.get("preferred_sampling_params")
        worker.reported(preferred_sampling=preferred if isinstance(preferred, dict) else {})
        return None
    answer = await client.ask(worker, "GET", GENERATE, headers={}, timeout_s=TIMEOUT_S)
    is_page = answer.status == 200 and not _is_json(answer.body)
    return STRANGER if answer.status in _NOT_THERE or is_page else None


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except ValueError:
        return False
    return True
