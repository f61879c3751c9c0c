"""The accounts of the turns held: found by the ids that a client knows, within a size in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from slime_router.trajectory.turn import Turn
from slime_router.values import replace

MAX_WORDS_BYTES = 2**29


class Ledger:
    """Which turns a request left, and how many bytes their accounts take.

    Words take at most `max_words_bytes`: beyond it, the oldest of the `turns` lose theirs.
    """

    def __init__(self, turns: dict[str, Turn], max_words_bytes: int = MAX_WORDS_BYTES) -> None:
        self._turns = turns
        self.max_words_bytes = max_words_bytes
        self.bytes = 0  # of all accounts
        self.dropped_words = 0  # turns that lost theirs to make room
        self._words_bytes = 0
        self._turn_ids: dict[str, dict[str, None]] = {}  # by each name of their requests
        self._with_words: OrderedDict[str, int] = OrderedDict()  # turn and size, the oldest first

    def __repr__(self) -> str:
        return f"<Ledger {self.bytes} bytes>"

    def file(self, turn: Turn) -> None:
        """Make a turn known by its requests; others may lose their words for it."""
        for name in _names(turn):
            self._turn_ids.setdefault(name, {})[turn.id] = None
        account = turn.account
        if account is None:
            return
        self.bytes += account.size
        if account.words is not None:
            self._with_words[turn.id] = size = len(account.words)
            self._words_bytes += size
        while self._words_bytes > self.max_words_bytes:
            self._shed(self._turns[next(iter(self._with_words))])

    def _shed(self, turn: Turn) -> None:
        assert turn.account is not None
        size = self._with_words.pop(turn.id)
        self._words_bytes -= size
        self.bytes -= size
        self.dropped_words += 1
        self._turns[turn.id] = replace(turn, account=turn.account.without_words())

    def unfile(self, turn: Turn) -> None:
        """Forget a turn."""
        for name in _names(turn):
            turn_ids = self._turn_ids[name]
            del turn_ids[turn.id]
            if not turn_ids:
                del self._turn_ids[name]
        if turn.account is not None:
            self.bytes -= turn.account.size
        self._words_bytes -= self._with_words.pop(turn.id, 0)

    def find(self, name: str) -> Iterator[str]:
        """The turns of the requests with this id, oldest first."""
        return iter(self._turn_ids.get(name, ()))

    def check_integrity(self, turns: Mapping[str, Turn]) -> None:
        """Recount.

        Raises:
            AssertionError: what is broken.
        """
        expected: dict[str, dict[str, None]] = {}
        accounts = {turn.id: turn.account for turn in turns.values() if turn.account is not None}
        for turn in turns.values():
            for name in _names(turn):
                expected.setdefault(name, {})[turn.id] = None
        assert self._turn_ids == expected, "turns are not found by their requests"
        assert self.bytes == sum(each.size for each in accounts.values()), "bytes miscounted"
        words = {name: len(a.words) for name, a in accounts.items() if a.words is not None}
        assert dict(self._with_words) == words, "words miscounted"
        assert self._words_bytes == sum(words.values()), "the size of words is miscounted"


def _names(turn: Turn) -> set[str]:
    """What its client may call it, beside its own id."""
    names = {turn.request_id, *(call for call, _ in turn.calls)}
    if turn.account is not None:
        names |= {turn.account.request_id, turn.account.rid}
    return names - {""}
