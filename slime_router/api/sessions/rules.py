"""What flags decide about the sampling of all requests: `--sampling-pins` and the like."""

from __future__ import annotations

import orjson

from slime_router.api.sessions.request import read_pins
from slime_router.api.token_ids import Vocabulary
from slime_router.config import Config
from slime_router.engine.rules import SamplingRules
from slime_router.errors import BadRequest, SetupError
from slime_router.types import Pins


def sampling_rules(config: Config, vocabulary: Vocabulary) -> SamplingRules:
    """The rules for every call.

    Raises:
        SetupError: the pins are not what they must be, or logprobs are wanted and not recorded.
    """
    if config.keep_top_logprobs and config.capture in ("tokens", "off"):
        raise SetupError(f"--keep-top-logprobs: --capture {config.capture} records no logprobs")
    fits = config.capture == "distribution" and config.mask_top_k > 0
    return SamplingRules(
        _pins(config.sampling_pins, vocabulary),
        config.mask_top_k if fits else None,
        min(config.keep_top_logprobs, vocabulary.vocab_size),
    )


def _pins(text: str | None, vocabulary: Vocabulary) -> Pins:
    if text is None:
        return Pins()
    try:
        return read_pins(orjson.loads(text), vocabulary)
    except orjson.JSONDecodeError as exc:
        raise SetupError(f"--sampling-pins takes a JSON object: {exc}") from exc
    except BadRequest as exc:
        raise SetupError(f"--sampling-pins: {exc.message}") from exc
