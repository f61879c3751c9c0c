"""A node of the radix tree: a run of token ids below another one."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from slime_router.cache.text_index import Place
from slime_router.types import NO_TOKENS, TokenIds

MAX_OWNERS = 2**16  # sessions that passed through one node

Owners: TypeAlias = "set[str | None] | frozenset[str | None]"
Run: TypeAlias = tuple[int, TokenIds, bool, bool]  # characters, ids, is_sampled, is_anchor


class Node:
    """A run of token ids below `parent`, reading the text between the two places.

    `inner` are the runs before its own that were filed with it. They have no nodes yet: the tree
    makes them when somebody needs them.
    """

    __slots__ = (
        "child_count", "end", "epoch", "ids", "inner", "is_anchor", "is_queued", "is_sampled",
        "owners", "parent", "pins", "place", "scope", "stamp", "turn",
    )  # fmt: skip

    def __init__(
        self,
        scope: str,
        parent: Node | None,
        place: Place[str, Node],
        ids: TokenIds,
        end: int,
        *,
        is_sampled: bool,
    ) -> None:
        self.scope = scope
        self.parent = parent
        self.place = place
        self.ids = ids
        self.inner: tuple[Run, ...] = ()
        self.end = end  # tokens from the root
        self.is_sampled = is_sampled
        self.is_anchor = parent is None  # safe to cut after it, whatever text follows
        self.owners: Owners | None = None
        self.turn: str | None = None  # of the newest turn that sampled this run
        self.epoch = 0  # of the newest turn that passed through; never newer than the parent's
        self.child_count = 0
        self.pins = 0
        self.stamp = 0
        self.is_queued = False  # for eviction

    def path_ids(self) -> TokenIds:
        """All token ids from the root to the end of this node; shape `[end]`, read-only."""
        runs, node = [], self
        while node.parent is not None:
            runs.append(node.ids)
            runs += [ids for _, ids, _, _ in reversed(node.inner)]
            node = node.parent
        runs.reverse()
        ids = np.concatenate(runs) if runs else NO_TOKENS
        ids.setflags(write=False)
        return ids

    def may_be_reused_by(self, session_id: str | None) -> bool:
        """Whether a call of this session may send these tokens."""
        return session_id is None or self.owners is None or session_id in self.owners

    def add_owner(self, alone: frozenset[str | None]) -> None:
        """Add the one in `alone`, which all nodes that are its own share."""
        owners = self.owners
        if owners is None:
            self.owners = alone
        elif not owners >= alone:
            more = self.owners = owners if isinstance(owners, set) else set(owners)
            if len(more) >= MAX_OWNERS:
                more.pop()  # it may be encoded again for that session where no turn is found for it
            more |= alone

    def refresh(self, epoch: int) -> None:
        """Make the path to here at least as new as `epoch`; above a newer node all is newer."""
        node: Node | None = self
        while node is not None and node.epoch < epoch:
            node.epoch = epoch
            node = node.parent

    def len_after_first(self) -> int:
        """How many tokens of this node and those folded into it come after the first of them."""
        assert self.parent is not None
        return self.end - self.parent.end - len(self.inner[0][1])

    def check(self) -> Node:
        """Compare this node with its parent, which is returned.

        Raises:
            AssertionError: what is broken.
        """
        parent, inner = self.parent, self.inner
        assert parent is not None
        assert self.end == parent.end + len(self.ids) + sum(len(ids) for _, ids, _, _ in inner)
        assert not self.ids.flags.writeable, "ids could be changed from outside"
        assert parent.parent is None or parent in parent.place.marks, "a parent was evicted"
        text = self.place.text_since(parent.place)  # raises where this place is not below it
        assert len(text) > sum(length for length, *_ in inner) or not inner, "no text is left"
        if inner:
            assert self.place.fold == parent.place.depth + inner[0][0], "a fold is not at its run"
        assert self.pins >= 0
        assert self.epoch <= parent.epoch, "a child is newer than its parent"
        if (
            parent.owners is not None
            or self.is_sampled
            or any(sampled for _, _, sampled, _ in inner)
        ):
            assert self.owners, "sampled tokens without an owner"
        else:
            assert self.owners is None, "unsampled tokens with an owner"
        return parent
