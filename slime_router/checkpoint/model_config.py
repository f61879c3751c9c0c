"""What a checkpoint's configuration says of its model, read once and checked.

It stands in `config.json`, or in Mistral's own `params.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from slime_router.checkpoint.files import CheckpointFiles, bad_value, object_in
from slime_router.tokens.model import ModelConfig

CONFIG, PARAMS, GENERATION = "config.json", "params.json", "generation_config.json"
_TOWERS = ("vision_config", "visual", "audio_config", "img_processor", "vq_config")
_WRAPPERS = ("thinker_config", "llm_config")  # of models whose own config is one level deeper


def read_config(files: CheckpointFiles) -> ModelConfig:
    """What the files say, checked.

    Raises:
        SetupError: The file, the field in it, and what it should be.
    """
    config, filename = files.json(CONFIG), CONFIG
    if not config and (params := files.json(PARAMS)):
        config, filename = _config_of_params(params), PARAMS
    generation = files.json(GENERATION)
    processors = files.json("processor_config.json") | files.json("preprocessor_config.json")
    text = {**config, **object_in(config, "text_config", filename)}
    return ModelConfig(
        vocab_size=_number(text, "vocab_size", filename) or 0,
        context_len=_number(text, "max_position_embeddings", filename),
        experts_shape=_experts_shape(text),
        eos_ids=_eos_ids(generation, GENERATION) | _eos_ids(text, filename),
        architectures=_architectures(config, filename),
        model_type=str(config.get("model_type") or ""),
        is_multimodal=is_multimodal(config, processors),
        picture_id=_picture_id(config),
    )


def is_multimodal(config: Mapping[str, Any], processors: Mapping[str, Any]) -> bool:
    """Whether `config.json` has a part that sees or hears, or a processor prepares for one.

    `processors` is what the checkpoint's processor files say; empty where there are none.
    """
    if any(_is_tower(part.get(name)) for part in _parts(config) for name in _TOWERS):
        return True
    return any(_prepares_media(name) for name in processors)


def _config_of_params(params: Mapping[str, Any]) -> dict[str, Any]:
    seen = object_in(params, "multimodal", PARAMS)
    tower = params.get("vision_encoder") or next(
        (part for name, part in seen.items() if re.search("vision|whisper", name)), None
    )
    return {
        "model_type": "mistral",
        "vocab_size": params.get("vocab_size"),
        "max_position_embeddings": _number(params, "max_position_embeddings", PARAMS)
        or _number(params, "max_seq_len", PARAMS),
        "vision_config": tower,
    }


def _number(config: Mapping[str, Any], field: str, filename: str) -> int | None:
    number = config.get(field)
    if number is None or (_is_int(number) and number >= 0):
        return number
    raise bad_value(filename, field, "a number of tokens", number)


def _experts_shape(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """By the names that SGLang's `RoutedExpertsCapturer` reads; dense layers count too."""
    layers, experts = config.get("num_hidden_layers"), config.get("num_experts_per_tok")
    if not (isinstance(layers, int) and isinstance(experts, int) and layers > 0 and experts > 0):
        return None
    return layers, experts


def _eos_ids(config: Mapping[str, Any], filename: str) -> frozenset[int]:
    given = config.get("eos_token_id")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    if not all(map(_is_int, listed)):
        raise bad_value(filename, "eos_token_id", "a token id or a list of them", given)
    return frozenset(listed)


def _picture_id(config: Mapping[str, Any]) -> int | None:
    """The placeholder of a picture, by both names that `transformers` has for it."""
    given = config.get("image_token_id", config.get("image_token_index"))
    return given if _is_int(given) else None


def _architectures(config: Mapping[str, Any], filename: str) -> tuple[str, ...]:
    names = config.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise bad_value(filename, "architectures", "a list of names", names)
    return tuple(names)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (config[name] for name in _WRAPPERS if isinstance(config.get(name), Mapping))


def _is_tower(value: object) -> bool:
    return isinstance(value, Mapping | str) and bool(value)


def _prepares_media(name: str) -> bool:
    return name.startswith(("image_processor", "feature_extractor", "video_processor"))
