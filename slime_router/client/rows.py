"""Rows: what a trainer trains on. Reads the router's arrays (npz) and lines (ndjson). Pure."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.client.columns import (
    checked_masks,
    checked_tops,
    cut,
    cut_masks,
    cut_positions,
    cut_tops,
    frozen,
    masks_from,
    tops_from,
)
from slime_router.client.errors import BadReply, Refused, refusal_of
from slime_router.client.row_turns import RowTurn
from slime_router.client.teachers import Teacher, cut_teachers, teachers_from, teachers_of

WeightVersion: TypeAlias = str | int
Logprobs: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
Array: TypeAlias = NDArray[Any]
Status: TypeAlias = Literal["completed", "truncated", "aborted"]

OUR_METADATA_KEY = "slime_router"  # the router lets no agent set it
STATUS_OF_CODE = {"session_not_found": 404}  # a line of a stream has no HTTP status of its own
PLAIN_FIELDS = (
    "row_id",
    "session_id",
    "group_id",
    "rollout_id",
    "response_length",
    "status",
    "finish_reason",
    "reward",
    "metadata",
)
UNREADABLE = (ValueError, LookupError, TypeError, EOFError, OSError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One training sample.

    `tokens`, `loss_mask`, `logprobs` and `weight_versions` have one length. Arrays are read-only.
    `loss_mask` is 1 where the policy sampled the token; every sampled token is 1 in one row only.
    `logprobs` is meaningless where the mask is 0, and None if the router kept none.
    The last `response_length` tokens are the response; those before it are prompt.
    `routed_experts` and `indexer_topk`, where asked for, have shape `[positions, layers * top_k]`.
    Token `i` was sampled from `mask_ids[mask_offsets[i] : mask_offsets[i + 1]]`, with the
    log-probability `sampling_logprobs[i]` among those; where there are none, from the whole
    vocabulary, unless `truncated_sampling` says that it is not known of some from what.
    The likeliest tokens there, where kept, are `top_ids[top_offsets[i] : top_offsets[i + 1]]`.
    `teachers` has, by worker group, what other models think of the row.
    """

    row_id: str
    session_id: str
    group_id: str | None
    rollout_id: str
    turn_ids: tuple[str, ...]
    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    logprobs: Logprobs | None
    weight_versions: tuple[WeightVersion | None, ...]
    turn_versions: tuple[WeightVersion, ...]
    response_length: int
    status: Status
    finish_reason: str
    reward: float | Mapping[str, Any] | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    routed_experts: NDArray[Any] | None = None
    indexer_topk: NDArray[Any] | None = None
    truncated_sampling: bool = False
    mask_offsets: NDArray[np.int64] | None = None
    mask_ids: NDArray[np.int32] | None = None
    sampling_logprobs: NDArray[np.float32] | None = None
    top_offsets: NDArray[np.int64] | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprobs: NDArray[np.float32] | None = None
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    turns: tuple[RowTurn, ...] = ()

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss is taken over."""
        return int(self.loss_mask.sum())

    def to_sample(self) -> dict[str, Any]:
        """The fields of slime's `Sample`, for `Sample.from_dict`.

        Mask and logprobs cover the response. The indices and the label are the caller's to add.
        """
        start = len(self.tokens) - self.response_length
        ours = {name: getattr(self, name) for name in ("group_id", "rollout_id", "row_id")}
        sample = {
            "tokens": self.tokens.tolist(),
            "response_length": self.response_length,
            "reward": self.reward,
            "loss_mask": self.loss_mask[start:].tolist(),
            "rollout_log_probs": None if self.logprobs is None else self.logprobs[start:].tolist(),
            "weight_versions": [str(version) for version in self.turn_versions],
            "status": self.status,
            "session_id": self.session_id,
            "truncated_sampling": self.truncated_sampling,
            "metadata": {
                **self.metadata,
                OUR_METADATA_KEY: {
                    **ours,
                    "turn_ids": list(self.turn_ids),
                    "turns": [turn.to_json() for turn in self.turns],
                },
            },
        }
        if self.routed_experts is not None:
            sample["rollout_routed_experts"] = self.routed_experts
        if self.indexer_topk is not None:
            sample["rollout_indexer_topk"] = self.indexer_topk
        masks = masks_from(start, self.mask_offsets, self.mask_ids, self.sampling_logprobs)
        tops = tops_from(start, self.top_offsets, self.top_ids, self.top_logprobs)
        return sample | masks | tops | teachers_from(start, self.teachers)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Sampled turns and tokens that are not in any row, for one reason."""

    turns: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStats:
    """Where the sampled tokens went: `sampled_tokens == trained_tokens + sum of left_out`."""

    turns: int
    sampled_tokens: int
    rows: int
    trained_tokens: int
    left_out: Mapping[str, LeftOut]
    others: Mapping[str, Any]  # whatever else the router counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Export:
    """All rows of one session."""

    session_id: str
    rows: tuple[Row, ...]
    stats: RowStats


