"""The names of adapters, which requests may give as their model."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

MAX_NAMES = 1024  # of the latest
MAX_NAME_LEN = 4096  # characters


class Adapters:
    """The adapters that workers have loaded, by name.

    A name stays when its adapter is unloaded: a conversation that still has it is refused by the
    worker, and does not go on with the base model.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # in order of their loading
        self._at: dict[str, set[str]] = {}  # the names at each worker, by its URL
        self.forgotten = 0

    def __repr__(self) -> str:
        return f"<Adapters {len(self._names)}>"

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the latest last."""
        return tuple(self._names)

    def at(self, urls: Iterable[str]) -> list[str]:
        """The names that any of these workers has, as far as is known, the latest last."""
        here = set[str]().union(*(self._at.get(url, ()) for url in urls))
        return [name for name in self._names if name in here]

    def loaded(self, url: str, name: object) -> None:
        """The worker has this one."""
        self.add(name)
        if name in self._names:
            self._at.setdefault(url, set()).add(str(name))

    def listed(self, url: str, names: Iterable[object]) -> None:
        """The worker has these, and no others."""
        self._at.pop(url, None)
        for name in names:
            self.loaded(url, name)

    def add(self, name: object) -> None:
        """A worker has this one. With a colon, a name is for workers `base:adapter`, never one."""
        if not isinstance(name, str) or not name or ":" in name or len(name) > MAX_NAME_LEN:
            return
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > MAX_NAMES:
            oldest = next(iter(self._names))
            del self._names[oldest]
            self.forgotten += 1
            logger.warning(
                "the adapter %.100r is forgotten: more than %d are known; as a model its"
                " name now means the base model",
                oldest,
                MAX_NAMES,
            )
