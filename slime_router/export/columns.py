"""The columns of an export, the same whatever the rows hold, and rows as `GET /rows` gives them
(JSON) in that shape. Pure.

Token ids are int32, log-probabilities float64; what one column cannot hold (a reward that is an
object, metadata) is JSON in a string. A weight version that is a number stands as text. Null means
that it was not captured, or not given.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import orjson
from numpy.typing import DTypeLike, NDArray

Record: TypeAlias = dict[str, Any]  # by column; arrays are NumPy's


class Column(NamedTuple):
    """`kind` is a type of Hugging Face's `datasets`, or a list of them."""

    name: str
    kind: str | list[Column] | list[str] | list[list[str]]
    words: str


TEACHER: list[Column] = [
    Column("worker_group", "string", "who scored it"),
    Column("version", "string", "of its weights"),
    Column("logprobs", ["float32"], "one per token; NaN where there is none"),
    Column("top_ids", [["int32"]], "the most likely ids of each token; empty where not asked for"),
    Column("top_logprobs", [["float32"]], "and theirs"),
]
COLUMNS: tuple[Column, ...] = (
    Column("session_id", "string", "as its owner calls it"),
    Column("owner", "string", "the name of the key that it belongs to"),
    Column("version", "int32", "of the session: 1, and one more each time that its rows changed"),
    Column("row_id", "string", "the id of its last turn"),
    Column("group_id", "string", ""),
    Column("rollout_id", "string", ""),
    Column("turn_ids", ["string"], ""),
    Column("turns", "string", "JSON: what is said of each turn, as in `GET /sessions/{id}/rows`"),
    Column("status", "string", "`completed`, `truncated` or `aborted`"),
    Column("finish_reason", "string", "`stop`, `length` or `abort`"),
    Column("response_length", "int32", "so many of the last tokens are the response"),
    Column("reward", "float64", "null where there is none, or it is an object"),
    Column("reward_json", "string", "JSON"),
    Column("metadata", "string", "JSON"),
    Column("tokens", ["int32"], ""),
    Column("loss_mask", ["uint8"], "one per token: 1 where it is trained"),
    Column("logprobs", ["float64"], "one per token; null where they were not captured"),
    Column("weight_versions", ["string"], "one per token; null where nobody sampled it"),
    Column("turn_versions", ["string"], "one per turn that has any"),
    Column("truncated_sampling", "bool", "whether nobody knows what some were sampled from"),
    Column("mask_offsets", ["int64"], "token `i` was sampled from `mask_ids[o[i]:o[i + 1]]`"),
    Column("mask_ids", ["int32"], ""),
    Column("sampling_logprobs", ["float32"], "among those ids, one per token"),
    Column("top_offsets", ["int64"], "the likeliest at token `i`: `top_ids[o[i]:o[i + 1]]`"),
    Column("top_ids", ["int32"], ""),
    Column("top_logprobs", ["float32"], "of each of them"),
    Column("routed_experts", "binary", "in C order"),
    Column("routed_experts_dtype", "string", ""),
    Column("routed_experts_shape", ["int64"], "positions, layers * top_k"),
    Column("indexer_topk", "binary", "in C order"),
    Column("indexer_topk_dtype", "string", ""),
    Column("indexer_topk_shape", ["int64"], ""),
    Column("teachers", TEACHER, "a list: what each worker group that was asked thinks of the row"),
)  # fmt: skip

_AS_IT_IS = (
    "row_id", "session_id", "group_id", "rollout_id", "turn_ids", "status", "finish_reason",
    "response_length", "truncated_sampling",
)  # fmt: skip


def record_of(row: Mapping[str, Any], version: int) -> Record:
    """A row, of a session in that version.

    Raises:
        KeyError, TypeError, ValueError: it is invalid.
    """
    reward = row["reward"]
    is_number = isinstance(reward, int | float) and not isinstance(reward, bool)
    known: Record = {
        **{name: row[name] for name in _AS_IT_IS},
        "owner": row.get("owner", ""),
        "version": version,
        "turns": _json(row["turns"]),
        "reward": float(reward) if is_number else None,
        "reward_json": None if reward is None else _json(reward),
        "metadata": _json(row["metadata"]),
        "tokens": np.array(row["tokens"], np.int32),
        "loss_mask": np.array(row["loss_mask"], np.uint8),
        "logprobs": _array(row["logprobs"], np.float64),
        "weight_versions": _names(row["weight_versions"]),
        "turn_versions": _names(row["turn_versions"]),
        "mask_offsets": _array(row.get("mask_offsets"), np.int64),
        "mask_ids": _array(row.get("mask_ids"), np.int32),
        "sampling_logprobs": _array(row.get("sampling_logprobs"), np.float32),
        "top_offsets": _array(row.get("top_offsets"), np.int64),
        "top_ids": _array(row.get("top_ids"), np.int32),
        "top_logprobs": _array(row.get("top_logprobs"), np.float32),
        **_positions("routed_experts", row),
        **_positions("indexer_topk", row),
        "teachers": _teachers(row),
    }
    return {column.name: known[column.name] for column in COLUMNS}


def size_of(record: Record) -> int:
    """The bytes of its arrays, about: what bounds a file."""
    arrays = sum(each.nbytes for each in record.values() if isinstance(each, np.ndarray))
    return arrays + len(record["tokens"]) * 4 + len(record["routed_experts"] or b"")


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _array(values: Sequence[float | None] | None, dtype: DTypeLike) -> NDArray[Any] | None:
    """JSON has null where an array has NaN."""
    if values is None:
        return None
    return np.array([np.nan if value is None else value for value in values], dtype)


def _names(versions: Sequence[object]) -> list[str | None]:
    return [None if version is None else str(version) for version in versions]


def _positions(name: str, row: Mapping[str, Any]) -> Record:
    given = row.get(name)
    if given is None:
        return {name: None, f"{name}_dtype": None, f"{name}_shape": None}
    shape = [int(each) for each in given["shape"]]
    data = b64decode(given["data"], validate=True)
    if len(data) != np.dtype(given["dtype"]).itemsize * int(np.prod(shape)):
        raise ValueError(f"{name} does not fit its shape")
    return {name: data, f"{name}_dtype": given["dtype"], f"{name}_shape": shape}


def _teachers(row: Mapping[str, Any]) -> list[Record]:
    tops, top_logprobs = (row.get(name, {}) for name in ("teacher_top_ids", "teacher_top_logprobs"))
    return [
        {
            "worker_group": group,
            "version": _names([row["teacher_versions"][group]])[0],
            "logprobs": _array(logprobs, np.float32),
            "top_ids": tops.get(group, []),
            "top_logprobs": [
                [np.nan if value is None else value for value in each]
                for each in top_logprobs.get(group, [])
            ],
        }
        for group, logprobs in row.get("teacher_logprobs", {}).items()
    ]
