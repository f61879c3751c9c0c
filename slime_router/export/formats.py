"""The files of an export: Parquet, JSON lines and safetensors, all with the same columns. Pure."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
import safetensors.numpy
from numpy.typing import DTypeLike

from slime_router.errors import SetupError
from slime_router.export.columns import COLUMNS, Column, Record
from slime_router.json_text import one_line
from slime_router.rows.flat import Array, joined, offsets_of, version_column


class Format(NamedTuple):
    """One way to write rows: the suffix of its files, and their bytes."""

    suffix: str
    encode: Callable[[Sequence[Record]], bytes]


def check_installed(form: str) -> None:
    """Raises SetupError where the format needs what is not installed."""
    if form == "parquet":
        _arrow()


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as exc:
        raise SetupError("Parquet needs pyarrow: pip install 'slime-router[parquet]'") from exc


def as_parquet(records: Sequence[Record]) -> bytes:
    """One row for each, of the schema in `slime_router.export.columns`."""
    arrow, parquet = _arrow()
    schema = arrow.schema([(column.name, _arrow_type(arrow, column.kind)) for column in COLUMNS])
    arrays = [
        arrow.array([record[column.name] for record in records], schema.field(column.name).type)
        for column in COLUMNS
    ]
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(arrays, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _arrow_type(arrow: Any, kind: Any) -> Any:
    if isinstance(kind, str):
        return getattr(arrow, {"bool": "bool_"}.get(kind, kind))()
    first = kind[0]
    if isinstance(first, Column):
        fields = [(each.name, _arrow_type(arrow, each.kind)) for each in kind]
        return arrow.list_(arrow.struct(fields))
    return arrow.list_(_arrow_type(arrow, first))


def as_lines(records: Sequence[Record]) -> bytes:
    """A line of JSON for each; bytes are base64, and null stands for NaN."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(
        one_line(orjson.dumps(each, default=_base64, option=option)) for each in records
    )


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def as_safetensors(records: Sequence[Record]) -> bytes:
    """Flat tensors: row `i` is `[offsets[i], offsets[i + 1])` of each that has one entry per token.

    tokens, loss_mask, weight_version   int32, uint8, int32: an index into `versions`, or -1
    logprobs, sampling_logprobs         float64, float32; NaN in rows without; absent where all are
    teacher_logprobs.GROUP              likewise, float32
    mask_ids, mask_ends                 int32, and int64: one per token, the end of its ids
    top_ids, top_logprobs, top_ends     likewise
    routed_experts, indexer_topk        bytes, with `NAME_offsets` by row
    teacher_top_ids.GROUP, ...          int32 and float32, flat, with `NAME_offsets` by row

    All else is JSON in the metadata: `meta` is `{"rows", "versions"}`.
    """
    offsets = offsets_of(len(each["tokens"]) for each in records)
    ids, versions = version_column(chain.from_iterable(each["weight_versions"] for each in records))
    tensors: dict[str, Array] = {
        "offsets": offsets,
        "tokens": joined((each["tokens"] for each in records), np.int32),
        "loss_mask": joined((each["loss_mask"] for each in records), np.uint8),
        "weight_version": ids,
        **_per_token("logprobs", records, [each["logprobs"] for each in records], np.float64),
        **_masks(records),
        **_of_tokens("top", ("top_ids", "top_logprobs"), records),
        **_teachers(records),
        **_bytes("routed_experts", records),
        **_bytes("indexer_topk", records),
    }
    apart = {"weight_versions", "teachers", "routed_experts", "indexer_topk"}
    rows = [
        {
            **{
                name: value
                for name, value in each.items()
                if name not in apart and not isinstance(value, np.ndarray)
            },
            "teacher_versions": {t["worker_group"]: t["version"] for t in each["teachers"]},
        }
        for each in records
    ]
    meta = orjson.dumps({"rows": rows, "versions": versions}).decode()
    return safetensors.numpy.save(tensors, metadata={"meta": meta})


def _per_token(
    name: str, records: Sequence[Record], arrays: Sequence[Array | None], dtype: DTypeLike
) -> dict[str, Array]:
    if all(each is None for each in arrays):
        return {}
    parts = (
        np.full(len(record["tokens"]), np.nan) if array is None else array
        for record, array in zip(records, arrays, strict=True)
    )
    return {name: joined(parts, dtype)}


def _masks(records: Sequence[Record]) -> dict[str, Array]:
    logprobs = [each["sampling_logprobs"] for each in records]
    return {
        **_of_tokens("mask", ("mask_ids",), records),
        **_per_token("sampling_logprobs", records, logprobs, np.float32),
    }


def _of_tokens(kind: str, names: Sequence[str], records: Sequence[Record]) -> dict[str, Array]:
    """What any number of belongs to each token, and where that of each ends."""
    known = [each for each in records if each[f"{kind}_offsets"] is not None]
    if not known:
        return {}
    lengths = (
        np.zeros(len(each["tokens"]), np.int64)
        if each[f"{kind}_offsets"] is None
        else np.diff(each[f"{kind}_offsets"])
        for each in records
    )
    return {
        f"{kind}_ends": np.cumsum(joined(lengths, np.int64), dtype=np.int64),
        **{name: joined((e[name] for e in known), known[0][name].dtype) for name in names},
    }


def _teachers(records: Sequence[Record]) -> dict[str, Array]:
    found = [{each["worker_group"]: each for each in record["teachers"]} for record in records]
    tensors: dict[str, Array] = {}
    for group in dict.fromkeys(chain.from_iterable(found)):
        logprobs = [each[group]["logprobs"] if group in each else None for each in found]
        tensors |= _per_token(f"teacher_logprobs.{group}", records, logprobs, np.float32)
        for name, dtype in (("top_ids", np.int32), ("top_logprobs", np.float32)):
            parts = [
                np.array(each[group][name] if group in each else [], dtype).ravel()
                for each in found
            ]
            if any(len(part) for part in parts):
                tensors |= _flat(f"teacher_{name}.{group}", parts, dtype)
    return tensors


def _bytes(name: str, records: Sequence[Record]) -> dict[str, Array]:
    if all(each[name] is None for each in records):
        return {}
    parts = [np.frombuffer(each[name] or b"", np.uint8) for each in records]
    return _flat(name, parts, np.uint8)


def _flat(name: str, parts: Sequence[Array], dtype: DTypeLike) -> dict[str, Array]:
    return {name: joined(parts, dtype), f"{name}_offsets": offsets_of(map(len, parts))}


FORMATS: Mapping[str, Format] = {
    "parquet": Format(".parquet", as_parquet),
    "jsonl": Format(".jsonl", as_lines),
    "safetensors": Format(".safetensors", as_safetensors),
}