def read_npz(session_id: str, data: bytes) -> Export:
    """The export in an npz archive.

    Raises:
        BadReply: it is not an npz archive, or its parts do not fit together.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            columns = {name: frozen(archive[name]) for name in archive.files}
        meta = json.loads(columns["meta"].tobytes())
        return export_of(session_id, _npz_rows(columns, meta), meta["stats"])
    except UNREADABLE as error:
        raise BadReply(f"The rows of session '{session_id}' are unreadable: {error!r}") from error


class ExportReader:
    """Reads exports off a stream of lines, as its bytes come in.

    Sessions that the router could not export are reported at the end, so that no other is lost.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that has no end yet
        self._rows: list[Row] = []  # of the session that has no stats yet
        self._refusals: list[Refused] = []

    def feed(self, data: bytes) -> Iterator[Export]:
        """The exports that are whole now.

        Raises:
            BadReply: a line is not what a router writes.
        """
        head, *rest = data.split(b"\n")
        self._parts.append(head)
        for text in rest:
            line, self._parts = b"".join(self._parts), [text]
            yield from self._read(line)

    def finish(self) -> None:
        """The stream is over.

        Raises:
            BadReply: it broke off.
            Refused: the first session that could not be exported; notes name the others.
        """
        if self._rows or any(self._parts):
            raise BadReply("The stream of rows broke off.")
        if self._refusals:
            first, *others = self._refusals
            for other in others:
                first.add_note(f"and: {other}")
            raise first

    def _read(self, line: bytes) -> Iterator[Export]:
        try:
            values = json.loads(line)
            if "error" in values:
                status = STATUS_OF_CODE.get(values["error"]["code"], 500)
                self._refusals.append(refusal_of(values["error"], status))
            elif "stats" in values:
                rows, self._rows = tuple(self._rows), []
                yield export_of(values["session_id"], rows, values["stats"])
            else:
                self._rows.append(_json_row(values))
        except UNREADABLE as error:
            raise BadReply(f"A line of the stream of rows is unreadable: {error!r}") from error


def export_of(session_id: str, rows: Sequence[Row], counted: Mapping[str, Any]) -> Export:
    """Rows with what the router counted of them.

    Raises:
        ValueError: others were counted.
    """
    names = {field.name for field in fields(RowStats)} - {"left_out", "others"}
    stats = RowStats(
        **{name: counted[name] for name in names},
        left_out={reason: LeftOut(**lost) for reason, lost in counted["left_out"].items()},
        others={name: counted[name] for name in counted.keys() - names - {"left_out"}},
    )
    came = sum(row.trained_tokens for row in rows)
    if (came, len(rows)) != (stats.trained_tokens, stats.rows):
        raise ValueError(f"{len(rows)} rows with {came} trained tokens came, but {stats} left")
    return Export(session_id=session_id, rows=tuple(rows), stats=stats)


