"""What a worker serves, and who may ask for it: SGLang's routes, each with what the router does.

A path that is not listed may be control: where there are keys, only the admin's opens it, unless it
is below `/v1/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, TypeAlias

How: TypeAlias = Literal["door", "own", "control", "checked", "passed", "refused"]
"""`door`: the router generates; `own`: it answers by itself; `control`: it asks all workers.
`checked`: one worker gets it, once its body is seen to be harmless; `passed`: one gets it as it is;
`refused`: none gets it."""
Who: TypeAlias = Literal["client", "admin"]


@dataclass(frozen=True, slots=True)
class Served:
    """One path of a worker's: what becomes of it, for whom, and with which methods."""

    how: How
    who: Who
    methods: tuple[str, ...]


_OF_AN_API = re.compile(r"/v[0-9]+/[^\n]+")
_DOTS = frozenset((".", ".."))
_SLASHES = re.compile(r"/{2,}")
_GET, _POST, _POST_PUT = ("GET", "HEAD"), ("POST",), ("POST", "PUT")

# Their bodies have schemas of tools, in which numbers are not ids.
CONVERSATIONS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/invocations",
        "/parse_function_call",
        "/api/chat",
    }
)


def _all(paths: str, how: How, who: Who, methods: tuple[str, ...]) -> dict[str, Served]:
    return dict.fromkeys(paths.split(), Served(how, who, methods))


# Where SGLang takes GET for something that changes a worker, the router does not.
SURFACE: Mapping[str, Served] = MappingProxyType(
    {
        **_all("/generate", "door", "client", _POST_PUT),
        **_all(
            "/v1/chat/completions /v1/completions"
            " /v1/responses /v1/responses/input_tokens /v1/responses/{id}/cancel"
            " /v1/messages /v1/messages/count_tokens /invocations",
            "door",
            "client",
            _POST,
        ),
        **_all("/v1/responses/{id}", "door", "client", ("GET", "HEAD", "DELETE")),
        **_all(
            "/ /health /health_generate /get_model_info /model_info /v1/models /v1/models/{model}",
            "own",
            "client",
            _GET,
        ),
        **_all(
            "/tokenize /v1/tokenize /detokenize /v1/detokenize",
            "own",
            "client",
            _POST,
        ),
        **_all("/get_server_info /server_info", "own", "admin", _GET),
        **_all(
            "/v1/embeddings /v1/classify /v1/score /v1/decisions /v1/systemone"
            " /parse_function_call /separate_reasoning"
            # of older versions, and of other engines
            " /embeddings /embed /rerank /v2/rerank /score /pooling /v1/pooling",
            "checked",
            "client",
            _POST,
        ),
        **_all("/encode /classify /v1/rerank", "checked", "client", _POST_PUT),
        **_all("/v1/audio/transcriptions /v1/audio/translations", "passed", "client", _POST),
        **_all("/api/show", "checked", "client", _POST),
        **_all("/ready /ping /v1/loads /get_load /api/tags /api/version", "passed", "client", _GET),
        # They generate in a form of their own, which no door reads.
        **_all("/vertex_generate /api/generate /api/chat", "checked", "admin", _POST),
        **_all("/generate_from_file", "passed", "admin", _POST),
        **_all("/v1/realtime", "refused", "client", ()),
        **_all(
            "/update_weights_from_disk /update_weights_from_tensor"
            " /update_weights_from_distributed /update_weights_from_ipc /update_weight_version"
            " /begin_weight_update /end_weight_update /init_weights_update_group"
            " /destroy_weights_update_group /abort_request /pause_generation"
            " /continue_generation /load_lora_adapter /load_lora_adapter_from_tensors"
            " /unload_lora_adapter /flush_cache /release_memory_occupation"
            " /resume_memory_occupation /start_profile /stop_profile",
            "control",
            "admin",
            _POST,
        ),
        **_all("/set_internal_state", "control", "admin", _POST_PUT),
        **_all(
            "/add_external_corpus /remove_external_corpus /close_session /configure_logging"
            " /dump_expert_distribution_record /dumper/{method} /freeze_gc"
            " /hicache/storage-backend/clear /init_weights_send_group_for_remote_instance"
            " /open_session /pd_role_switch /scale_elastic_ep /send_weights_to_remote_instance"
            " /set_trace_level /slow_down /start_expert_distribution_record"
            " /stop_expert_distribution_record /weights_checker",
            "passed",
            "admin",
            _POST,
        ),
        **_all("/get_weights_by_name", "passed", "admin", ("GET", "HEAD", "POST")),
        **_all("/hicache/storage-backend", "passed", "admin", ("GET", "HEAD", "PUT", "DELETE")),
        **_all(
            "/get_hicache_l3_cache_layout /get_remote_instance_transfer_engine_info"
            " /is_scaling_elastic_ep /list_external_corpora /remote_instance_transfer_engine_info",
            "passed",
            "admin",
            _GET,
        ),
    }
)


def served_at(path: str) -> Served | None:
    """What becomes of a path, which begins with a slash; None if SGLang has no such route."""
    path = tidy_path(path)
    found = SURFACE.get(path)
    if found is not None or path.count("/") < 2:
        return found
    return next((served for shape, served in _shapes() if shape.fullmatch(path)), None)


def is_of_an_api(path: str) -> bool:
    """Whether a path that is not listed can only be an API's, where SGLang has no control."""
    return _OF_AN_API.fullmatch(path) is not None and not _DOTS.intersection(path.split("/"))


def tidy_path(path: str) -> str:
    """The path without doubled slashes, and without one at its end."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def is_for_clients(path: str) -> bool:
    """Whether whoever may ask at all may ask for this."""
    found = served_at(path)
    return is_of_an_api(path) if found is None else found.who == "client"


@cache
def _shapes() -> tuple[tuple[re.Pattern[str], Served], ...]:
    """The paths with variables."""
    return tuple(
        (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), served)
        for path, served in SURFACE.items()
        if "{" in path
    )
