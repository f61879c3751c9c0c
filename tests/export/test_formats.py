"""The files of an export: the same rows in each format, in a schema that never changes."""

from __future__ import annotations

import copy
import io
from base64 import b64decode, b64encode
from typing import Any

import numpy as np
import orjson
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
import safetensors.numpy
import yaml

from slime_router.errors import SetupError
from slime_router.export.card import card_of
from slime_router.export.columns import COLUMNS, record_of, size_of
from slime_router.export.formats import FORMATS, check_installed
from tests.export.shelf import row

EXPERTS = np.arange(6, dtype=np.uint8).reshape(3, 2)


def full() -> dict[str, Any]:
    """A row that has everything."""
    data = {"dtype": "uint8", "shape": [3, 2], "data": b64encode(EXPERTS.tobytes()).decode()}
    return {
        **row("s", "t1", length=4, reward=0.5),
        "owner": "alice",
        "metadata": {"task": "Ü"},
        "turns": [{"turn_id": "t1", "start": 3, "end": 4}],
        "logprobs": [0.0, 0.0, 0.0, -0.1],
        "weight_versions": [None, None, 7, "v"],
        "turn_versions": [7],
        "mask_offsets": [0, 0, 0, 0, 2],
        "mask_ids": [5, 6],
        "sampling_logprobs": [None, None, None, -0.25],
        "top_offsets": [0, 0, 0, 0, 1],
        "top_ids": [9],
        "top_logprobs": [-0.5],
        "routed_experts": data,
        "teacher_logprobs": {"big": [None, -1.5, -0.5, -0.125]},
        "teacher_versions": {"big": 3},
        "teacher_top_ids": {"big": [[-1, -1], [1, 2], [3, 4], [5, 6]]},
        "teacher_top_logprobs": {"big": [[None, None], [-1, -2], [-1, -2], [-1, -2]]},
    }


