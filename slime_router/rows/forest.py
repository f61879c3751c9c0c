"""The forest of a session: which turn continues which, known from their tokens alone.

    prompt(node)[: node.shared_len] == held(node.parent)[: node.shared_len]

A turn continues the turn whose held tokens all begin its prompt. Where a prompt departs from an
answer shortly before its end (drift), it *realigns* that answer: it continues it anyway, and
the tokens after the common prefix are given up. Where too much would be given up, or another turn
continues the same answer, the prompt is a fork beside it.

Turns without output are not parents; what was sent to them counts as part of the next prompt.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slime_router.beginnings import common_prefix_len
from slime_router.trajectory.turn import Turn
from slime_router.types import TokenIds


class TurnSource(Protocol):
    """Where turns are looked up; the store is one."""

    def get(self, turn_id: str) -> Turn | None:
        """The turn, or None where it is not held."""
        ...

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        """The first `length` held tokens of a turn, all by default; read-only."""
        ...

    def is_delivered(self, turn_id: str) -> bool:
        """Whether the client read the reply to its end."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TurnNode:
    """A turn with output, and the turn that it continues."""

    turn: Turn
    prompt_key: bytes  # equal for equal prompts
    parent: TurnNode | None
    shared_len: int  # of the parent's held tokens; fewer than all where this turn realigns it
    base: Turn | None = None  # the turn in whose answer, or at whose end, the prompt departs
    base_len: int = 0  # how many of its held tokens they share

    @property
    def prompt_len(self) -> int:
        """Where the output begins."""
        return _prompt_len(self.turn)

    def path(self) -> list[TurnNode]:
        """From the root to this node."""
        nodes: list[TurnNode] = []
        node: TurnNode | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


def plant(source: TurnSource, turns: Iterable[Turn], realign_threshold: int) -> list[TurnNode]:
    """The nodes of all turns that have output, oldest first.

    An answer is realigned where fewer than `realign_threshold` of its tokens are given up; the
    length of the new turn does not matter. Time grows with the stored tokens, not with held
    lengths.
    """
    sites: dict[str, _Site] = {}
    for turn in sorted(turns, key=lambda turn: turn.seq):
        sites[turn.id] = _locate(source, turn, sites)
    return _Planter(
        [site for site in sites.values() if len(site.turn.output_ids)], realign_threshold
    ).plant()


def _prompt_len(turn: Turn) -> int:
    return turn.base_len + len(turn.prompt_ids)


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """Where a prompt departs from the tokens of older turns: `base_len` tokens into `base`.

    That point is after the first output token of `base`, and at most at its end.
    """

    turn: Turn
    base: _Site | None
    base_len: int
    delta: TokenIds  # the prompt after that point
    prompt_hash: hashlib.blake2b
    held_hash: hashlib.blake2b

    @property
    def is_whole(self) -> bool:
        """Whether the prompt holds all of its base."""
        return self.base is not None and self.base_len == self.base.turn.held_len


def _locate(source: TurnSource, turn: Turn, sites: dict[str, _Site]) -> _Site:
    delta, length = turn.prompt_ids, turn.base_len
    base = sites.get(turn.base) if turn.base is not None else None
    if base is None and turn.base is not None:  # a turn of somebody else: plain context
        delta, length = _join(source.held_ids(turn.base, length), delta), 0
    while base is not None and length <= _prompt_len(base.turn):
        delta = _join(base.delta[: max(length - base.base_len, 0)], delta)
        length = min(length, base.base_len)
        base = base.base
    if base is not None:  # the base may have been left on the way to an older one: look again
        common = common_prefix_len(base.turn.output_ids[length - _prompt_len(base.turn) :], delta)
        length, delta = length + common, delta[common:]
    prompt_hash = _hash_at(base, length)
    prompt_hash.update(delta.data)
    held_hash = prompt_hash.copy()
    held_hash.update(turn.output_ids.data)
    return _Site(turn, base, length, delta, prompt_hash, held_hash)


def _join(first: TokenIds, second: TokenIds) -> TokenIds:
    if not len(first) or not len(second):
        return first if len(first) else second
    return np.concatenate((first, second))


def _hash_at(base: _Site | None, length: int) -> hashlib.blake2b:
    """Of the first `length` held tokens, which end in the output of `base`."""
    if base is None:
        return hashlib.blake2b(digest_size=16)
    if length == base.turn.held_len:
        return base.held_hash.copy()
    result = base.prompt_hash.copy()
    result.update(base.turn.output_ids[: length - _prompt_len(base.turn)].data)
    return result


def _prompt_key(site: _Site) -> bytes:
    """Equal for equal prompts. Pictures have one token, whatever they show: they count, too."""
    key = site.prompt_hash.digest()
    if not site.turn.pictures:
        return key
    digests = "".join(digest for _, digest in site.turn.pictures)
    return hashlib.blake2b(key + digests.encode(), digest_size=16).digest()


def _saw_the_same(older: _Site, newer: _Site) -> bool:
    """Whether a prompt has the pictures of an older one."""
    seen = older.turn.pictures
    return newer.turn.pictures[: len(seen)] == seen


@dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """What a prompt must begin with to realign a turn: all but what may be given up.

    A prompt's cores are prefixes of one another: a list, the longest first.
    """

    site: _Site
    length: int  # in tokens, from where the deltas of the siblings begin
    shorter: _Core | None


class _Planter:
    """Gives every site its parent, oldest first."""

    def __init__(self, sites: Sequence[_Site], realign_threshold: int) -> None:
        self._sites = sites
        self._threshold = realign_threshold
        self._nodes: dict[str, TurnNode] = {}
        self._extended = {site.base.turn.id for site in sites if site.base and site.is_whole}
        self._realigned: dict[str, bytes] = {}  # a turn, and the one prompt that realigns it

    def plant(self) -> list[TurnNode]:
        siblings: dict[tuple[str | None, int], list[_Site]] = {}
        for site in self._sites:
            base_id = site.base.turn.id if site.base is not None else None
            siblings.setdefault((base_id, site.base_len), []).append(site)
        cores: dict[str, _Core] = {}
        for group in siblings.values():
            if len(group) > 1:
                cores.update(self._cores(group))
        for site in self._sites:
            key = _prompt_key(site)
            parent, shared_len = self._parent(site, key, cores.get(site.turn.id))
            base = None if site.base is None else site.base.turn
            self._nodes[site.turn.id] = TurnNode(
                site.turn, key, parent, shared_len, base, site.base_len
            )
        return list(self._nodes.values())

    def _parent(self, site: _Site, key: bytes, core: _Core | None) -> tuple[TurnNode | None, int]:
        drifted = self._drifted_from(site, key, core)
        if drifted is not None:
            answer, common = drifted
            self._realigned[answer.turn.id] = key
            return self._nodes[answer.turn.id], common
        if site.base is None:
            return None, 0
        base = self._nodes[site.base.turn.id]
        if site.is_whole:
            return base, site.base_len
        return base.parent, base.shared_len

    def _drifted_from(
        self, site: _Site, key: bytes, core: _Core | None
    ) -> tuple[_Site, int] | None:
        """The answer that this prompt realigns, and how many tokens they share from the start.

        The most in common wins, then the latest.
        """
        best: tuple[int, int, _Site] | None = None
        while core is not None:
            if best is not None and site.base_len + core.length + self._threshold <= best[0]:
                break  # even all of this answer is less
            is_older = core.site.turn.seq < site.turn.seq
            if is_older and _saw_the_same(core.site, site) and self._is_free(core.site, key):
                common = site.base_len + _common_len(core, site.delta)
                if common < min(core.site.turn.held_len, _prompt_len(site.turn)):
                    best = max(best or (0, 0, site), (common, core.site.turn.seq, core.site))
            core = core.shorter
        if best is not None:
            return best[2], best[0]
        if site.base is None or site.is_whole or not len(site.delta):
            return None
        drift_len = site.base.turn.held_len - site.base_len
        if drift_len < self._threshold and self._is_free(site.base, key):
            return site.base, site.base_len
        return None

    def _is_free(self, answer: _Site, key: bytes) -> bool:
        turn_id = answer.turn.id
        return turn_id not in self._extended and self._realigned.get(turn_id, key) == key

    def _cores(self, siblings: Sequence[_Site]) -> dict[str, _Core]:
        """For each of the siblings the cores that its prompt begins with.

        Sorted, each text comes right after its prefixes; so one pass finds them all, where
        comparing the siblings with one another would be quadratic.
        """
        longest = max(len(site.delta) for site in siblings)
        cores = [(i, n) for i, site in enumerate(siblings) if (n := self._core_len(site)) < longest]
        if not cores:
            return {}
        texts = [(site.delta.tobytes(), 1, i, 0) for i, site in enumerate(siblings)]
        for index, length in cores:
            site = siblings[index]
            ids = _join(site.delta, site.turn.output_ids[: length - len(site.delta)])
            texts.append((ids.tobytes(), 0, index, length))
        found: dict[str, _Core] = {}
        open_cores: list[tuple[bytes, _Core | None]] = [(b"", None)]
        for text, is_prompt, index, length in sorted(texts):
            while not text.startswith(open_cores[-1][0]):
                open_cores.pop()
            core, site = open_cores[-1][1], siblings[index]
            if not is_prompt:
                open_cores.append((text, _Core(site, length, core)))
            elif core is not None:
                found[site.turn.id] = core
        return found

    def _core_len(self, site: _Site) -> int:
        """At least one output token, and at most all but one; else no prompt is long enough."""
        output_len = len(site.turn.output_ids)
        given_up = min(self._threshold - 1, output_len - 1)
        if given_up < 1 or site.turn.id in self._extended:
            return sys.maxsize
        return len(site.delta) + output_len - given_up


def _common_len(core: _Core, delta: TokenIds) -> int:
    """How many tokens of a sibling's delta are those of the core's turn too."""
    tail = core.site.turn.output_ids[core.length - len(core.site.delta) :]
    return core.length + common_prefix_len(tail, delta[core.length :])
