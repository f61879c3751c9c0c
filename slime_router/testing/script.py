"""What a fake worker says: a script, played by the rules of SGLang's `/generate`. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

SAMPLING_KEYS = frozenset(
    [
        "max_new_tokens",
        "stop",
        "stop_token_ids",
        "stop_regex",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "min_new_tokens",
        "n",
        "json_schema",
        "regex",
        "ebnf",
        "structural_tag",
        "ignore_eos",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "no_stop_trim",
        "stream_interval",
        "logit_bias",
        "sampling_seed",
        "custom_params",
        "beam_width",
        "watermark",
        "choice",
    ]
)
Decode: TypeAlias = Callable[[Sequence[int]], str]
DEFAULT_MAX_NEW_TOKENS = 128  # where a worker stops by default


class Refusal(Exception):
    """A request that a worker answers with 400. `is_late`: found after a stream has begun."""

    def __init__(self, body: Any, *, is_late: bool = True) -> None:
        super().__init__(str(body))
        self.body = body
        self.is_late = is_late


class ScriptTokenizer(Protocol):
    """Turns text into ids and back."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of `text`, without any added around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""


class Numbers:
    """Spells each id as `<7>`: a tokenizer for tests that need none. It cannot encode."""

    def decode(self, ids: Sequence[int]) -> str:
        """`<1><2>` for `[1, 2]`."""
        return "".join(f"<{token}>" for token in ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the worker samples for one prompt.

    The request's own limits hold: `max_new_tokens`, stop tokens and stop strings can end it
    before `ids` do. Where nothing ends it, it ends after `ids`, by `finish`.

    Attributes:
        ids: the tokens.
        finish: `"length"`, `"abort"`, or a whole `finish_reason` object.
        logprobs: one per id, None for a gap; by default -0.5, -1.0, ... in a ring of eight.
        meta: more fields of `meta_info`, in the last item (`weight_versions`, `routed_experts`).
    """

    ids: Sequence[int]
    finish: str | Mapping[str, Any] = "length"
    logprobs: Sequence[float | None] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def echo(prompt: Sequence[int], vocab_size: int, eos_ids: Sequence[int], count: int) -> Script:
    """The default script of a worker: equal prompts get equal answers."""
    seed = zlib.crc32(repr(list(prompt)).encode())
    ids = [(seed + 7919 * step) % vocab_size for step in range(count)]
    ids = [token for token in ids if token not in eos_ids]
    return Script(ids=[*ids, *eos_ids[:1]])


@dataclass(slots=True)
class Performance:
    """A script as it plays for one request: all it will sample, and why that ends."""

    prompt: list[int]
    ids: list[int]
    logprobs: list[float | None]
    finish: dict[str, Any]
    meta: Mapping[str, Any]
    text_end: int | None = None  # characters; a stop string and what follows is not shown
    hidden: int = 0  # stop tokens at the end that are not shown
    stops: Sequence[str] = ()  # text that may become one is not shown yet

    def text(self, count: int, decode: Decode) -> str:
        """The text after `count` tokens."""
        if count < len(self.ids):
            text = decode(self.ids[:count])
            return text[: len(text) - self._withheld(text)]
        text = decode(self.ids[: max(count - self.hidden, 0)])
        return text if self.text_end is None else text[: self.text_end]

    def _withheld(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        lengths = {
            len(stop[:size])
            for stop in self.stops
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        }
        return max(lengths, default=0)


def perform(
    script: Script,
    prompt: Sequence[int],
    params: Mapping[str, Any],
    *,
    context_len: int,
    eos_ids: Iterable[int],
    decode: Decode,
) -> Performance:
    """Plays `script` under the request's sampling parameters."""
    limit = params.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    limit = context_len - len(prompt) if limit is None else limit
    stops = _listed(params.get("stop"))
    stop_ids = {*_listed(params.get("stop_token_ids"))}
    if not params.get("ignore_eos"):
        stop_ids.update(eos_ids)
    is_trimmed = not params.get("no_stop_trim")
    logprobs = script.logprobs
    if logprobs is None:
        logprobs = [-0.5 * (step % 8 + 1) for step in range(len(script.ids))]

    def ended(count: int, finish: dict[str, Any], **cut: Any) -> Performance:
        ids = [*script.ids[:count]]
        shown = Performance([*prompt], ids, [*logprobs[:count]], finish, script.meta, **cut)
        shown.stops = stops if is_trimmed else ()
        return shown

    for count in range(1, min(len(script.ids), limit) + 1):
        token = script.ids[count - 1]
        if token in stop_ids:
            return ended(count, {"type": "stop", "matched": token}, hidden=int(is_trimmed))
        text = decode(script.ids[:count]) if stops else ""
        found = next((stop for stop in stops if stop in text), None)
        if found is not None:
            text_end = text.index(found) if is_trimmed else None
            return ended(count, {"type": "stop", "matched": found}, text_end=text_end)
    if limit <= len(script.ids):
        return ended(limit, {"type": "length", "length": limit})
    return ended(len(script.ids), _finish(script.finish, len(script.ids)))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | int) else list(value)


def _finish(finish: str | Mapping[str, Any], count: int) -> dict[str, Any]:
    if not isinstance(finish, str):
        return dict(finish)
    if finish == "abort":
        return aborted("Aborted")
    return {"type": finish, "length": count} if finish == "length" else {"type": finish}


def aborted(message: str) -> dict[str, Any]:
    """The finish reason of a generation that was aborted while it ran."""
    return {"type": "abort", "message": message, "status_code": None, "err_type": None}


def check(prompt: Sequence[int], params: Mapping[str, Any], context_len: int) -> None:
    """Refuses what a worker refuses.

    Raises:
        Refusal: with the body of the 400.
    """
    for name in params:
        if name not in SAMPLING_KEYS:
            expected = ", ".join(f"`{key}`" for key in sorted(SAMPLING_KEYS))
            body = {"error": f"unknown field `{name}`, expected one of {expected}"}
            raise Refusal(body, is_late=False)
    wanted = params.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS) or 0
    if not len(prompt):
        raise _value_error("The input_ids should not be empty.")
    if len(prompt) >= context_len:
        raise _value_error(
            f"The input ({len(prompt)} tokens) is longer than the model's context length "
            f"({context_len} tokens)."
        )
    if len(prompt) + wanted > context_len:
        raise _value_error(
            f"Requested token count exceeds the model's maximum context length of {context_len} "
            f"tokens. You requested a total of {len(prompt) + wanted} tokens."
        )
    if (params.get("temperature") or 0) < 0:
        raise _value_error("temperature must be non-negative.")


def _value_error(message: str) -> Refusal:
    return Refusal({"error": {"message": message}})


def parts(body: Mapping[str, Any], ids: Any) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Prompt and sampling parameters of each generation in a request, prompt-major."""
    prompts = ids if ids and isinstance(ids[0], list) else [ids]
    params = body.get("sampling_params") or {}
    for index, prompt in enumerate(prompts):
        own = params[index] if isinstance(params, list) else params
        for _ in range(max(own.get("n") or 1, 1)):
            yield prompt, own


def is_batch(body: Mapping[str, Any], ids: Any) -> bool:
    """Whether the answer is an array."""
    params = body.get("sampling_params") or {}
    return bool(ids and isinstance(ids[0], list)) or (
        isinstance(params, dict) and (params.get("n") or 1) > 1
    )
