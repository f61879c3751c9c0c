"""Rows of turns with pictures: what has other pictures is another prompt."""

from __future__ import annotations

from slime_router.rows.forest import plant
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, TokenIds, token_ids

PAD = 9
SAID = [*range(100, 130)]


def turn(name: str, seq: int, prompt: list[int], output: list[int], picture: str) -> Turn:
    return Turn(
        id=name,
        base=None,
        base_len=0,
        prompt_ids=token_ids(prompt),
        output_ids=token_ids(output),
        logprobs=None,
        weight_versions=(),
        finish=Finish("stop"),
        pictures=((prompt.index(PAD), picture),),
        seq=seq,
    )


class Source(dict[str, Turn]):
    """Turns without bases."""

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        found = self[turn_id]
        return token_ids([*found.prompt_ids, *found.output_ids][:length])

    def is_delivered(self, turn_id: str) -> bool:
        return turn_id in self


def planted(second_picture: str, second_prompt: list[int]) -> dict[str, str | None]:
    """The parent of each turn; the first one saw picture `a`."""
    first = turn("first", 0, [1, PAD, 2], SAID, "a")
    second = turn("second", 1, second_prompt, [3, 4], second_picture)
    turns = {each.id: each for each in (first, second)}
    nodes = plant(Source(turns), turns.values(), 16)
    return {node.turn.id: node.parent.turn.id if node.parent else None for node in nodes}


def test_an_answer_is_realigned_only_by_who_saw_its_pictures():
    """The second prompt departs from the first answer shortly before its end."""
    drifted = [1, PAD, 2, *SAID[:-3], 50, 51]
    assert planted("a", drifted) == {"first": None, "second": "first"}
    assert planted("b", drifted) == {"first": None, "second": None}


def test_equal_tokens_with_other_pictures_are_other_prompts():
    first = turn("first", 0, [1, PAD, 2], SAID, "a")
    for picture, is_equal in (("a", True), ("b", False)):
        second = turn("second", 1, [1, PAD, 2], SAID, picture)
        turns = {each.id: each for each in (first, second)}
        one, other = plant(Source(turns), turns.values(), 16)
        assert (one.prompt_key == other.prompt_key) is is_equal
