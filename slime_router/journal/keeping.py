"""What keeps things beyond the life of a router: its journal, or an archive that it shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from slime_router.journal.database import Table


class Keeping(Protocol):
    """`slime_router.archive.shared` has one."""

    @property
    def is_shared(self) -> bool:
        """Whether other routers keep things there, too."""

    def check_read(self) -> None:
        """Raises StartingUp before requests can be answered."""

    async def written(self) -> str | None:
        """Wait until all that was put is durable; why it is not, where it cannot be."""

    @property
    def must_be_written(self) -> bool:
        """Whether a reply that is not durable may not go out."""

    @property
    def missing(self) -> str:
        """What a receipt says of a turn that is not durable."""

    @property
    def refusal(self) -> str:
        """What is said where a reply may not go out."""

    @property
    def unanswered(self) -> int:
        """How often it did not answer when something was looked up."""

    async def unready(self) -> str | None:
        """Why the router should get no requests now; None where it should."""

    def put(self, table: Table, name: str, pack: Callable[[], bytes]) -> None:
        """Keep something by name; packed later, so it must hold still."""

    def drop(self, table: Table, name: str) -> None:
        """Record that `name` is gone."""

    def named(self, table: Table) -> Iterator[tuple[str, bytes]]:
        """What was kept, at the start."""

    async def news_of_workers(self, seen: str) -> tuple[str, list[tuple[str, bytes]]] | None:
        """Which workers are registered, and the version of that; `null` for one that was removed.

        None where `seen` is that version, or where nothing can be had.
        """

    async def look(self, table: Table, name: str) -> bytes | None:
        """What others have kept by this name meanwhile; None where there is nothing.

        Raises:
            NotDurable: nobody can tell at present.
        """

    def figures(self) -> dict[str, int]:
        """What was written, what waits, and what could not be kept."""
