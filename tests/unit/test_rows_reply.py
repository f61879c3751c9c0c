"""The formats of rows: each tells the same, and none makes up what is not known."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet
import pytest
import safetensors
import safetensors.numpy

from slime_router.api.sessions import row_formats as rows_reply
from slime_router.errors import Conflict
from slime_router.rows.lineage import Lineage
from slime_router.rows.rows import LeftOut, Row, RowSet, RowStats, RowTurn
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, Speculation, token_ids


def session() -> Session:
    """Closed and rewarded; a turn still runs, and two of seven were dropped."""
    metadata = {"task": "t", "rollout_id": "the agent's own"}
    made = Session(
        SessionSpec(id="s/1", rollout_id="r", group_id="g", metadata=metadata), is_opened=True
    )
    turns = [
        Turn(
            id=f"t{n}",
            base=None,
            base_len=0,
            prompt_ids=token_ids([2]),
            output_ids=token_ids([1] * length),
            logprobs=None,
            weight_versions=(),
            finish=Finish("stop"),
        )
        for n, length in enumerate((5, 6, 1, 1, 1, 1, 1))
    ]
    for each in turns:
        made.gain(each, 0)
    for each in turns[:2]:
        made.lose(each)
    made.entered()
    made.rewarded({"score": 0.5})
    made.freeze(0)
    return made


SESSION = session()
TURN = Turn(
    id="a",
    base=None,
    base_len=0,
    prompt_ids=token_ids([1, 2]),
    output_ids=token_ids([3, 4, 5]),
    logprobs=None,
    weight_versions=(),
    finish=Finish("stop"),
    speculation=Speculation(3, 9, 4),
    reward=0.25,
    tags=("good",),
)


def row(row_id: str, tokens: list[int], mask: list[int], **fields: Any) -> Row:
    count = len(tokens)
    given: dict[str, Any] = {
        "row_id": row_id,
        "turn_ids": (f"{row_id}-first", row_id),
        "tokens": token_ids(tokens),
        "loss_mask": np.array(mask, np.int8),
        "logprobs": np.where(mask, -0.1, 0.0),  # 0.1 is not a float32
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
    row(
        "a",
        [1, 2, 3, 151_000, 5],
        [0, 0, 1, 0, 1],
        weight_versions=(None, None, "1", None, 1),
        turns=(RowTurn(TURN, 2, 5, Lineage("subagent", "p")),),
    ),
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
    "indexer_topk_missing": {},
    "truncated_sampling": {},
    "recorded_turns": 7,
    "dropped_turns": 2,
    "dropped_tokens": 11,
    "running": 1,
}
TEACHERS = {"teacher_logprobs", "teacher_top_ids", "teacher_top_logprobs"}
UNKNOWN = {
    "owner",
    "mask_offsets",
    "mask_ids",
    "sampling_logprobs",
    "top_offsets",
    "top_ids",
    "top_logprobs",
    *TEACHERS,
} | {
    f"{name}{of}" for name in ("routed_experts", "indexer_topk") for of in ("", "_dtype", "_shape")
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


def from_parquet(raw: bytes) -> Told:
    table = pyarrow.parquet.read_table(io.BytesIO(raw))
    rows = table.to_pylist()
    for row in rows:
        row["reward"] = orjson.loads(row.pop("reward_json"))
        row["turns"] = orjson.loads(row["turns"])
        row["metadata"] = orjson.loads(row["metadata"])
        for name in UNKNOWN:
            assert row.pop(name) is None
    return rows, orjson.loads(table.schema.metadata[b"stats"])


READERS: dict[str, Callable[[bytes], Told]] = {
    "json": from_json,
    "jsonl": from_lines,
    "npz": from_npz,
    "safetensors": from_safetensors,
    "parquet": from_parquet,
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
        "turns": [
            {
                "turn_id": "a",
                "start": 2,
                "end": 5,
                "kind": "subagent",
                "parent_turn": "p",
                "reward": 0.25,
                "tags": ["good"],
                "speculation": {"verifications": 3, "proposed": 9, "accepted": 4},
                "started": None,
                "duration_s": None,
                "first_token_s": None,
                "adapter": None,
            }
        ],
        "tokens": [1, 2, 3, 151_000, 5],
        "loss_mask": [0, 0, 1, 0, 1],
        "logprobs": [0.0, 0.0, -0.1, 0.0, -0.1],
        "weight_versions": [None, None, "1", None, 1],
        "response_length": 3,
        "status": "completed",
        "reward": {"score": 0.5},
        "finish_reason": "stop",
        "truncated_sampling": False,
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


def test_parquet_tells_what_json_tells_with_versions_as_text():
    rows, stats = told("parquet")
    expected = told("json")
    for row in expected[0]:
        for name in ("weight_versions", "turn_versions"):
            row[name] = [None if version is None else str(version) for version in row[name]]
    assert (rows, stats) == expected


def test_parquet_has_one_schema_whatever_the_rows_hold():
    some = rowset(row("a", [1, 2], [0, 1], logprobs=None))
    tables = [
        pyarrow.parquet.read_table(io.BytesIO(rows_reply.as_parquet(SESSION, rows)))
        for rows in (ROWS, rowset(), some)
    ]
    assert len({str(table.schema.remove_metadata()) for table in tables}) == 1


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
        "truncated_sampling": False,
        "metadata": {
            "task": "t",
            "rollout_id": "the agent's own",
            "slime_router": {
                "group_id": "g",
                "rollout_id": "r",
                "row_id": "b",
                "turn_ids": ["b-first", "b"],
                "turns": [],
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


@pytest.mark.parametrize("name", ["routed_experts", "indexer_topk"])
def test_what_is_kept_for_each_position_comes_back_in_every_format(name):
    """A row has one position less than tokens; a row that has none takes no room in the columns."""
    experts: list[Any] = [
        np.array([[0, 255], [3, 1]], np.uint8),
        np.array([[300, 1]], np.int16)[:, ::-1],
    ]
    rows = rowset(
        row("a", [1, 2, 3], [0, 1, 1], **{name: experts[0]}),
        row("b", [4, 5], [0, 1]),
        row("c", [4, 5], [0, 1], **{name: experts[1]}),
    )
    json_rows, _ = told("json", rows)
    samples = slime(rows)["samples"]
    assert name not in json_rows[1]
    assert f"rollout_{name}" not in samples[1]
    for index, whole in ((0, experts[0]), (2, experts[1])):
        written = json_rows[index][name]
        assert written == samples[index][f"rollout_{name}"]
        flat = np.frombuffer(b64decode(written["data"]), written["dtype"])
        assert flat.reshape(written["shape"]).tolist() == whole.tolist()
    columns = safetensors.numpy.load(rows_reply.as_safetensors(SESSION, rows))
    assert columns[name].tolist() == [[0, 255], [3, 1], [1, 300]]
    assert columns[f"{name}_offsets"].tolist() == [0, 2, 2, 3]
    table = pyarrow.parquet.read_table(io.BytesIO(rows_reply.as_parquet(SESSION, rows)))
    for index, written in enumerate(table.to_pylist()):
        data, dtype = written[name], written[f"{name}_dtype"]
        if index == 1:
            assert (data, dtype) == (None, None)
        else:
            flat = np.frombuffer(data, dtype).reshape(written[f"{name}_shape"])
            assert flat.tolist() == experts[index // 2].tolist()
    archive = np.load(io.BytesIO(rows_reply.as_npz(SESSION, rows)))
    for column in (name, f"{name}_offsets"):
        assert np.array_equal(archive[column], columns[column])


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