RECORDS = [record_of(full(), 2), record_of(row("other", "t2", reward={"score": 1}), 1)]


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as JSON has it."""
    told: dict[str, Any] = orjson.loads(FORMATS["jsonl"].encode([record]))
    return told


def test_parquet_says_what_json_lines_say():
    table = pyarrow.parquet.read_table(io.BytesIO(FORMATS["parquet"].encode(RECORDS)))
    assert table.schema.names == [column.name for column in COLUMNS]
    lines = map(orjson.loads, FORMATS["jsonl"].encode(RECORDS).splitlines())
    for found, told in zip(table.to_pylist(), lines, strict=True):
        assert found.pop("routed_experts") == (
            None if told["routed_experts"] is None else b64decode(told["routed_experts"])
        )
        del told["routed_experts"]
        assert orjson.loads(orjson.dumps(found)) == told  # NaN is null in JSON


def test_a_record_keeps_all_that_a_row_has():
    told = plain(RECORDS[0])
    assert (told["session_id"], told["owner"], told["version"]) == ("s", "alice", 2)
    assert (told["reward"], told["reward_json"]) == (0.5, "0.5")
    assert told["metadata"] == '{"task":"Ü"}'
    assert told["weight_versions"] == [None, None, "7", "v"]
    assert (told["tokens"], told["loss_mask"]) == ([0, 1, 2, 3], [0, 0, 0, 1])
    assert told["logprobs"] == [0.0, 0.0, 0.0, -0.1]
    assert b64decode(told["routed_experts"]) == EXPERTS.tobytes()
    assert (told["routed_experts_dtype"], told["routed_experts_shape"]) == ("uint8", [3, 2])
    assert told["teachers"] == [
        {
            "worker_group": "big",
            "version": "3",
            "logprobs": [None, -1.5, -0.5, -0.125],
            "top_ids": [[-1, -1], [1, 2], [3, 4], [5, 6]],
            "top_logprobs": [[None, None], [-1, -2], [-1, -2], [-1, -2]],
        }
    ]
    other = plain(RECORDS[1])
    assert (other["reward"], other["reward_json"], other["owner"]) == (None, '{"score":1}', "")
    assert (other["logprobs"], other["mask_ids"], other["teachers"]) == (None, None, [])
    assert size_of(RECORDS[0]) > size_of(RECORDS[1]) > 0


def test_safetensors_are_flat_with_offsets():
    data = FORMATS["safetensors"].encode(RECORDS)
    meta = orjson.loads(
        orjson.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["meta"]
    )
    tensors = safetensors.numpy.load(data)
    assert tensors["offsets"].tolist() == [0, 4, 7]
    assert tensors["tokens"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert tensors["loss_mask"].tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert [meta["versions"][i] for i in tensors["weight_version"] if i >= 0] == ["7", "v", "v"]
    assert tensors["logprobs"][:4].tolist() == [0.0, 0.0, 0.0, -0.1]
    assert np.isnan(tensors["logprobs"][4:]).all()
    assert tensors["mask_ends"].tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert tensors["mask_ids"].tolist() == [5, 6]
    assert tensors["top_ends"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (tensors["top_ids"].tolist(), tensors["top_logprobs"].tolist()) == ([9], [-0.5])
    assert tensors["routed_experts"].tobytes() == EXPERTS.tobytes()
    assert tensors["routed_experts_offsets"].tolist() == [0, 6, 6]
    assert tensors["teacher_top_ids.big_offsets"].tolist() == [0, 8, 8]
    assert tensors["teacher_logprobs.big"][1:4].tolist() == [-1.5, -0.5, -0.125]
    [first, second] = meta["rows"]
    assert (first["row_id"], first["teacher_versions"]) == ("t1", {"big": "3"})
    assert (second["session_id"], second["version"]) == ("other", 1)
    only = safetensors.numpy.load(FORMATS["safetensors"].encode(RECORDS[1:]))
    assert only.keys() == {"offsets", "tokens", "loss_mask", "weight_version"}


def test_numbers_come_through_bit_for_bit():
    given = full()
    logprobs = np.random.default_rng(1).standard_normal(4)
    given["logprobs"] = logprobs.tolist()
    small = logprobs.astype(np.float32)
    given["sampling_logprobs"] = orjson.loads(
        orjson.dumps(small, option=orjson.OPT_SERIALIZE_NUMPY)
    )
    record = record_of(given, 1)
    assert (record["logprobs"] == logprobs).all()
    assert (record["sampling_logprobs"] == small).all()


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": None},
        {"tokens": [2**31]},
        {"routed_experts": {"dtype": "uint8", "shape": [3, 3], "data": "AAAA"}},
    ],
)
def test_a_row_that_is_none_is_refused(change):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        record_of({**full(), **change}, 1)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_dataset_of_several_files_has_the_one_schema_of_the_card(tmp_path, form):
    for number, records in enumerate((RECORDS[1:], RECORDS)):
        (tmp_path / f"rows-{number}.{form}").write_bytes(FORMATS[form].encode(records))
    head = yaml.safe_load(card_of(form, f".{form}").split(b"---\n")[1])
    assert head["configs"] == [{"config_name": "default", "data_files": f"rows-*.{form}"}]
    features = {each.pop("name"): each for each in copy.deepcopy(head["dataset_info"]["features"])}
    assert list(features) == [column.name for column in COLUMNS]
    if form == "jsonl":
        assert features["routed_experts"] == {"dtype": "string"}
        return
    found = pyarrow.dataset.dataset(tmp_path, format="parquet")
    assert found.count_rows() == 3
    assert features["routed_experts"] == {"dtype": "binary"}
    assert features["tokens"] == {"sequence": "int32"}
    assert found.schema.field("tokens").type == pyarrow.list_(pyarrow.int32())
    names = [each["name"] for each in features["teachers"]["list"]]
    assert names == [field.name for field in found.schema.field("teachers").type.value_type]


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    check_installed("jsonl")
    with pytest.raises(SetupError, match=r"pip install 'slime-router\[parquet\]'"):
        check_installed("parquet")
