"""Rows as Parquet: one row of the file for each, with a schema that never depends on the data.

    row_id, session_id, owner, group_id, rollout_id      string; null where there is none
    turn_ids                                             list of string
    turns                                                string, JSON: what is said of each turn
    status, finish_reason                                string
    response_length                                      int32
    reward                                               float64; null for an object, or none
    reward_json, metadata                                string, JSON
    tokens                                               list of int32
    loss_mask                                            list of uint8
    logprobs                                             list of float64; null where not captured
    weight_versions                                      list of string, one per token
    turn_versions                                        list of string
    routed_experts                                       binary, in C order; null where not captured
    routed_experts_dtype, routed_experts_shape           string, list of int32
    indexer_topk, indexer_topk_dtype, indexer_topk_shape the same
    truncated_sampling                                   bool
    mask_offsets, mask_ids                               list of int64, of int32; null: no masks
    sampling_logprobs                                    list of float32; null: no masks
    top_offsets, top_ids, top_logprobs                   list of int64, int32, float32; null: none
    teacher_logprobs                                     list of worker_group, values (float32)
    teacher_top_ids, teacher_top_logprobs                list of worker_group, values (lists)

The statistics of the rows are JSON under `stats` in the file's own metadata. A weight version that
is a number stands as text.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from slime_router.api.sessions.row_turns import row_turn
from slime_router.api.sessions.teachers import teachers
from slime_router.errors import NotSupported
from slime_router.rows.rows import Row
from slime_router.trajectory.session import Session
from slime_router.types import WeightVersion

Column = tuple[str, str, list[Any]]
Rows = Sequence[tuple[Session, Row]]


def parquet_of(rows: Rows, stats: bytes) -> bytes:
    """These rows, each with its session, as one file; `stats` is JSON.

    Raises:
        NotSupported: pyarrow is not installed.
    """
    buffer = io.BytesIO()
    write_parquet(buffer, [rows], stats)
    return buffer.getvalue()


def write_parquet(file: BinaryIO, portions: Iterable[Rows], stats: bytes) -> None:
    """Rows into one file, a row group for each portion; `stats`, of all of them, is JSON.

    Raises:
        NotSupported: pyarrow is not installed.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as exc:
        raise NotSupported(
            "Parquet needs pyarrow on the router: pip install 'slime-router[parquet]'.",
            param="format",
        ) from exc

    def by_group(kind: Any) -> Any:  # `datasets` reads no maps
        return arrow.list_(arrow.struct([("worker_group", arrow.string()), ("values", kind)]))

    kinds = {
        "string": arrow.string(),
        "float64": arrow.float64(),
        "int32": arrow.int32(),
        "binary": arrow.binary(),
        "strings": arrow.list_(arrow.string()),
        "int32s": arrow.list_(arrow.int32()),
        "uint8s": arrow.list_(arrow.uint8()),
        "bool": arrow.bool_(),
        "int64s": arrow.list_(arrow.int64()),
        "float32s": arrow.list_(arrow.float32()),
        "float32s by group": by_group(arrow.list_(arrow.float32())),
        "int32s of each by group": by_group(arrow.list_(arrow.list_(arrow.int32()))),
        "float32s of each by group": by_group(arrow.list_(arrow.list_(arrow.float32()))),
        "float64s": arrow.list_(arrow.float64()),
    }
    schema = arrow.schema([(name, kinds[kind]) for name, kind, _ in _columns(())], {"stats": stats})
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in portions:
            arrays = [arrow.array(values, kinds[kind]) for _, kind, values in _columns(rows)]
            writer.write_table(arrow.table(arrays, schema=schema))


def _columns(rows: Rows) -> list[Column]:
    sessions, made = [session for session, _ in rows], [row for _, row in rows]
    masks, tops = [row.distribution for row in made], [row.top_logprobs for row in made]
    return [
        ("row_id", "string", [row.row_id for row in made]),
        ("session_id", "string", [session.name for session in sessions]),
        ("owner", "string", [session.owner or None for session in sessions]),
        ("group_id", "string", [session.group_id for session in sessions]),
        ("rollout_id", "string", [session.rollout_id for session in sessions]),
        ("turn_ids", "strings", [row.turn_ids for row in made]),
        ("turns", "string", [_json([row_turn(each) for each in row.turns]) for row in made]),
        ("status", "string", [row.status for row in made]),
        ("finish_reason", "string", [row.finish_reason for row in made]),
        ("response_length", "int32", [row.response_length for row in made]),
        ("reward", "float64", [_number(session.reward) for session in sessions]),
        ("reward_json", "string", [_json(session.reward) for session in sessions]),
        ("metadata", "string", [_json(dict(session.metadata)) for session in sessions]),
        ("tokens", "int32s", [row.tokens for row in made]),
        ("loss_mask", "uint8s", [row.loss_mask.astype(np.uint8) for row in made]),
        ("logprobs", "float64s", [row.logprobs for row in made]),
        ("weight_versions", "strings", [_names(row.weight_versions) for row in made]),
        ("turn_versions", "strings", [_names(row.turn_versions) for row in made]),
        *_position_columns("routed_experts", [row.routed_experts for row in made]),
        *_position_columns("indexer_topk", [row.indexer_topk for row in made]),
        ("truncated_sampling", "bool", [bool(row.uncaptured) for row in made]),
        ("mask_offsets", "int64s", [None if m is None else m.offsets for m in masks]),
        ("mask_ids", "int32s", [None if m is None else m.ids for m in masks]),
        ("top_offsets", "int64s", [None if t is None else t.offsets for t in tops]),
        ("top_ids", "int32s", [None if t is None else t.ids for t in tops]),
        ("top_logprobs", "float32s", [None if t is None else t.logprobs for t in tops]),
        *_teacher_columns(rows),
        ("sampling_logprobs", "float32s", [None if m is None else m.logprobs for m in masks]),
    ]


def _teacher_columns(rows: Rows) -> list[Column]:
    """Each a list by the name of a worker group; null where none has scored the row."""
    found = [teachers(row, 0) for _, row in rows]
    kinds = {
        "teacher_logprobs": "float32s by group",
        "teacher_top_ids": "int32s of each by group",
        "teacher_top_logprobs": "float32s of each by group",
    }
    return [
        (name, kind, [_pairs(each[name]) if name in each else None for each in found])
        for name, kind in kinds.items()
    ]


def _pairs(by_group: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    return [{"worker_group": group, "values": list(each)} for group, each in by_group.items()]


def _position_columns(name: str, arrays: Sequence[NDArray[Any] | None]) -> list[Column]:
    return [
        (name, "binary", [None if each is None else each.tobytes() for each in arrays]),
        (f"{name}_dtype", "string", [None if each is None else each.dtype.name for each in arrays]),
        (f"{name}_shape", "int32s", [None if each is None else each.shape for each in arrays]),
    ]


def _number(reward: object) -> float | None:
    return float(reward) if isinstance(reward, int | float) else None


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _names(versions: Sequence[WeightVersion | None]) -> list[str | None]:
    return [None if version is None else str(version) for version in versions]
