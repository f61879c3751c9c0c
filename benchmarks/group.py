"""A group: many samples of one prompt, as GRPO draws them. The prompt is held once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.conversation import prose
from benchmarks.report import Measurement
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.types import Piece, token_ids

AIM_S = 3.0
AIM_COPIES = 1.0
BUDGET_TOKENS = 10**9
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    samples: int = 16_000
    prompt_len: int = 500  # tokens
    reply_len: int = 100  # tokens
    repeats: int = 3


FULL = Size()


def run(size: Size = FULL) -> list[Measurement]:
    """The time to look up the prompt and file a reply, for all samples; and what is held."""
    runs = [_insert_all(size) for _ in range(size.repeats)]
    used_s = median(used_s for used_s, _ in runs)
    held = runs[0][1]
    replies_len = size.samples * size.reply_len
    sent = size.samples * size.prompt_len + replies_len
    return [
        Measurement(
            f"{size.samples:,} replies to one prompt: all inserts",
            used_s,
            "s",
            AIM_S,
            f"{used_s / size.samples * 1e6:.1f} us of CPU for each look-up and insert; "
            f"{size.repeats} times",
        ),
        Measurement(
            f"{size.samples:,} replies to one prompt: copies of the prompt",
            (held - replies_len) / size.prompt_len,
            "x",
            AIM_COPIES,
            f"{held:,} tokens held, {sent:,} sent and sampled",
        ),
    ]


def _insert_all(size: Size) -> tuple[float, int]:
    """CPU seconds of all inserts into an empty cache, and the tokens that it holds then."""
    cache = PrefixCache(BUDGET_TOKENS, is_anchor=_is_anchor, is_control=lambda token: token == 0)
    text = prose(0, CHARS_PER_TOKEN * size.prompt_len)
    prompt = Piece(text, token_ids(np.arange(1, 1 + size.prompt_len)))
    replies = [_reply(number, size.reply_len) for number in range(size.samples)]
    before_s = time.process_time()
    for number, reply in enumerate(replies):
        _file(cache, prompt, reply, f"turn {number}")
    return time.process_time() - before_s, cache.size.tokens


def _is_anchor(text: str, index: int) -> bool:
    return text[index] == " "


def _reply(number: int, length: int) -> Piece:
    text = f"Answer {number}: {prose(31 * number, CHARS_PER_TOKEN * length)}"
    return Piece(text, token_ids(np.arange(number, number + length)), is_sampled=True)


def _file(cache: PrefixCache, prompt: Piece, reply: Piece, turn_id: str) -> None:
    match = cache.match_prefix("", prompt.text + " ", None)
    pieces = () if match.text_len else (prompt,)
    cache.insert(match.node, pieces, (reply,), session_id=turn_id, turn_id=turn_id, epoch=0)
    cache.unpin(match.node)
