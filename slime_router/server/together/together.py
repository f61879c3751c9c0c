"""The wiring of what several processes do as one: changes, aborts, and what they keep saying."""

from __future__ import annotations

from slime_router.archive.shared import SharedArchive
from slime_router.edge.plugin_guard import PluginGuard
from slime_router.generation.token_path import TokenPath
from slime_router.server.fleet import Fleet
from slime_router.server.together.aborts import Aborts
from slime_router.server.together.enrolment import Enrolment
from slime_router.server.together.exchange import Exchange
from slime_router.server.together.flights import Flights
from slime_router.server.together.launched import Launched
from slime_router.server.together.registry import Registry
from slime_router.server.upkeep import Upkeep
from slime_router.siblings.siblings import Siblings
from slime_router.supervisor import Supervisor


class Together:
    """What a process does with its siblings; nothing, where it has none."""

    def __init__(
        self,
        siblings: Siblings,
        fleet: Fleet,
        path: TokenPath,
        upkeep: Upkeep,
        plugins: PluginGuard,
        journal: SharedArchive | None,
    ) -> None:
        self.registry = Registry(
            fleet.pool, path.weights, siblings, on_weights=upkeep.on_weights, journal=journal
        )
        self.aborts = Aborts(fleet.pool, fleet.relay, path.admission, plugins, siblings)
        flights = Flights(path.sessions, path.store.sessions, path.fetch, journal, siblings)
        if siblings.others:
            path.sessions.elsewhere = flights
        place = siblings.place
        self._launched = None if place is None else Launched(place.launched, fleet)
        self.enrolment = Enrolment(fleet.pool, self.registry, journal)
        self.exchange = Exchange(fleet.pool, siblings, self.registry)

    async def start(self, supervisor: Supervisor) -> None:
        """From now on, as long as the supervisor lasts; the siblings are open."""
        await self.registry.take_over()
        self.exchange.start(supervisor)
        self.enrolment.start(supervisor)
        if self._launched is not None:
            self._launched.start(supervisor)
