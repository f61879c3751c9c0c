"""Export: what the rows of a long session cost, as JSON and as arrays.

The unit is orjson's time for the arrays of the same rows, which no JSON export can go below.
Rows are put together from the turns each time; a router does it in a thread where they are long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import orjson

from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from slime_router.api.sessions.row_formats import FORMATS
from slime_router.rows.rows import RowSet, build_rows
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn, logprob_array
from slime_router.types import Finish, VersionSpan, token_ids

AIM = 9.0  # 50 ms where the unit takes 5.5 ms
FORMS = ("json", "npz")
UNIT = "unit"
BUDGET_TOKENS = 10**9
OUTPUT_SHARE = 0.4  # of the new tokens of a turn
VOCAB_SIZE = 150_000


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 15
    turns: int = 200
    new_tokens: int = 500  # of each turn, prompt and output together


FULL = Size()


def run(size: Size = FULL) -> list[Measurement]:
    """Building and writing the one row of a session, in units of writing its arrays."""
    store, session = _recorded(size)
    sides = {name: _timed(_export(store, session, name)) for name in FORMS}
    rowset = build_rows(store, tuple(session.turns))
    rounds = interleave({**sides, UNIT: _timed(lambda: _arrays(rowset))}, size.rounds)
    return [_measurement(name, rounds, size) for name in FORMS]


def _measurement(name: str, rounds: Rounds, size: Size) -> Measurement:
    return Measurement(
        f"export of a session as {name} over its bare arrays as JSON",
        rounds.ratio(name, to=UNIT),
        "x",
        AIM,
        f"{rounds.cost(name) * 1e3:.1f} ms over {rounds.cost(UNIT) * 1e3:.1f} ms; "
        f"{size.turns * size.new_tokens:,} tokens in {size.turns} turns; {size.rounds} rounds",
    )


def _timed(work: Callable[[], bytes]) -> Callable[[], float]:
    def one_round() -> float:
        before_s = time.process_time()
        written = work()
        used_s = time.process_time() - before_s
        assert written, "nothing was written"
        return used_s

    return one_round


def _export(store: TrajectoryStore, session: Session, name: str) -> Callable[[], bytes]:
    return lambda: FORMATS[name].encode(session, build_rows(store, tuple(session.turns)))


def _arrays(rowset: RowSet) -> bytes:
    [row] = rowset.rows
    arrays = (row.tokens, row.loss_mask, row.logprobs, row.weight_versions)
    return orjson.dumps(arrays, option=orjson.OPT_SERIALIZE_NUMPY)


def _recorded(size: Size) -> tuple[TrajectoryStore, Session]:
    """A session whose turns extend each other, with weights that change half-way."""
    store = TrajectoryStore(BUDGET_TOKENS)
    session = store.open_session(SessionSpec(id="session"))
    random = np.random.default_rng(0)
    output_len = int(size.new_tokens * OUTPUT_SHARE)
    prompt_len = size.new_tokens - output_len
    last: Turn | None = None
    for number in range(size.turns):
        logprobs = -random.random(output_len, dtype=np.float32)
        version = f"v{2 * number // size.turns}"
        turn = Turn(
            id=f"turn_{number:024x}",
            base=last.id if last else None,
            base_len=last.held_len if last else 0,
            prompt_ids=token_ids(random.integers(0, VOCAB_SIZE, prompt_len)),
            output_ids=token_ids(random.integers(0, VOCAB_SIZE, output_len)),
            logprobs=logprob_array(logprobs.tolist()),
            weight_versions=(VersionSpan(version, 0, output_len),),
            finish=Finish("stop"),
            session_id=session.id,
        )
        last = store.add(turn)
    return store, session
