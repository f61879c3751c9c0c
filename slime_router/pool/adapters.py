"""The names of adapters, which requests may give as their model."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from slime_router.pool.worker import Worker

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
        self.forgotten = 0

    def __repr__(self) -> str:
        return f"<Adapters {len(self._names)}>"

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the latest last."""
        return tuple(self._names)

    def at(self, workers: Iterable[Worker]) -> list[str]:
        """The names that any of these workers has, as far as is known, the latest last."""
        here = set[str]().union(*(worker.adapters for worker in workers))
        return [name for name in self._names if name in here]

    def loaded(self, worker: Worker, name: object) -> None:
        """The worker has this one."""
        if self.add(name):
            worker.reported(adapters=self._names.keys() & {*worker.adapters, str(name)})

    def listed(self, worker: Worker, names: Iterable[object]) -> None:
        """The worker has these, and no others."""
        listed = [str(name) for name in names if self.add(name)]
        worker.reported(adapters=self._names.keys() & listed)

    def add(self, name: object) -> bool:
        """A worker has this one; returns whether it can be a name. No name has a colon."""
        if not isinstance(name, str) or not name or ":" in name or len(name) > MAX_NAME_LEN:
            return False
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
        return True
