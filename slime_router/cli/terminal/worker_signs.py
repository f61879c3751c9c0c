"""What a worker says of itself, held against what the router needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from slime_router.checkup.on_worker import PROBE_TEXTS
from slime_router.config import Config
from slime_router.engine.client import WorkerClient
from slime_router.engine.identity import INFO, trouble
from slime_router.errors import RouterError
from slime_router.pool.worker import Worker
from slime_router.tokens.tokenizer import Tokenizer

TIMEOUT_S = 10.0
FLAGS = "/server_info"

Kind: TypeAlias = Literal["fine", "note", "fault"]


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that was looked at."""

    kind: Kind
    what: str
    text: str


async def examine(
    client: WorkerClient, worker: Worker, tokenizer: Tokenizer | None, config: Config
) -> list[Sign]:
    """Asks a worker for all that makes it ready; nothing is generated.

    The same questions as those that a router asks a new worker, and its flags.
    """
    try:
        found = await trouble(client, worker)
    except RouterError as exc:
        return [Sign("fault", "answers", exc.message)]
    if found is not None:
        return [Sign("fault", "answers", found)]
    signs = [Sign("fine", "answers", "as SGLang does")]
    signs += _of_health(await _status(client, worker, config.health_check_endpoint), config)
    info, flags = await _object(client, worker, INFO), await _object(client, worker, FLAGS)
    signs += _of_model(info, flags)
    signs += await _of_tokens(client, worker, tokenizer, config)
    signs += _of_flags(flags)
    return signs


async def _status(client: WorkerClient, worker: Worker, path: str) -> int | None:
    try:
        answer = await client.ask(
            worker, "GET", f"/{path.lstrip('/')}", headers={}, timeout_s=TIMEOUT_S
        )
    except RouterError:
        return None
    return answer.status


async def _object(client: WorkerClient, worker: Worker, path: str) -> dict[str, Any]:
    """The JSON object at a path; empty where there is no such route."""
    try:
        answer = await client.ask(worker, "GET", path, headers={}, timeout_s=TIMEOUT_S)
    except RouterError:
        return {}
    return answer.fields if answer.status == 200 else {}


def _of_health(status: int | None, config: Config) -> list[Sign]:
    path = config.health_check_endpoint
    if status == 200:
        return [Sign("fine", "health", f"{path} is answered with 200")]
    said = "not answered" if status is None else f"answered with {status}"
    return [Sign("fault", "health", f"{path} is {said}: the worker would be taken out of service")]


def _of_model(info: Mapping[str, Any], flags: Mapping[str, Any]) -> list[Sign]:
    version = info.get("weight_version", flags.get("weight_version"))
    signs = [
        Sign("fine", "SGLang", str(flags["version"]))
        if flags.get("version")
        else Sign("note", "SGLang", "it does not say its version"),
        Sign("fine", "weights", str(version))
        if version is not None
        else Sign("note", "weights", "it reports no version: sampled tokens would have none"),
    ]
    if model := info.get("model_path"):
        signs.insert(1, Sign("fine", "model", str(model)))
    return signs


async def _of_tokens(
    client: WorkerClient, worker: Worker, tokenizer: Tokenizer | None, config: Config
) -> list[Sign]:
    context, differing, compared = None, None, 0
    for text in PROBE_TEXTS:
        try:
            reply = await client.tokenize(worker, text)
        except RouterError:
            reply = None
        if reply is None:
            break
        context = reply[1]
        compared += 1
        if tokenizer is not None and reply[0] != tokenizer.encode(text).tolist():
            differing = differing or text
    length = "not known" if context is None else f"{context:,} tokens"
    signs = [Sign("note" if context is None else "fine", "context", length)]
    if tokenizer is None:
        signs.append(Sign("note", "vocabulary", "not compared: give --hf-checkpoint"))
    elif compared < len(PROBE_TEXTS):
        signs.append(Sign("note", "vocabulary", "not compared: it does not serve /tokenize"))
    elif differing is not None:
        kind: Kind = "note" if config.allow_token_mismatch else "fault"
        signs.append(Sign(kind, "vocabulary", f"other tokens than the router's: {differing!r}"))
    else:
        signs.append(Sign("fine", "vocabulary", f"the same tokens for {compared} texts"))
    return signs


def _of_flags(flags: Mapping[str, Any]) -> list[Sign]:
    """The flags that change what a router can do with it."""
    if not flags:
        return [Sign("note", "flags", f"it does not serve {FLAGS}")]
    signs = []
    if flags.get("skip_tokenizer_init"):
        signs.append(
            Sign("note", "flags", "--skip-tokenizer-init: tokens cannot be compared with it")
        )
    if flags.get("disable_radix_cache"):
        signs.append(
            Sign("note", "flags", "--disable-radix-cache: each turn computes its whole prompt")
        )
    if flags.get("enable_metrics") is False:
        signs.append(Sign("note", "flags", "without --enable-metrics, /engine_metrics has nothing"))
    shown = {
        "tp_size": "tensor parallel",
        "dp_size": "data parallel",
        "max_running_requests": "running requests at most",
        "max_total_num_tokens": "tokens in its cache",
    }
    found = [f"{flags[key]} {words}" for key, words in shown.items() if flags.get(key)]
    if found:
        signs.append(Sign("fine", "runs with", ", ".join(found)))
    return signs
