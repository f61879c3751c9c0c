"""What the `model` of a request names: the one model, an adapter of it, or another model."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any

from slime_router.errors import NotFound


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names of the one model and of its adapters.

    Attributes:
        default: its name for a request that gives none.
        served: its names; None serves it under any name.
        adapters: those of its adapters that may be named in its place.
    """

    default: str
    served: Collection[str] | None = None
    adapters: Container[str] = ()

    def checked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body of a request that names the model, an adapter, `base:adapter`, or nothing.

        An adapter's name alone, as vLLM has it, is spelled out: SGLang would sample the base model.

        Raises:
            NotFound: it names another model.
        """
        name = body.get("model")
        if not isinstance(name, str):  # other types are for the dialect to refuse
            return body
        if self._is_adapter(name):
            return {**body, "lora_path": name}
        served = self.served
        if served is not None and name not in served and name.rpartition(":")[0] not in served:
            raise NotFound(
                f"The model '{name}' does not exist.", param="model", code="model_not_found"
            )
        return body

    def spelled_out(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The body of one who only reads what was sampled, with the adapter that its model names.

        Another model's name is ignored.
        """
        name = body.get("model")
        if not isinstance(name, str):
            return body
        adapter = name if self._is_adapter(name) else adapter_in(name, self.default)
        return body if adapter is None else {**body, "lora_path": adapter}

    def _is_adapter(self, name: str) -> bool:
        own = self.served or (self.default,)
        return name in self.adapters and name not in own


def adapter_in(model: Any, served_model: str) -> str | None:
    """The adapter in `base:adapter`; the served model's own name may have colons."""
    if not isinstance(model, str) or model == served_model:
        return None
    adapter = model.removeprefix(f"{served_model}:")
    if adapter == model:
        adapter = model.partition(":")[2]
    return adapter.strip() or None
