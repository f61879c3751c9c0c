"""Which weight updates the router knows of: the names of versions, and the epoch each one started.

Versions are names, strings or numbers, that need not be comparable: they are ordered by when they
were first seen. An epoch is a position in that order: 0 before any version is known, 1 from the
first on, one more with each new one. Pure: no clock, no asyncio.
"""

from __future__ import annotations

from collections.abc import Iterable

from slime_router.types import WeightVersion

MAX_KNOWN = 1024  # names; a forgotten one counts as new if it is seen again


class WeightVersions:
    """The current version, and the epochs of earlier ones. `epoch` never decreases.

    Always: `current is None` and `epoch == 0`, or `epoch_of([current]) == epoch`.
    """

    def __init__(self, *, max_known: int = MAX_KNOWN) -> None:
        self._max_known = max_known
        self._epochs: dict[WeightVersion, int] = {}  # the oldest epoch first
        self._current: WeightVersion | None = None
        self._epoch = 0

    def __repr__(self) -> str:
        return f"<WeightVersions {self._current!r} in epoch {self._epoch}>"

    @property
    def current(self) -> WeightVersion | None:
        """The version that started the newest epoch; None before any is known."""
        return self._current

    @property
    def epoch(self) -> int:
        """How many updates are known."""
        return self._epoch

    def note(self, version: WeightVersion) -> int:
        """The epoch of a version that a reply named.

        A new one becomes current. A known one does not become current again: replies of workers
        that lag behind arrive in between.
        """
        known = self._epochs.get(version)
        return self._begin(version) if known is None else known

    def set_current(self, version: WeightVersion) -> int:
        """The epoch of a version that the workers were asked to run.

        Naming it twice changes nothing: weights arrive in parts, and at every worker. Going back to
        an older version is an update too.
        """
        return self._epoch if version == self._current else self._begin(version)

    def epoch_of(self, versions: Iterable[WeightVersion]) -> int:
        """The newest epoch of `versions`, 0 for unknown ones; the current epoch if empty."""
        return max((self._epochs.get(version, 0) for version in versions), default=self._epoch)

    def lag(self, version: WeightVersion | None) -> int:
        """How many updates `version` lags behind; 0 if it is not known."""
        return self._epoch - self._epochs.get(version, self._epoch) if version is not None else 0

    @property
    def known(self) -> list[tuple[WeightVersion, int]]:
        """Every version that is known and its epoch, the oldest first."""
        return list(self._epochs.items())

    def take_over(self, known: Iterable[tuple[WeightVersion, int]]) -> None:
        """What another process of the router knows, where that is more than is known here."""
        epochs = dict(known)
        newest = max(epochs, key=epochs.__getitem__, default=None)
        if newest is None or epochs[newest] < self._epoch:
            return
        self._epochs, self._epoch, self._current = epochs, epochs[newest], newest

    def _begin(self, version: WeightVersion) -> int:
        self._epochs.pop(version, None)  # a name that comes back moves to the end
        self._epoch += 1
        self._epochs[version] = self._epoch
        self._current = version
        if len(self._epochs) > self._max_known:
            del self._epochs[next(iter(self._epochs))]
        return self._epoch
