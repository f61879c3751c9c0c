"""How a worker is asked what it thinks of tokens, and what it answers. Pure.

The tokens are the prompt, and nothing is sampled. A worker gives the log-probability of each token
after those before it, from `logprob_start_len` on; the first of them follows nothing that it knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from slime_router.engine import answer
from slime_router.engine.answer import Item
from slime_router.errors import WorkerFailed
from slime_router.trajectory.measures.scores import TeacherScore
from slime_router.types import TokenIds


def score_body(tokens: TokenIds, *, start: int, top: int, rid: str) -> bytes:
    """The body of `POST /generate` for the tokens `[start, len(tokens))`, with `top` likeliest."""
    body: dict[str, Any] = {
        "input_ids": np.ascontiguousarray(tokens),
        "rid": rid,
        "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": max(start - 1, 0),
        "stream": False,
    }
    if top:
        body["top_logprobs_num"] = top
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def read_score(
    payload: bytes, tokens: TokenIds, *, start: int, top: int, vocab_size: int
) -> TeacherScore:
    """The score in a worker's answer.

    Raises:
        WorkerFailed: it is about other tokens, or cannot be read.
    """
    item = answer.load_item(payload)
    meta = answer.check_shape(item)
    begin = max(start - 1, 0)
    ids = tokens[begin:].tolist()
    entries = meta.get("input_token_logprobs")
    found = answer.logprobs(_named(entries, ids, vocab_size), ids) if entries else []
    if len(found) != len(ids):
        raise WorkerFailed(f"The worker's logprobs are not those of {len(ids)} tokens.")
    if None in found[1:]:
        raise WorkerFailed("The worker lacks the logprob of a token.")
    logprobs = np.full(len(tokens), np.nan, np.float32)
    logprobs[begin + 1 :] = found[1:]
    shape = (len(tokens), top)
    top_ids, top_logprobs = np.full(shape, -1, np.int32), np.full(shape, np.nan, np.float32)
    if top:
        lists = answer.top_logprobs(meta.get("input_top_logprobs"), ids, vocab_size)
        for position, likeliest in enumerate(lists[1:], begin + 1):
            _put(likeliest[:top], top_ids[position], top_logprobs[position])
    for array in (logprobs, top_ids, top_logprobs):
        array.setflags(write=False)
    version = answer.version(meta.get("weight_version"))
    return TeacherScore(logprobs, top_ids, top_logprobs, version)


def check_prompt(meta: Item, prompt: TokenIds, top: int, vocab_size: int) -> None:
    """The logprobs of a whole prompt, which a client reads, with `top` likeliest tokens each.

    Raises:
        WorkerFailed: they are about other tokens, or are not valid.
    """
    ids = prompt.tolist()
    entries = meta.get("input_token_logprobs")
    if not entries or None in answer.logprobs(_named(entries, ids, vocab_size), ids)[1:]:
        raise WorkerFailed(f"The worker's logprobs are not those of {len(ids)} tokens.")
    if top:
        answer.top_logprobs(meta.get("input_top_logprobs"), ids, vocab_size)


def _named(entries: Any, ids: list[int], vocab_size: int) -> Any:
    """The entries; SGLang writes 0 for the last id of its vocabulary, as for ids beyond it."""
    if type(entries) is not list or len(entries) != len(ids) or vocab_size - 1 not in ids:
        return entries
    return [
        [entry[0], token] if token == vocab_size - 1 and _is_unnamed(entry) else entry
        for entry, token in zip(entries, ids, strict=True)
    ]


def _is_unnamed(entry: Any) -> bool:
    return type(entry) is list and len(entry) > 1 and entry[1] == 0


def _put(
    likeliest: list[tuple[float, int]], ids: NDArray[np.int32], logprobs: NDArray[np.float32]
) -> None:
    count = len(likeliest)
    logprobs[:count] = [logprob for logprob, _ in likeliest]
    ids[:count] = [token for _, token in likeliest]
