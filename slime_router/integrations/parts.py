"""What trainers of one prompt and one response take from a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_router.client import Row

NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
IN_A_CHAT = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"),
    *("stop", "stop_token_ids", "stop_regex", "skip_special_tokens", "min_tokens", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "custom_params"),
)
ONLY_OF_TEXT = (  # or of what a reply shows: the tokens are the same without them
    *("no_stop_trim", "spaces_between_special_tokens", "include_stop_str_in_output"),
    *("detokenize", "logprobs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A row as a prompt and a response; the three lists of the response have one length.

    `mask` is 1 where a token is trained. `logprobs` is None where the router kept none.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    mask: list[int]
    logprobs: list[float] | None

    @classmethod
    def of(cls, row: Row, max_response_len: int | None = None) -> Parts:
        """The response begins with the first trained token, and is cut at `max_response_len`."""
        start = len(row.tokens) - row.response_length
        end = len(row.tokens) if max_response_len is None else start + max_response_len
        return cls(
            prompt_ids=row.tokens[:start].tolist(),
            response_ids=row.tokens[start:end].tolist(),
            mask=row.loss_mask[start:end].tolist(),
            logprobs=None if row.logprobs is None else row.logprobs[start:end].tolist(),
        )


def longest(rows: Sequence[Row]) -> Row | None:
    """The row with the most trained tokens, where a trainer takes only one; None without any."""
    return max(rows, key=lambda row: row.trained_tokens, default=None)


def chat_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """SGLang's or vLLM's sampling parameters under the names of a chat, as session defaults.

    Raises:
        ValueError: a chat has no word for one that changes what is sampled.
    """
    given = {NAMES.get(name, name): value for name, value in sampling.items() if value is not None}
    for name in sorted(given.keys() - {*IN_A_CHAT, *ONLY_OF_TEXT}):
        if (name, given[name]) != ("n", 1):
            raise ValueError(
                f"The sampling parameter {name}={given[name]!r} is not one that a chat has."
            )
    return {name: given[name] for name in IN_A_CHAT if name in given}