def _npz_rows(columns: Mapping[str, Array], meta: Mapping[str, Any]) -> list[Row]:
    """The rows of columns that hold them one after another."""
    offsets = columns["offsets"]
    count = len(meta["rows"])
    names = [*meta["versions"], None]  # -1, which means none, is the last
    logprobs: Sequence[Logprobs | None] = [None] * count
    if "logprobs" in columns:
        logprobs = cut(columns["logprobs"], offsets)
    more = [
        {**masks, **tops, **scores, "routed_experts": experts, "indexer_topk": indexer}
        for masks, tops, scores, experts, indexer in zip(
            cut_masks(columns, offsets),
            cut_tops(columns, offsets),
            cut_teachers(columns, offsets, meta["rows"]),
            cut_positions(columns, "routed_experts", count),
            cut_positions(columns, "indexer_topk", count),
            strict=True,
        )
    ]
    parts = zip(
        meta["rows"],
        cut(columns["tokens"], offsets),
        cut(columns["loss_mask"], offsets),
        logprobs,
        cut(columns["weight_version"], offsets),
        more,
        strict=True,
    )
    return [
        row_of(values, tokens, loss_mask, known, tuple(names[i] for i in versions.tolist()), others)
        for values, tokens, loss_mask, known, versions, others in parts
    ]


def _json_row(values: Mapping[str, Any]) -> Row:
    logprobs = values["logprobs"]
    return row_of(
        values,
        frozen(np.array(values["tokens"], np.int32)),
        frozen(np.array(values["loss_mask"], np.uint8)),
        None if logprobs is None else frozen(np.array(logprobs, np.float64)),  # null: NaN
        tuple(values["weight_versions"]),
        {**positions_of(values), **masks_of(values), **tops_of(values), **teachers_of(values)},
    )


def positions_of(values: Mapping[str, Any]) -> dict[str, Array]:
    """Experts and the like, as JSON has them; empty where there are none."""
    names = ("routed_experts", "indexer_topk")
    return {name: _decoded(values[name]) for name in names if values.get(name) is not None}


def masks_of(values: Mapping[str, Any]) -> dict[str, Array]:
    """Masks, likewise."""
    if values.get("mask_offsets") is None:
        return {}
    return checked_masks(
        np.array(values["mask_offsets"], np.int64),
        np.array(values["mask_ids"], np.int32),
        np.array(values["sampling_logprobs"], np.float32),
    )


def tops_of(values: Mapping[str, Any]) -> dict[str, Array]:
    """The likeliest tokens, likewise."""
    if values.get("top_offsets") is None:
        return {}
    return checked_tops(
        np.array(values["top_offsets"], np.int64),
        np.array(values["top_ids"], np.int32),
        np.array(values["top_logprobs"], np.float32),
    )


def row_of(
    values: Mapping[str, Any],
    tokens: Array,
    loss_mask: Array,
    logprobs: Logprobs | None,
    versions: tuple[WeightVersion | None, ...],
    more: Mapping[str, Any],
) -> Row:
    """A row of its parts; `values` are those that are not arrays.

    Raises:
        ValueError: they do not fit together.
    """
    lengths = {len(each) for each in (tokens, loss_mask, logprobs, versions) if each is not None}
    if len(lengths) > 1 or not 0 <= values["response_length"] <= len(tokens):
        raise ValueError(f"row {values['row_id']} has parts of different lengths")
    return Row(
        **{name: values[name] for name in PLAIN_FIELDS},
        turn_ids=tuple(values["turn_ids"]),
        tokens=tokens,
        loss_mask=loss_mask,
        logprobs=None if logprobs is None or np.isnan(logprobs).all() else logprobs,
        weight_versions=versions,
        turn_versions=tuple(values.get("turn_versions") or _runs(versions)),
        truncated_sampling=bool(values.get("truncated_sampling")),
        turns=tuple(map(RowTurn.of, values.get("turns", ()))),
        **more,
    )


def _runs(versions: Sequence[WeightVersion | None]) -> list[WeightVersion]:
    """The versions in their order, one for each run of tokens."""
    known = (version for version in versions if version is not None)
    return [version for version, _ in groupby(known)]


def _decoded(experts: Mapping[str, Any]) -> Array:
    """An array as the router writes it into JSON."""
    values: Array = np.frombuffer(b64decode(experts["data"]), np.dtype(experts["dtype"]))
    return values.reshape(experts["shape"])
