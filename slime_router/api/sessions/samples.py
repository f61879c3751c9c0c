"""The rows of a session as miles collects them: `POST /sessions/{session}/samples`.

One safetensors file. Arrays are named by field and sample (`tokens.0`, `loss_mask.0`); everything
else is JSON in the bytes of `_samples_meta`. Beside miles' own fields, samples whose masks are
known have `mask_offsets`, `mask_ids` and `sampling_logprobs`, and those whose likeliest tokens are
kept `top_offsets`, `top_ids` and `top_logprobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
import safetensors.numpy
from aiohttp import web
from numpy.typing import NDArray

from slime_router.api.request import read_object, require
from slime_router.api.sessions.endpoints import session_in_path
from slime_router.api.sessions.request import Body, check_known, read_count
from slime_router.api.sessions.row_formats import OUR_METADATA_KEY, RowFormat
from slime_router.api.sessions.rows import RowsDoor
from slime_router.api.token_ids import Vocabulary
from slime_router.rows.rows import Row, RowSet
from slime_router.trajectory.session import Session

META_KEY = "_samples_meta"
MEDIA_TYPE = "application/octet-stream"

_ARRAYS = (  # all the fields that miles knows as arrays; those that a sample lacks are named
    "tokens",
    "loss_mask",
    "rollout_log_probs",
    "rollout_routed_experts",
    "rollout_indexer_topk",
)

Empty: TypeAlias = Literal["no_records", "all_truncated"]


@dataclass(frozen=True, slots=True)
class SamplesRequest:
    """How long samples may be, in tokens, and what the agent left for their metadata."""

    max_len: int | None
    metadata: dict[str, Any]


def read_samples_request(body: Body) -> SamplesRequest:
    """`{"max_seq_len", "metadata"}`.

    Raises:
        BadRequest: with the name of the field at fault.
    """
    check_known(body, ("max_seq_len", "metadata"))
    metadata = body.get("metadata")
    require(metadata is None or isinstance(metadata, dict), "metadata", "an object")
    return SamplesRequest(read_count(body, "max_seq_len"), metadata or {})


async def collect(rows: RowsDoor, vocabulary: Vocabulary, request: web.Request) -> web.Response:
    """The samples of the session in the path; miles deletes it afterwards."""
    body = await read_object(request) if request.body_exists else {}
    asked = read_samples_request(body)
    session, rowset = await rows.export(session_in_path(request), {"max_len": asked.max_len})

    def encoded(session: Session, rowset: RowSet) -> bytes:
        return encode(session, rowset, vocabulary, asked.metadata)

    written = await rows.written(RowFormat(MEDIA_TYPE, encoded), session, rowset)
    return web.Response(body=written, content_type=MEDIA_TYPE)


def encode(
    session: Session, rowset: RowSet, vocabulary: Vocabulary, metadata: Mapping[str, Any]
) -> bytes:
    """Rows as miles' samples, each with `metadata` added to the session's own."""
    arrays: dict[str, NDArray[Any]] = {}
    samples = []
    for index, row in enumerate(rowset.rows):
        found = _arrays(row)
        arrays |= {f"{name}.{index}": values for name, values in found.items()}
        sample = _sample(session, row, vocabulary, metadata)
        samples.append({**sample, "nulls": [name for name in _ARRAYS if name not in found]})
    meta: dict[str, Any] = {
        "samples": samples,
        "session_metadata": {
            "session_id": session.name,
            "accumulated_token_ids": rowset.rows[-1].tokens if rowset.rows else [],
            **({"agent": metadata} if metadata else {}),
        },
        "empty_reason": _empty_reason(rowset),
    }
    raw = orjson.dumps(meta, option=orjson.OPT_SERIALIZE_NUMPY)
    return safetensors.numpy.save({**arrays, META_KEY: np.frombuffer(raw, np.uint8)})


def _arrays(row: Row) -> dict[str, NDArray[Any]]:
    start = len(row.tokens) - row.response_length
    found: dict[str, NDArray[Any]] = {
        "tokens": row.tokens.astype(np.int64),
        "loss_mask": row.loss_mask[start:].astype(np.uint8),
    }
    if row.logprobs is not None:
        found["rollout_log_probs"] = row.logprobs[start:].astype(np.float64)
    if row.routed_experts is not None:
        found["rollout_routed_experts"] = np.ascontiguousarray(row.routed_experts, np.int32)
    if row.indexer_topk is not None:
        found["rollout_indexer_topk"] = np.ascontiguousarray(row.indexer_topk, np.int32)
    if row.distribution is not None:
        masks = row.distribution.last(start)
        found |= {
            "mask_offsets": masks.offsets,
            "mask_ids": np.ascontiguousarray(masks.ids),
            "sampling_logprobs": np.ascontiguousarray(masks.logprobs),
        }
    if row.top_logprobs is not None:
        tops = row.top_logprobs.between(start, len(row.tokens))
        found |= {
            "top_offsets": tops.offsets,
            "top_ids": np.ascontiguousarray(tops.ids),
            "top_logprobs": np.ascontiguousarray(tops.logprobs),
        }
    return found


def _sample(
    session: Session, row: Row, vocabulary: Vocabulary, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    response = row.tokens[len(row.tokens) - row.response_length :]
    raw = b"".join(vocabulary.token_bytes(token) for token in response.tolist())
    return {
        "response": raw.decode("utf-8", "replace"),
        "response_length": row.response_length,
        "status": row.status,
        "weight_versions": [str(version) for version in row.turn_versions],
        "prefix_cache_info": {"cached_tokens": 0, "total_prompt_tokens": 0},
        "reward": session.reward,
        "metadata": {
            **session.metadata,
            **metadata,
            OUR_METADATA_KEY: {
                "row_id": row.row_id,
                "turn_ids": row.turn_ids,
                "truncated_sampling": bool(row.uncaptured),
            },
        },
    }


def _empty_reason(rowset: RowSet) -> Empty | None:
    if rowset.rows:
        return None
    return "all_truncated" if "over_length" in rowset.stats.left_out else "no_records"
