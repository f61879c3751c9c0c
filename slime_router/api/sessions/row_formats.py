"""How rows are written: JSON, JSON lines, slime's samples, and arrays (npz, safetensors).

Pure: a session and its rows become bytes. All formats hold the same tokens, loss masks and
log-probabilities. A row whose log-probabilities were not requested has null in JSON and NaN in
arrays, never zeros.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import orjson
import safetensors.numpy

from slime_router.api.sessions.parquet import parquet_of
from slime_router.api.sessions.row_turns import row_turn
from slime_router.api.sessions.teachers import teacher_columns, teacher_versions, teachers
from slime_router.errors import Conflict
from slime_router.json_text import one_line
from slime_router.rows.flat import Array, joined, offsets_of, version_column
from slime_router.rows.rows import Row, RowSet, RowStats
from slime_router.rows.tree import Positions, TokenTree, grow
from slime_router.trajectory.measures.distribution import no_masks
from slime_router.trajectory.session import Session
from slime_router.trajectory.turn import Logprobs, narrowed

OUR_METADATA_KEY = "slime_router"  # in the metadata of slime's samples; agents cannot set it


@dataclass(frozen=True, slots=True)
class RowFormat:
    """One way to write the rows of a session."""

    media_type: str
    encode: Callable[[Session, RowSet], bytes]
    is_long: bool = False  # even of one row: a library has to be loaded for the first


def as_json(session: Session, rowset: RowSet) -> bytes:
    """`{"rows", "stats"}`."""
    rows = [_json_row(session, row) for row in rowset.rows]
    return _dumps({"rows": rows, "stats": _stats(session, rowset.stats)})


def as_lines(session: Session, rowset: RowSet) -> bytes:
    """One row per line, and a line with the stats."""
    return b"".join(lines(session, rowset))


def lines(session: Session, rowset: RowSet) -> Iterator[bytes]:
    """The lines one by one, each written on demand."""
    for row in rowset.rows:
        yield one_line(_dumps(_json_row(session, row))) + b"\n"
    stats = {"session_id": session.name, "stats": _stats(session, rowset.stats)}
    yield one_line(_dumps(stats)) + b"\n"


def as_slime(session: Session, rowset: RowSet) -> bytes:
    """`{"samples", "stats"}`; each sample has the fields of slime's `Sample`."""
    samples = [_slime_sample(session, row) for row in rowset.rows]
    return _dumps({"samples": samples, "stats": _stats(session, rowset.stats)})


def as_npz(session: Session, rowset: RowSet) -> bytes:
    """The columns as NumPy's archive, read without pickle; `meta` is JSON in bytes."""
    columns, meta = _columns(session, rowset)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns, meta=np.frombuffer(meta, np.uint8))
    return buffer.getvalue()


def as_safetensors(session: Session, rowset: RowSet) -> bytes:
    """The columns as tensors; `meta` is JSON in the file's own metadata."""
    columns, meta = _columns(session, rowset)
    return safetensors.numpy.save(columns, metadata={"meta": meta.decode()})


def as_parquet(session: Session, rowset: RowSet) -> bytes:
    """A Parquet file. Raises NotSupported where pyarrow is missing."""
    rows = [(session, row) for row in rowset.rows]
    return parquet_of(rows, _dumps(_stats(session, rowset.stats)))


def as_tree(session: Session, rowset: RowSet) -> bytes:
    """One packed tree of all rows; see `slime_router.rows.tree`."""
    tree = grow(rowset.rows)
    turns = {each.turn.id: each for row in rowset.rows for each in row.turns}
    places = ("start", "end")
    return _dumps(
        {
            **_whose(session),
            **_earned(session),
            "tokens": tree.tokens,
            "positions": tree.positions,
            "parents": tree.parents,
            "loss_mask": tree.loss_mask,
            "logprobs": tree.logprobs,
            "weight_versions": tree.weight_versions,
            **_masks(tree, 0),
            **_tops(tree, 0),
            **_tree_positions("routed_experts", tree.routed_experts),
            **_tree_positions("indexer_topk", tree.indexer_topk),
            "nodes": tree.nodes,
            "turns": [
                {name: value for name, value in row_turn(each).items() if name not in places}
                for each in turns.values()
            ],
            "rows": [
                {
                    "row_id": row.row_id,
                    "node": node,
                    **_of_row(row),
                    "has_logprobs": row.logprobs is not None,
                    "has_masks": row.distribution is not None,
                    "has_top_logprobs": row.top_logprobs is not None,
                    "has_routed_experts": row.routed_experts is not None,
                    "has_indexer_topk": row.indexer_topk is not None,
                }
                for row, node in zip(rowset.rows, tree.leaves, strict=True)
            ],
            "stats": _stats(session, rowset.stats),
        }
    )


