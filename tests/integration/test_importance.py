"""A trainer's importance ratio, with a policy in numpy: with masks it is 1 as long as nothing is
trained, and without them it is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_router.testing.script import Script
from tests.integration.gateway import served
from tests.stack import tiny_tokenizer

TOP_P, TOP_K, LENGTH = 0.6, 40, 24
PARAMS = {"temperature": 1.0, "top_p": TOP_P, "top_k": TOP_K, "max_new_tokens": LENGTH}


class Policy:
    """Logits that follow from the token before: a table, and a temperature of one."""

    def __init__(self, vocab_size: int) -> None:
        self._random = np.random.default_rng(7)
        self._table = self._random.normal(0, 2, (64, vocab_size))

    def logprobs(self, token: int) -> NDArray[np.float64]:
        """Over the whole vocabulary, after `token`."""
        logits = self._table[token % 64]
        found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum())
        return found

    def sample(self, body: dict[str, Any]) -> Script:
        """As SGLang samples and answers: top-k and top-p, then what is left, renormalised."""
        token, ids, plain, masks, within = body["input_ids"][-1], [], [], [], []
        for _ in range(LENGTH):
            logprobs = self.logprobs(token)
            order = np.argsort(-logprobs)[:TOP_K]
            probs = np.exp(logprobs[order])
            mask = order[np.cumsum(probs) - probs <= TOP_P]
            left = np.exp(logprobs[mask]) / np.exp(logprobs[mask]).sum()
            index = int(self._random.choice(len(mask), p=left))
            token = int(mask[index])
            ids.append(token)
            plain.append(float(logprobs[token]))
            masks.append(mask.tolist())
            within.append(float(np.log(left[index])))
        meta = {"output_token_sampling_mask": masks, "output_token_sampling_logprobs": within}
        return Script(ids=ids, logprobs=plain, meta=meta)


async def test_the_ratio_of_an_unchanged_policy_is_one_with_masks_and_is_not_without():
    policy = Policy(tiny_tokenizer().vocab_size)
    async with served({"reply": policy.sample, "eos_ids": ()}) as (router, _):
        body = {"input_ids": [5, 6], "sampling_params": {**PARAMS, "ignore_eos": True}}
        for _ in range(2):
            status, reply = await router.post("/sessions/s/generate", body)
            assert status == 200
            body["input_ids"] = [*body["input_ids"], *reply["output_ids"], 9]
        _, rows = await router.get("/sessions/s/rows")
    [row] = rows["rows"]
    offsets = row["mask_offsets"]
    with_masks, without = [], []
    for position in np.flatnonzero(row["loss_mask"]).tolist():
        token = row["tokens"][position]
        now = policy.logprobs(row["tokens"][position - 1])
        mask = row["mask_ids"][offsets[position] : offsets[position + 1]]
        assert 0 < len(mask) <= TOP_K
        behaviour = row["sampling_logprobs"][position]
        with_masks.append(np.exp(now[token] - np.log(np.exp(now[mask]).sum()) - behaviour))
        without.append(np.exp(now[token] - behaviour))
    assert len(with_masks) == 2 * LENGTH
    assert np.abs(np.array(with_masks) - 1).max() < 1e-4
    assert np.mean(without) < 0.8
    assert np.abs(np.array(without) - 1).min() > 1e-2
