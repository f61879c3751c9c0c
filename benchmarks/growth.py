"""Growth: what a turn costs late in a conversation over what it costs early, with as much new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.conversation import messages, reply_ids
from benchmarks.next_turn import MODES, REPLY_LEN, Through, router_alone
from benchmarks.report import Measurement
from benchmarks.rounds import interleave

AIM = 3.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 7
    repeats: int = 5  # a round, for each side
    few: int = 20  # messages
    many: int = 400
    message_len: int = 625  # characters


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process for a whole request."""
    with router_alone(checkpoint, reply_ids(checkpoint, REPLY_LEN)) as ours:
        talks = {
            count: Through(ours, messages(count - 2, (count - 2) * size.message_len))
            for count in (size.few, size.many)
        }
        sides = {
            f"{mode} {count}": through.side(mode, size.repeats)
            for mode in MODES
            for count, through in talks.items()
        }
        rounds = interleave(sides, size.rounds)
    return [
        Measurement(
            f"growth, {mode}: a turn at {size.many} messages over one at {size.few}",
            rounds.ratio(f"{mode} {size.many}", to=f"{mode} {size.few}"),
            "x",
            AIM,
            f"{rounds.cost(f'{mode} {size.many}') * 1e3:.2f} ms over "
            f"{rounds.cost(f'{mode} {size.few}') * 1e3:.2f} ms of CPU; messages of "
            f"{size.message_len} characters; {size.rounds} rounds of {size.repeats}",
        )
        for mode in MODES
    ]