FORMATS: Mapping[str, RowFormat] = {
    "json": RowFormat("application/json", as_json),
    "jsonl": RowFormat("application/x-ndjson", as_lines),
    "slime": RowFormat("application/json", as_slime),
    "npz": RowFormat("application/x-npz", as_npz),
    "safetensors": RowFormat("application/x-safetensors", as_safetensors),
    "parquet": RowFormat("application/vnd.apache.parquet", as_parquet, is_long=True),
    "tree": RowFormat("application/json", as_tree),
}


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _fields(session: Session, row: Row) -> dict[str, Any]:
    """What a row holds besides its arrays."""
    return {
        "row_id": row.row_id,
        **_whose(session),
        **_of_row(row),
        "turns": [row_turn(each) for each in row.turns],
        **_earned(session),
    }


def _whose(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.name,
        **_owner(session),
        "group_id": session.group_id,
        "rollout_id": session.rollout_id,
    }


def _earned(session: Session) -> dict[str, Any]:
    return {"reward": session.reward, "metadata": session.metadata}


def _of_row(row: Row) -> dict[str, Any]:
    return {
        "turn_ids": row.turn_ids,
        "turn_versions": row.turn_versions,
        "response_length": row.response_length,
        "status": row.status,
        "finish_reason": row.finish_reason,
        "truncated_sampling": bool(row.uncaptured),
    }


def _json_row(session: Session, row: Row) -> dict[str, Any]:
    return {
        **_fields(session, row),
        "tokens": row.tokens,
        "loss_mask": row.loss_mask,
        "logprobs": row.logprobs,
        "weight_versions": row.weight_versions,
        **_masks(row, 0),
        **_tops(row, 0),
        **teachers(row, 0),
        **_json_array("routed_experts", row.routed_experts),
        **_json_array("indexer_topk", row.indexer_topk),
    }


def _tree_positions(name: str, kept: Positions | None) -> dict[str, Any]:
    if kept is None:
        return {}
    return {**_json_array(name, kept.values), f"{name}_places": kept.places}


def _masks(row: Row | TokenTree, start: int) -> dict[str, Any]:
    """What the tokens from `start` on were sampled from, where it is known."""
    if row.distribution is None:
        return {}
    masks = row.distribution.last(start)
    return {
        "mask_offsets": masks.offsets,
        "mask_ids": masks.ids,
        "sampling_logprobs": masks.logprobs,
    }


def _tops(row: Row | TokenTree, start: int) -> dict[str, Any]:
    """The likeliest tokens at those from `start` on, where they are kept."""
    if row.top_logprobs is None:
        return {}
    tops = row.top_logprobs.between(start, len(row.tokens))
    return {"top_offsets": tops.offsets, "top_ids": tops.ids, "top_logprobs": tops.logprobs}


def _owner(session: Session) -> dict[str, str]:
    """Two owners can use the same name for their sessions."""
    return {"owner": session.owner} if session.owner else {}


def _slime_sample(session: Session, row: Row) -> dict[str, Any]:
    start = len(row.tokens) - row.response_length
    ours = {
        **_owner(session),
        "group_id": session.group_id,
        "rollout_id": session.rollout_id,
        "row_id": row.row_id,
        "turn_ids": row.turn_ids,
        "turns": [row_turn(each) for each in row.turns],
    }
    return {
        "group_index": None,
        "index": None,
        "tokens": row.tokens,
        "response_length": row.response_length,
        "reward": session.reward,
        "loss_mask": row.loss_mask[start:],
        "rollout_log_probs": None if row.logprobs is None else row.logprobs[start:],
        "weight_versions": [str(version) for version in row.turn_versions],
        "status": row.status,
        "session_id": session.name,
        "truncated_sampling": bool(row.uncaptured),
        "metadata": {**session.metadata, OUR_METADATA_KEY: ours},
        **_masks(row, start),
        **_tops(row, start),
        **teachers(row, start),
        **_json_array("rollout_routed_experts", row.routed_experts),
        **_json_array("rollout_indexer_topk", row.indexer_topk),
    }


