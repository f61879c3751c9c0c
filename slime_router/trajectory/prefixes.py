"""The turn of a session that a sequence of tokens begins with, found by digests of prefixes.

A look-up takes one pass over the tokens, however many turns the session has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from secrets import randbits

import numpy as np
from numpy.typing import NDArray

from slime_router.trajectory.turn import ByNumber, Turn, put_by_number
from slime_router.types import TokenIds

Party = tuple[str, str]  # a session and a scope
_Words = NDArray[np.uint64]

FEW = 32  # held sequences of a party, which are compared one by one
SPARSE = 32  # places in the sieve for each of more

_STEP = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW = 2**64 - 1
_NOTHING = np.zeros(1, np.uint64)  # the digest of no tokens


class _Sequences:
    """The token sequences that the turns of one party hold: by length and digest.

    Where there are many, a sieve says for most digests at once that they belong to none of them.
    """

    __slots__ = ("_passed", "_sieve", "longest", "newest", "turns")

    def __init__(self) -> None:
        self.turns: dict[tuple[int, int], ByNumber] = {}
        self._sieve: NDArray[np.bool_] | None = None  # by the last bits of a digest
        self._passed = 0  # digests that the sieve lets pass, of sequences that are gone as well
        self.newest = ""  # the turn that was added last, even if it is gone
        self.longest = 0  # no sequence was ever longer

    def add(self, length: int, digest: int, turn: Turn) -> None:
        self.newest = turn.id
        self.longest = max(self.longest, length)
        alike = self.turns.setdefault((length, digest), {})
        put_by_number(alike, turn.id, turn.seq)
        if len(alike) > 1 or (self._sieve is None and len(self.turns) <= FEW):
            return
        self._passed += 1
        if self._sieve is None or self._passed * SPARSE > len(self._sieve):
            self._sieve = np.zeros(2 * SPARSE << len(self.turns).bit_length(), np.bool_)
            self._sieve[[digest & (len(self._sieve) - 1) for _, digest in self.turns]] = True
            self._passed = len(self.turns)
        self._sieve[digest & (len(self._sieve) - 1)] = True

    def remove(self, length: int, digest: int, turn_id: str) -> None:
        alike = self.turns[length, digest]
        del alike[turn_id]
        if not alike:
            del self.turns[length, digest]

    def beginning(self, digests: _Words) -> Iterator[tuple[int, ByNumber]]:
        """The sequences with these digests, one for each length from 0 on; the longest first."""
        if self._sieve is None:
            lengths = sorted({length for length, _ in self.turns}, reverse=True)
        else:
            last_bits = np.uint64(len(self._sieve) - 1)
            lengths = np.flatnonzero(self._sieve[digests & last_bits])[::-1].tolist()
        for length in lengths:
            if length < len(digests):
                alike = self.turns.get((length, int(digests[length])))
                if alike is not None:
                    yield length, alike


class PrefixIndex:
    """Turns by all of their held tokens, in each session and scope.

    A digest is a sum over the tokens, each mixed with its position and a secret: that of a longer
    sequence goes on from that of its beginning, and nobody can make two collide on purpose.

    `held_ids(turn_id, length)` gives the first `length` held tokens of a turn.
    """

    def __init__(self, held_ids: Callable[[str, int], TokenIds]) -> None:
        self._held_ids = held_ids
        self._secret = np.uint64(randbits(64))
        self._parties: dict[Party, _Sequences] = {}
        self._digests: dict[str, int] = {}  # of all held tokens of each turn of a party

    def __repr__(self) -> str:
        return f"<PrefixIndex {len(self._digests)} turns, {len(self._parties)} parties>"

    def add(self, turn: Turn, base: Turn | None) -> None:
        """Make a turn known, after its base. Without a session it is never looked for."""
        party = _party(turn)
        if party is None:
            return
        digest = 0 if base is None else self._digest_of_part(base, turn.base_len)
        own = np.concatenate((turn.prompt_ids, turn.output_ids))
        digest = (digest + int(self._mixed(own, turn.base_len).sum(dtype=np.uint64))) & _LOW
        self._digests[turn.id] = digest
        sequences = self._parties.get(party)
        if sequences is None:
            sequences = self._parties[party] = _Sequences()
        sequences.add(turn.held_len, digest, turn)

    def remove(self, turn: Turn) -> None:
        """Forget a turn, which belongs to no session from now on."""
        party = _party(turn)
        if party is None:
            return
        sequences = self._parties[party]
        sequences.remove(turn.held_len, self._digests.pop(turn.id), turn.id)
        if not sequences.turns:
            del self._parties[party]

    def deepest(self, ids: TokenIds, session_id: str, scope: str) -> str | None:
        """The turn of this session and scope with the most held tokens, all of which begin `ids`.

        Of equal ones the newest.
        """
        sequences = self._parties.get((session_id, scope))
        if sequences is None:
            return None
        if sequences.newest in self._digests:  # nearly always it, and then nothing is digested
            held = self._held_ids(sequences.newest, sequences.longest)
            if len(held) == sequences.longest and np.array_equal(held, ids[: len(held)]):
                return sequences.newest
        sums = np.cumsum(self._mixed(ids, 0), dtype=np.uint64)
        for length, alike in sequences.beginning(np.concatenate((_NOTHING, sums))):
            newest = next(reversed(alike))
            if np.array_equal(self._held_ids(newest, length), ids[:length]):
                return newest
        return None

    def check_integrity(self, turns: Mapping[str, Turn]) -> None:
        """Recount.

        Raises:
            AssertionError: what is broken.
        """
        named = {turn.id: party for turn in turns.values() if (party := _party(turn))}
        assert self._digests.keys() == named.keys(), "turns without a digest"
        filed = {
            turn_id: (party, length, digest)
            for party, sequences in self._parties.items()
            for (length, digest), alike in sequences.turns.items()
            for turn_id in alike
        }
        for turn_id, party in named.items():
            held_len = turns[turn_id].held_len
            digest = int(self._mixed(self._held_ids(turn_id, held_len), 0).sum(dtype=np.uint64))
            assert self._digests[turn_id] == digest, "a digest is not that of the held tokens"
            assert filed.pop(turn_id) == (party, held_len, digest), "a turn is not found"
        assert not filed, "turns that are gone are found by their tokens"

    def _digest_of_part(self, turn: Turn, length: int) -> int:
        """The digest of the first `length` held tokens of a turn."""
        known = self._digests.get(turn.id) if length == turn.held_len else None
        if known is not None:
            return known
        return int(self._mixed(self._held_ids(turn.id, length), 0).sum(dtype=np.uint64))

    def _mixed(self, ids: TokenIds, start: int) -> _Words:
        """One word for each token, of itself, its position from `start` on and the secret."""
        words = np.arange(start, start + len(ids), dtype=np.uint64)
        words <<= np.uint64(32)
        words |= ids.astype(np.uint32)
        words *= _STEP
        words += self._secret
        words ^= words >> np.uint64(30)
        words *= _MIX_1
        words ^= words >> np.uint64(27)
        words *= _MIX_2
        words ^= words >> np.uint64(31)
        return words


def _party(turn: Turn) -> Party | None:
    return None if turn.session_id is None else (turn.session_id, turn.scope)
