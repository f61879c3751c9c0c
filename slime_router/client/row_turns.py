"""What is said of each turn in a row. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_LISTS = {"tags", "pictures"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTurn:
    """A turn in a row: it sampled the tokens `[start, end)`.

    kind:        `main`, `retry`, `subagent` or `compaction`
    parent_turn: the turn that it continues, serves or summarizes; None for the first
    speculation: `verifications`, `proposed`, `accepted`; None where no drafts were made
    started:     Unix time; the other times are seconds from there
    adapter:     that sampled it; None for the model itself
    pictures:    that came with its prompt: the place of the token of each, and a digest of it
    """

    turn_id: str
    start: int
    end: int
    kind: str = "main"
    parent_turn: str | None = None
    reward: float | None = None
    tags: tuple[str, ...] = ()
    speculation: Mapping[str, int] | None = None
    started: float | None = None
    duration_s: float | None = None
    first_token_s: float | None = None
    adapter: str | None = None
    pictures: tuple[tuple[int, str], ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)  # whatever else the router says of it

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RowTurn:
        """The turn as the router writes it."""
        names = {each.name for each in fields(cls)} - {"others", *_LISTS}
        return cls(
            **{name: values[name] for name in names & values.keys()},
            tags=tuple(values.get("tags", ())),
            pictures=tuple((place, digest) for place, digest in values.get("pictures", ())),
            others={name: values[name] for name in values.keys() - names - _LISTS},
        )

    def to_json(self) -> dict[str, Any]:
        """The turn as JSON, in the form that the router writes."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        del own["others"]
        if not self.pictures:
            del own["pictures"]
        return {**own, "tags": list(self.tags), **self.others}
