"""A compressed trie over characters or bytes: places in texts, each with what is marked there.

Finds every marked place that a text passes through in one walk, whose cost depends on the text and
not on how much is stored. Edges split anywhere. Pure; nothing here recurses.

A place that neither marks nor parts anything is joined with the one below it, unless its edge is
more than twice as long: a text that grows at its end is copied a few times then, not each time.

Several places that are new may be one at first (`Place.fold`), and become what they are when a walk
gets to the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, AnyStr, Generic, TypeVar

Mark = TypeVar("Mark")


class Place(Generic[AnyStr, Mark]):
    """A position in a text: `edge` below `parent`, `depth` characters from the root.

    A place keeps its identity while edges above it split and join.
    """

    __slots__ = ("children", "depth", "edge", "fold", "marks", "parent")

    def __init__(self, edge: AnyStr, parent: Place[AnyStr, Mark] | None, depth: int) -> None:
        self.edge: AnyStr = edge
        self.parent: Place[AnyStr, Mark] | None = parent
        self.depth = depth
        self.fold = 0  # the depth of the first place on the edge that is still to be made, if any
        self.children: dict[Any, Place[AnyStr, Mark]] = {}  # by what their edge begins with
        self.marks: tuple[Mark, ...] = ()  # the most recent last

    def text_since(self, ancestor: Place[AnyStr, Mark]) -> AnyStr:
        """The text between `ancestor` and this place."""
        edges: list[AnyStr] = []
        place = self
        while place is not ancestor:
            assert place.parent is not None, "not an ancestor"
            edges.append(place.edge)
            place = place.parent
        return self.edge[:0].join(reversed(edges))


class TextIndex(Generic[AnyStr, Mark]):
    """The places of one scope. `nothing` is the empty text.

    `unfold(place)` makes the places above one that has a `fold`, and takes that away.
    """

    def __init__(
        self, nothing: AnyStr, unfold: Callable[[Place[AnyStr, Mark]], object] | None = None
    ) -> None:
        self._unfold: Callable[[Place[AnyStr, Mark]], object] = unfold or _never
        self.root: Place[AnyStr, Mark] = Place(nothing, None, 0)
        self.size = 0  # places below the root

    def along(
        self, text: AnyStr, after: Place[AnyStr, Mark] | None = None, *, start: int = 0
    ) -> Iterator[Place[AnyStr, Mark]]:
        """The marked places whose text `text[start:]` begins with, shortest first.

        The root is left out; only those `after` a place of which that is true.
        """
        place = self.root if after is None else after
        pos = start + place.depth
        while pos < len(text):
            child = place.children.get(text[pos])
            if child is None:
                return
            if child.fold and text.startswith(child.edge[: child.fold - place.depth], pos):
                self._unfold(child)
                continue
            if not text.startswith(child.edge, pos):
                return
            place, pos = child, start + child.depth
            if place.marks:
                yield place

    def deepest_first(
        self, text: AnyStr, likely: Place[AnyStr, Mark] | None = None, same_len: int = 0
    ) -> Iterator[Place[AnyStr, Mark]]:
        """The same, deepest first: quicker where the text passes through a `likely` place.

        `same_len`: so many characters are known to be those that the likely place reads.
        """
        place = self.root
        if likely is not None and self._passes(text, likely, same_len):
            place = likely
        yield from reversed(list(self.along(text, place)))
        while place.parent is not None:
            if place.marks:
                yield place
            if place.fold:
                self._unfold(place)
            place = place.parent

    @staticmethod
    def _passes(text: AnyStr, place: Place[AnyStr, Mark], same_len: int) -> bool:
        """Whether the place's text is a prefix of `text`, whose beginning is known."""
        while place.depth > same_len and (parent := place.parent) is not None:
            if not text.startswith(place.edge, parent.depth):
                return False
            place = parent
        return True

    def below(
        self, place: Place[AnyStr, Mark], text: AnyStr, start: int = 0, end: int | None = None
    ) -> Place[AnyStr, Mark]:
        """The place that reads `text[start:end]` below `place`.

        Where it is missing, the one that reads all of `text[start:]` is made.
        """
        pos, stop = start, len(text) if end is None else end
        while pos < stop:
            begin = text[pos]
            child = place.children.get(begin)
            if child is None:
                child = Place(text[pos:], place, place.depth + len(text) - pos)
                place.children[begin] = child
                self.size += 1
                return child
            shared = min(common_prefix_len(child.edge, text, pos), stop - pos)
            if child.fold and place.depth + shared >= child.fold:
                self._unfold(child)
                continue
            if shared < len(child.edge):
                child = self._split(child, shared)
            place, pos = child, pos + shared
        return place

    def _split(self, child: Place[AnyStr, Mark], index: int) -> Place[AnyStr, Mark]:
        parent = child.parent
        assert parent is not None
        middle: Place[AnyStr, Mark] = Place(child.edge[:index], parent, parent.depth + index)
        parent.children[middle.edge[0]] = middle
        child.edge, child.parent = child.edge[index:], middle
        middle.children[child.edge[0]] = child
        self.size += 1
        self._join(child)
        return middle

    def prune(self, place: Place[AnyStr, Mark]) -> None:
        """Remove `place`, and those above it that no longer mark or divide anything."""
        while place.parent is not None and not place.marks and not place.children:
            parent = place.parent
            self.size -= 1
            del parent.children[place.edge[0]]
            place = parent
        while (above := place.parent) is not None and self._join(place):
            place = above

    def _join(self, place: Place[AnyStr, Mark]) -> bool:
        """Join a place with the one below it, if it is useless and its edge not much longer."""
        parent = place.parent
        if parent is None or place.marks or len(place.children) != 1:
            return False
        (child,) = place.children.values()
        if len(place.edge) > 2 * len(child.edge):
            return False
        self.size -= 1
        child.edge, child.parent = place.edge + child.edge, parent
        parent.children[child.edge[0]] = child
        return True

    def places(self) -> Iterator[Place[AnyStr, Mark]]:
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
            below = list(place.children.values())
            is_needed = place.marks or len(below) > 1 or place.parent is None
            is_long = len(below) == 1 and len(place.edge) > 2 * len(below[0].edge)
            assert is_needed or is_long, "a place that marks nothing and parts nothing"
            if place.fold:
                assert place.parent is not None
                assert place.parent.depth < place.fold < place.depth, "a fold is not on its edge"
                assert place.marks, "nothing is folded where nothing is marked"
            for first, child in place.children.items():
                assert child.parent is place
                assert child.edge[0] == first
                assert child.depth == place.depth + len(child.edge)
        assert count == self.size, "the count of places is wrong"


def common_prefix_len(edge: AnyStr, text: AnyStr, start: int = 0) -> int:
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


def _never(_: Place[Any, Any]) -> None:
    raise AssertionError("nothing is folded here")
