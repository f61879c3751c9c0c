"""The formats of rows: each tells the same, and none makes up what is not known."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors
import safetensors.numpy

from slime_router.api.sessions import row_formats as rows_reply
from slime_router.errors import Conflict
from slime_router.rows.rows import LeftOut, Row, RowSet, RowStats
from slime_router.trajectory.session import Session
from slime_router.types import token_ids

SESSION = Session(
    id="s/1",
    rollout_id="r",
    group_id="g",
    state="closed",
    metadata={"task": "t", "rollout_id": "the agent's own"},
    reward={"score": 0.5},
    recorded_turns=7,
    dropped_turns=2,
    dropped_tokens=11,
    running=1,
)


def row(row_id: str, tokens: list[int], mask: list[int], **fields: Any) -> Row:
    count = len(tokens)
    given: dict[str, Any] = {
        "row_id": row_id,
        "turn_ids": (f"{row_id}-first", row_id),
        "tokens": token_ids(tokens),
        "loss_mask": np.array(mask, np.int8),
        "logprobs": np.where(mask, -0.1, 0.0),  # 0.1 is no float32
        "weight_versions": tuple("v1" if trained else None for trained in mask),
        "response_length": count - mask.index(1),
        "status": "completed",
        "finish_reason": "stop",
        "turn_versions": ("v1",),
    }
    return Row(**{**given, **fields})


def rowset(*rows: Row) -> RowSet:
    trained = sum(int(each.loss_mask.sum()) for each in rows)
    stats = RowStats(
        turns=4,
        sampled_tokens=trained + 3,
        rows=len(rows),
        trained_tokens=trained,
        left_out={"retry": LeftOut(turns=1, tokens=3)},
        routed_experts_missing={},
    )
    return RowSet(rows, stats)


ROWS = rowset(
    row("a", [1, 2, 3, 151_000, 5], [0, 0, 1, 0, 1], weight_versions=(None, None, "1", None, 1)),
    row(
        "b",
        [1, 2, 9],
        [0, 1, 1],
        logprobs=np.array([0.0, -1.5, -9999.0]),
        weight_versions=(None, "v2", "1"),
        status="truncated",
        finish_reason="length",
        turn_versions=(1, "v2"),
    ),
    row("c", [7], [1], weight_versions=(None,), turn_versions=()),
)
STATS = {
    "turns": 4,
    "sampled_tokens": 8,
    "rows": 3,
    "trained_tokens": 5,
    "left_out": {"retry": {"turns": 1, "tokens": 3}},
    "routed_experts_missing": {},
    "recorded_turns": 7,
    "dropped_turns": 2,
    "dropped_tokens": 11,
    "running": 1,
}
PER_TOKEN = ("tokens", "loss_mask", "logprobs", "weight_versions")

Told = tuple[list[dict[str, Any]], dict[str, Any]]  # the rows of a reply, and its stats


def from_json(raw: bytes) -> Told:
    body = orjson.loads(raw)
    return body["rows"], body["stats"]


def from_lines(raw: bytes) -> Told:
    *rows, last = [orjson.loads(line) for line in raw.splitlines()]
    assert raw.endswith(b"\n")
    assert last.keys() == {"session_id", "stats"}
    assert last["session_id"] == SESSION.id
    return rows, last["stats"]


def from_npz(raw: bytes) -> Told:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        columns = dict(archive)
    return from_columns(columns, orjson.loads(columns.pop("meta").tobytes()))


def from_safetensors(raw: bytes) -> Told:
    header = orjson.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    meta = orjson.loads(header["__metadata__"]["meta"])
    return from_columns(safetensors.numpy.load(raw), meta)


def from_columns(columns: dict[str, Any], meta: dict[str, Any]) -> Told:
    """Rows as JSON tells them, out of columns of the types that are promised."""
    assert columns["tokens"].dtype == np.int32
    assert columns["loss_mask"].dtype == np.uint8
    assert columns["weight_version"].dtype == np.int32
    assert columns["offsets"].dtype == np.int64
    versions = [*meta["versions"], None]  # -1 is the last
    columns["weight_versions"] = [versions[index] for index in columns["weight_version"]]
    offsets = columns["offsets"].tolist()
    rows = []
    for fields, start, end in zip(meta["rows"], offsets, offsets[1:], strict=False):
        told: dict[str, Any] = {
            name: list(columns[name][start:end]) for name in PER_TOKEN if name in columns
        }
        if np.isnan(told.setdefault("logprobs", [np.nan])).all():
            told["logprobs"] = None
        rows.append({**fields, **told})
    assert len(rows) == len(offsets) - 1 == len(meta["rows"])
    return rows, meta["stats"]


READERS: dict[str, Callable[[bytes], Told]] = {
    "json": from_json,
    "jsonl": from_lines,
    "npz": from_npz,
    "safetensors": from_safetensors,
}


def told(name: str, rows: RowSet = ROWS) -> Told:
    return READERS[name](rows_reply.FORMATS[name].encode(SESSION, rows))


def slime(rows: RowSet = ROWS) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(rows_reply.as_slime(SESSION, rows))
    return body


def test_json_tells_everything():
    rows, stats = told("json")
    assert stats == STATS
    assert rows[0] == {
        "row_id": "a",
        "session_id": "s/1",
        "group_id": "g",
        "rollout_id": "r",
        "turn_ids": ["a-first", "a"],
        "turn_versions": ["v1"],
        "tokens": [1, 2, 3, 151_000, 5],
        "loss_mask": [0, 0, 1, 0, 1],
        "logprobs": [0.0, 0.0, -0.1, 0.0, -0.1],
        "weight_versions": [None, None, "1", None, 1],
        "response_length": 3,
        "status": "completed",
        "reward": {"score": 0.5},
        "finish_reason": "stop",
        "metadata": {"task": "t", "rollout_id": "the agent's own"},
    }
    assert [(r["row_id"], r["status"]) for r in rows[1:]] == [
        ("b", "truncated"),
        ("c", "completed"),
    ]


@pytest.mark.parametrize("name", ["jsonl", "npz", "safetensors"])
def test_every_format_tells_what_json_tells(name):
    """To the last bit of each log-probability, and 1 is another version than "1"."""
    assert told(name) == told("json")
    for row, same in zip(told(name)[0], told("json")[0], strict=True):
        kinds = [[type(v) for v in each["weight_versions"]] for each in (row, same)]
        assert kinds[0] == kinds[1]


def test_slime_tells_what_json_tells_of_the_response():
    for row, sample in zip(told("json")[0], slime()["samples"], strict=True):
        length = row["response_length"]
        assert sample["tokens"] == row["tokens"]
        assert sample["loss_mask"] == row["loss_mask"][-length:]
        assert sample["rollout_log_probs"] == row["logprobs"][-length:]
        for name in ("response_length", "status", "reward", "session_id"):
            assert sample[name] == row[name]


def test_a_slime_sample_has_the_fields_of_slime():
    """Its loader takes `status` by value, and a field that it does not know as an attribute."""
    body = slime()
    assert body["stats"] == STATS
    assert body["samples"][1] == {
        "group_index": None,
        "index": None,
        "tokens": [1, 2, 9],
        "response_length": 2,
        "reward": {"score": 0.5},
        "loss_mask": [1, 1],
        "rollout_log_probs": [-1.5, -9999.0],
        "weight_versions": ["1", "v2"],
        "status": "truncated",
        "session_id": "s/1",
        "metadata": {
            "task": "t",
            "rollout_id": "the agent's own",
            "slime_router": {
                "group_id": "g",
                "rollout_id": "r",
                "row_id": "b",
                "turn_ids": ["b-first", "b"],
            },
        },
    }


def test_rows_without_logprobs_have_none_anywhere():
    rows = rowset(row("a", [1, 2], [0, 1], logprobs=None))
    for name in READERS:
        assert told(name, rows)[0][0]["logprobs"] is None
    assert slime(rows)["samples"][0]["rollout_log_probs"] is None
    archive = np.load(io.BytesIO(rows_reply.as_npz(SESSION, rows)))
    assert "logprobs" not in archive.files


def test_a_row_without_logprobs_among_others_has_no_zeros_for_them():
    rows = rowset(row("a", [1, 2], [0, 1], logprobs=None), row("b", [1, 2], [0, 1]))
    for name in READERS:
        first, second = told(name, rows)[0]
        assert (first["logprobs"], second["logprobs"]) == (None, [0.0, -0.1])


@pytest.mark.parametrize(("logprob", "dtype"), [(-0.5, np.float32), (-0.1, np.float64)])
def test_a_column_of_logprobs_is_as_wide_as_it_must_be(logprob, dtype):
    rows = rowset(row("a", [1, 2], [0, 1], logprobs=np.array([0.0, logprob])))
    columns = safetensors.numpy.load(rows_reply.as_safetensors(SESSION, rows))
    assert columns["logprobs"].dtype == dtype
    assert columns["logprobs"].tolist() == [0.0, logprob]


def test_a_session_without_rows_is_empty_in_every_format():
    for name in READERS:
        rows, stats = told(name, rowset())
        assert (rows, stats["rows"]) == ([], 0)
    assert slime(rowset())["samples"] == []


def test_routed_experts_come_back_in_every_format():
    """A row has one position less than tokens; a row that has none takes no room in the columns."""
    experts: list[Any] = [
        np.array([[0, 255], [3, 1]], np.uint8),
        np.array([[300, 1]], np.int16)[:, ::-1],
    ]
    rows = rowset(
        row("a", [1, 2, 3], [0, 1, 1], routed_experts=experts[0]),
        row("b", [4, 5], [0, 1]),
        row("c", [4, 5], [0, 1], routed_experts=experts[1]),
    )
    json_rows, _ = told("json", rows)
    samples = slime(rows)["samples"]
    assert "routed_experts" not in json_rows[1]
    assert "rollout_routed_experts" not in samples[1]
    for index, whole in ((0, experts[0]), (2, experts[1])):
        written = json_rows[index]["routed_experts"]
        assert written == samples[index]["rollout_routed_experts"]
        flat = np.frombuffer(b64decode(written["data"]), written["dtype"])
        assert flat.reshape(written["shape"]).tolist() == whole.tolist()
    columns = safetensors.numpy.load(rows_reply.as_safetensors(SESSION, rows))
    assert columns["routed_experts"].tolist() == [[0, 255], [3, 1], [1, 300]]
    assert columns["routed_experts_offsets"].tolist() == [0, 2, 2, 3]
    archive = np.load(io.BytesIO(rows_reply.as_npz(SESSION, rows)))
    for name in ("routed_experts", "routed_experts_offsets"):
        assert np.array_equal(archive[name], columns[name])


def test_experts_of_two_models_are_no_column():
    rows = rowset(
        row("a", [1, 2], [0, 1], routed_experts=np.zeros((1, 2), np.uint8)),
        row("b", [1, 2], [0, 1], routed_experts=np.zeros((1, 4), np.uint8)),
    )
    for encode in (rows_reply.as_npz, rows_reply.as_safetensors):
        with pytest.raises(Conflict, match="format=json") as caught:
            encode(SESSION, rows)
        assert caught.value.param == "format"
    assert len(told("json", rows)[0]) == 2


def test_lines_are_written_one_by_one():
    """A long export must not stand whole in memory."""
    lines = rows_reply.lines(SESSION, ROWS)
    assert orjson.loads(next(lines))["row_id"] == "a"
    assert len(list(lines)) == 3


def test_nothing_is_written_that_needs_pickle():
    with np.load(io.BytesIO(rows_reply.as_npz(SESSION, ROWS)), allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
