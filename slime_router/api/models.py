"""Which names of models are served: all of them, or with `--strict-model` only the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slime_router.errors import NotFound


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names of the one model; None serves it under any name."""

    known: frozenset[str] | None = None

    def check(self, body: Mapping[str, Any]) -> None:
        """Lets a request pass that names the model, or an adapter of it (`base:adapter`), or none.

        Raises:
            NotFound: it names another one.
        """
        name = body.get("model")
        if self.known is None or not isinstance(name, str):  # another type is the door's to refuse
            return
        if name not in self.known and name.rpartition(":")[0] not in self.known:
            raise NotFound(
                f"The model '{name}' does not exist.", param="model", code="model_not_found"
            )
