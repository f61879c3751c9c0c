"""Whether a model takes pictures and sound, read off the files of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TOWERS = ("vision_config", "visual", "audio_config", "img_processor", "vq_config")
_WRAPPERS = ("thinker_config", "llm_config")  # of models whose own config is one level deeper


def is_multimodal(config: Mapping[str, Any], processors: Mapping[str, Any]) -> bool:
    """Whether `config.json` has a part that sees or hears, or a processor prepares for one.

    `processors` is what the checkpoint's processor files say; empty where there are none.
    """
    if any(_is_tower(part.get(name)) for part in _parts(config) for name in _TOWERS):
        return True
    return any(_prepares_media(name) for name in processors)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (config[name] for name in _WRAPPERS if isinstance(config.get(name), Mapping))


def _is_tower(value: object) -> bool:
    return isinstance(value, Mapping | str) and bool(value)


def _prepares_media(name: str) -> bool:
    return name.startswith(("image_processor", "feature_extractor", "video_processor"))
