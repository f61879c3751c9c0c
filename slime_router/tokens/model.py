"""What a tokenizer is made of: the parts of a checkpoint, once they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a checkpoint says of its model.

    Attributes:
        vocab_size: Ids that the model accepts; 0 if it does not say.
        context_len: Tokens that fit the model's context, where it says that.
        experts_shape: Of a model with experts, its layers and how many experts of each see a
            token: so many does a worker name for each. None if it does not say.
        eos_ids: Ids at which a generation ends by itself.
        architectures: Names of the model's classes.
        model_type: The model's family; "" if it does not say.
        is_multimodal: Whether the model takes pictures or sound too.
        picture_id: The token that a worker puts those of a picture in place of, if it says so.
    """

    vocab_size: int
    context_len: int | None
    experts_shape: tuple[int, int] | None
    eos_ids: frozenset[int]
    architectures: tuple[str, ...]
    model_type: str
    is_multimodal: bool
    picture_id: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """All that a tokenizer is made of.

    Attributes:
        name: Directory or repository.
        hf: A fast tokenizer of `transformers`.
        renderer: What makes text of messages; None where the checkpoint has no chat format.
        config: What the checkpoint says of the model.
        takes_media: Whether the vocabulary has tokens for pictures or sound.
    """

    name: str
    hf: Any
    renderer: Renderer | None
    config: ModelConfig
    takes_media: bool
