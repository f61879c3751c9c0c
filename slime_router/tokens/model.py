"""What a tokenizer is made of: the parts of a checkpoint, once they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from slime_router.types import Message, TemplateOptions


class Renderer(Protocol):
    """What makes the text of a conversation. Never changes."""

    @property
    def is_jinja(self) -> bool:
        """Whether `source` is a Jinja template's."""

    @property
    def source(self) -> str:
        """A template's source; for a format written in Python, which one it is."""

    @property
    def has_developer_role(self) -> bool:
        """Whether messages of the role `developer` have a form of their own."""

    def render(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str:
        """The text of `messages`; BadRequest, in the format's own words, where it refuses them."""

    def check(self, name: str) -> None:
        """SetupError that begins with `name` where it cannot render at all."""


@dataclass(frozen=True, slots=True)
class Model:
    """All that a tokenizer is made of.

    Attributes:
        name: Directory or repository.
        hf: A fast tokenizer of `transformers`.
        renderer: What makes text of messages; None where the checkpoint has no chat format.
        config: `config.json`.
        generation_config: `generation_config.json`.
        is_multimodal: Whether the model takes pictures or sound too.
    """

    name: str
    hf: Any
    renderer: Renderer | None
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    is_multimodal: bool