def _json_array(name: str, array: Array | None) -> dict[str, Any]:
    """Base64 of the bytes in C order: as numbers in JSON they would be many times as long."""
    if array is None:
        return {}
    data = b64encode(np.ascontiguousarray(array).data).decode("ascii")
    return {name: {"dtype": array.dtype.name, "shape": array.shape, "data": data}}


def _stats(session: Session, stats: RowStats) -> dict[str, Any]:
    return {
        **{field.name: getattr(stats, field.name) for field in fields(stats)},
        "recorded_turns": session.recorded_turns,
        "dropped_turns": session.dropped_turns,
        "dropped_tokens": session.dropped_tokens,
        "running": session.running,
    }


def _columns(session: Session, rowset: RowSet) -> tuple[dict[str, Array], bytes]:
    """All rows concatenated, row `i` in `[offsets[i], offsets[i + 1])`; and the meta."""
    rows = rowset.rows
    version_ids, versions = version_column(chain.from_iterable(row.weight_versions for row in rows))
    columns: dict[str, Array] = {
        "tokens": joined((row.tokens for row in rows), np.int32),
        "loss_mask": joined((row.loss_mask for row in rows), np.uint8),
        "weight_version": version_ids,
        "offsets": offsets_of(len(row.tokens) for row in rows),
        **_logprob_column(rows),
        **_mask_columns(rows),
        **_top_columns(rows),
        **teacher_columns(rows),
        **_position_columns("routed_experts", [row.routed_experts for row in rows]),
        **_position_columns("indexer_topk", [row.indexer_topk for row in rows]),
    }
    meta = {
        "rows": [{**_fields(session, row), **teacher_versions(row)} for row in rows],
        "versions": versions,
        "stats": _stats(session, rowset.stats),
    }
    return columns, _dumps(meta)


def _logprob_column(rows: Sequence[Row]) -> dict[str, Logprobs]:
    """The logprobs of all rows; no column if no row has any, NaN for a row without them."""
    if all(row.logprobs is None for row in rows):
        return {}
    parts = [np.full(len(r.tokens), np.nan) if r.logprobs is None else r.logprobs for r in rows]
    return {"logprobs": narrowed(np.concatenate(parts))}


def _mask_columns(rows: Sequence[Row]) -> dict[str, Array]:
    """The masks of all rows; no columns if no row has any. A row without them has NaN logprobs."""
    if all(row.distribution is None for row in rows):
        return {}
    parts = [row.distribution or no_masks(len(row.tokens)) for row in rows]
    return {
        "mask_offsets": offsets_of(chain.from_iterable(part.lengths.tolist() for part in parts)),
        "mask_ids": joined((part.ids for part in parts), np.int32),
        "sampling_logprobs": joined((part.logprobs for part in parts), np.float32),
    }


def _top_columns(rows: Sequence[Row]) -> dict[str, Array]:
    """The likeliest tokens of all rows; no columns if no row has any."""
    known = [row.top_logprobs for row in rows if row.top_logprobs is not None]
    if not known:
        return {}
    lengths = (
        np.zeros(len(row.tokens), np.int32)
        if row.top_logprobs is None
        else row.top_logprobs.lengths
        for row in rows
    )
    return {
        "top_offsets": offsets_of(chain.from_iterable(each.tolist() for each in lengths)),
        "top_ids": joined((tops.ids for tops in known), np.int32),
        "top_logprobs": joined((tops.logprobs for tops in known), np.float32),
    }


def _position_columns(name: str, arrays: Sequence[Array | None]) -> dict[str, Array]:
    """With offsets of their own: the last token of a row was never a model's input.

    Raises:
        Conflict: the rows come from models of different shapes.
    """
    known = [array for array in arrays if array is not None]
    if not known:
        return {}
    if len({array.shape[1:] for array in known}) > 1:
        words = name.replace("_", " ")
        raise Conflict(
            f"The rows have {words} of different shapes, which no one array holds:"
            " ask for format=json.",
            param="format",
        )
    lengths = (0 if array is None else len(array) for array in arrays)
    return {name: np.concatenate(known), f"{name}_offsets": offsets_of(lengths)}
