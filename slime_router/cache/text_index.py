"""A compressed trie over characters: places in texts, each with what is marked there.

Finds every marked place that a text passes through in one walk, whose cost depends on the text and
not on how much is stored. Edges split anywhere. Pure; nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Mark = TypeVar("Mark")


class Place(Generic[Mark]):
    """A position in a text: `edge` below `parent`, `depth` characters from the root.

    A place keeps its identity while edges above it split and join.
    """

    __slots__ = ("children", "depth", "edge", "marks", "parent")

    def __init__(self, edge: str, parent: Place[Mark] | None, depth: int) -> None:
        self.edge = edge
        self.parent = parent
        self.depth = depth
        self.children: dict[str, Place[Mark]] = {}  # by the first character of their edge
        self.marks: tuple[Mark, ...] = ()  # the most recent last

    def text_since(self, ancestor: Place[Mark]) -> str:
        """The text between `ancestor` and this place."""
        edges: list[str] = []
        place = self
        while place is not ancestor:
            assert place.parent is not None, "not an ancestor"
            edges.append(place.edge)
            place = place.parent
        return "".join(reversed(edges))


class TextIndex(Generic[Mark]):
    """The places of one scope."""

    def __init__(self) -> None:
        self.root: Place[Mark] = Place("", None, 0)
        self.size = 0  # places below the root

    def along(self, text: str, after: Place[Mark] | None = None) -> Iterator[Place[Mark]]:
        """The marked places whose text is a prefix of `text`, shortest first, the root left out.

        Only those `after` a place of which that is true.
        """
        place = self.root if after is None else after
        pos = place.depth
        while pos < len(text):
            child = place.children.get(text[pos])
            if child is None or not text.startswith(child.edge, pos):
                return
            place, pos = child, child.depth
            if place.marks:
                yield place

    def deepest_first(self, text: str, likely: Place[Mark] | None = None) -> Iterator[Place[Mark]]:
        """The same, deepest first: quicker where the text passes through a `likely` place."""
        place = self.root
        if likely is not None and self._passes(text, likely):
            place = likely
        yield from reversed(list(self.along(text, place)))
        while place.parent is not None:
            if place.marks:
                yield place
            place = place.parent

    @staticmethod
    def _passes(text: str, place: Place[Mark]) -> bool:
        """Whether the place's text is a prefix of `text`."""
        while (parent := place.parent) is not None:
            if not text.startswith(place.edge, parent.depth):
                return False
            place = parent
        return True

    def below(self, place: Place[Mark], text: str) -> Place[Mark]:
        """The place that reads `text` below `place`, made where it is missing."""
        pos = 0
        while pos < len(text):
            child = place.children.get(text[pos])
            if child is None:
                child = Place(text[pos:], place, place.depth + len(text) - pos)
                place.children[text[pos]] = child
                self.size += 1
                return child
            shared = common_prefix_len(child.edge, text, pos)
            if shared < len(child.edge):
                child = self._split(child, shared)
            place, pos = child, pos + shared
        return place

    def _split(self, child: Place[Mark], index: int) -> Place[Mark]:
        parent = child.parent
        assert parent is not None
        middle: Place[Mark] = Place(child.edge[:index], parent, parent.depth + index)
        parent.children[middle.edge[0]] = middle
        child.edge, child.parent = child.edge[index:], middle
        middle.children[child.edge[0]] = child
        self.size += 1
        return middle

    def prune(self, place: Place[Mark]) -> None:
        """Remove `place`, and those above it that no longer mark or divide anything."""
        while place.parent is not None and not place.marks and len(place.children) < 2:
            parent = place.parent
            self.size -= 1
            if place.children:
                (child,) = place.children.values()
                child.edge, child.parent = place.edge + child.edge, parent
                parent.children[child.edge[0]] = child
                return
            del parent.children[place.edge[0]]
            place = parent

    def places(self) -> Iterator[Place[Mark]]:
        """Every place, the root first."""
        stack = [self.root]
        while stack:
            place = stack.pop()
            yield place
            stack.extend(place.children.values())

    def check_integrity(self) -> None:
        """Walk everything.

        Raises:
            AssertionError: what is broken.
        """
        count = -1
        for place in self.places():
            count += 1
            is_needed = place.marks or len(place.children) > 1 or place.parent is None
            assert is_needed, "a place that marks nothing and parts nothing"
            for first, child in place.children.items():
                assert child.parent is place
                assert child.edge[0] == first
                assert child.depth == place.depth + len(child.edge)
        assert count == self.size, "the count of places is wrong"


def common_prefix_len(edge: str, text: str, start: int) -> int:
    """How many characters of `edge` match `text[start:]`; by bisection, not one by one."""
    if text.startswith(edge, start):
        return len(edge)
    low, high = 0, min(len(edge), len(text) - start)
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(edge[:middle], start):
            low = middle
        else:
            high = middle - 1
    return low
