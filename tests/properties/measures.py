"""What each format of rows says about a measure with several values a token."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import orjson
import pyarrow.parquet
import safetensors.numpy

from slime_router.api.sessions import row_formats, samples
from slime_router.client.rows import ExportReader, read_npz
from slime_router.rows.rows import RowSet
from slime_router.trajectory.session import Session, SessionSpec

SESSION = Session(SessionSpec(id="s"), is_opened=True)

Told = TypeVar("Told")


class Letters:
    """A vocabulary in which each token is a letter."""

    vocab_size = 10

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id])


@dataclass(frozen=True)
class Measure(Generic[Told]):
    """Fields of a row, and how they are read; None where a row has none of it."""

    names: tuple[str, ...]  # the offsets first
    of_fields: Callable[[dict[str, Any]], Told | None]  # of one row
    of_columns: Callable[[dict[str, Any], int], list[Told | None]]  # of so many rows, one array

    def every_format(self, rowset: RowSet) -> dict[str, list[Told | None]]:
        """Each row as each format tells it, of all its tokens."""
        raw = {name: form.encode(SESSION, rowset) for name, form in row_formats.FORMATS.items()}
        count, of_fields = len(rowset.rows), self.of_fields
        with np.load(io.BytesIO(raw["npz"]), allow_pickle=False) as archive:
            arrays = dict(archive)
        table = pyarrow.parquet.read_table(io.BytesIO(raw["parquet"]))
        [export] = ExportReader().feed(raw["jsonl"])
        return {
            "json": [of_fields(row) for row in orjson.loads(raw["json"])["rows"]],
            "jsonl": [of_fields(orjson.loads(line)) for line in raw["jsonl"].splitlines()[:-1]],
            "npz": self.of_columns(arrays, count),
            "safetensors": self.of_columns(safetensors.numpy.load(raw["safetensors"]), count),
            "parquet": [of_fields(row) for row in table.to_pylist()],
            "the client's npz": [self._of_row(row) for row in read_npz("s", raw["npz"]).rows],
            "the client's lines": [self._of_row(row) for row in export.rows],
        }

    def of_responses(self, rowset: RowSet) -> dict[str, list[Told | None]]:
        """Each row as the formats tell it that cover only the response."""
        slime = orjson.loads(row_formats.as_slime(SESSION, rowset))["samples"]
        vocabulary: Any = Letters()
        arrays = safetensors.numpy.load(samples.encode(SESSION, rowset, vocabulary, {}))
        miles = [
            {name: arrays.get(f"{name}.{index}") for name in self.names}
            for index in range(len(rowset.rows))
        ]
        client = read_npz("s", row_formats.as_npz(SESSION, rowset)).rows
        return {
            "slime": [self.of_fields(sample) for sample in slime],
            "miles": [self.of_fields(sample) for sample in miles],
            "the client's samples": [self.of_fields(row.to_sample()) for row in client],
        }

    def _of_row(self, row: Any) -> Told | None:
        return self.of_fields({name: getattr(row, name) for name in self.names})
