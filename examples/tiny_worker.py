"""The smallest policy there is, as an SGLang worker: numpy instead of a GPU.

    python examples/tiny_worker.py make tiny-model
    python examples/tiny_worker.py serve tiny-model --router http://127.0.0.1:30001

`make` writes a checkpoint (a tokenizer with a chat template) and its first weights: one logit for
each token of the vocabulary. `serve` samples from the softmax of these logits, whatever the
prompt is, and registers itself at a router, if it is given one. When it gets a new version of the
weights (`POST /update_weight_version`), it reads `tiny-model/VERSION.npy`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from slime_router.testing import FakeWorker, Script

FIRST_VERSION = "step-0"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT_LEN = 4096
MAX_TOKENS = 16  # of a reply, unless the request asks for less
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_checkpoint(folder: Path) -> None:
    """A byte-level tokenizer without merges, a chat template, and weights that know nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.normalizer = normalizers.NFC()  # as Qwen's
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    configs: dict[str, dict[str, Any]] = {
        "config.json": {
            "model_type": "qwen2",
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": CONTEXT_LEN,
            "eos_token_id": end,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHATML,
            "eos_token": "<|im_end|>",
        },
    }
    for name, content in configs.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    logits = np.zeros(tokenizer.get_vocab_size())
    for token in ("<|endoftext|>", "<|im_start|>"):
        logits[tokenizer.token_to_id(token)] = -30.0
    np.save(folder / f"{FIRST_VERSION}.npy", logits)


def log_softmax(logits: Any) -> Any:
    """Log-probabilities of logits, shape `[vocabulary]`."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


class Policy:
    """Samples replies; the weights are those of the version that the worker is to run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = np.random.default_rng(seed)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._end = int(self._tokenizer.token_to_id("<|im_end|>") or 0)
        self._version, self._logprobs = "", np.zeros(0)

    @property
    def end(self) -> int:
        """The token that ends a reply."""
        return self._end

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def use(self, version: str) -> None:
        """Reads the weights of a version, unless they are here already."""
        if version != self._version:
            self._logprobs = log_softmax(np.load(self._folder / f"{version}.npy"))
            self._version = version

    def sample(self, body: dict[str, Any]) -> Script:
        """A reply to a request of the router, with the log-probability of each token."""
        asked = (body.get("sampling_params") or {}).get("max_new_tokens") or MAX_TOKENS
        count = min(int(asked), MAX_TOKENS)
        drawn = self._random.choice(self.vocab_size, size=count, p=np.exp(self._logprobs))
        ids = [int(token) for token in drawn]
        if self._end in ids:
            ids = ids[: ids.index(self._end) + 1]
        return Script(ids=ids, logprobs=[float(self._logprobs[token]) for token in ids])


async def serve(folder: Path, router: str | None, seed: int) -> None:
    """Serve until it is ended, registered at the router if there is one."""
    policy = Policy(folder, seed)

    def reply(body: dict[str, Any]) -> Script:
        policy.use(str(worker.weight_version))
        return policy.sample(body)

    worker = FakeWorker(
        vocab_size=policy.vocab_size,
        context_len=CONTEXT_LEN,
        eos_ids=(policy.end,),
        tokenizer=policy,
        reply=reply,
        weight_version=FIRST_VERSION,
    )
    async with worker, aiohttp.ClientSession() as http:
        print(f"{worker.url} serves {folder}", flush=True)
        if router is not None:
            await register(http, router, worker.url)
        await asyncio.Event().wait()


async def register(http: aiohttp.ClientSession, router: str, url: str, tries: int = 60) -> None:
    """Says to the router where the worker is, as soon as the router is up."""
    for number in range(tries):
        try:
            async with http.post(f"{router}/workers", json={"url": url}) as answer:
                answer.raise_for_status()
                return
        except aiohttp.ClientConnectorError:
            if number + 1 == tries:
                raise
            await asyncio.sleep(1.0)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a checkpoint")
    make.add_argument("folder", type=Path)
    run = commands.add_parser("serve", help="serve one")
    run.add_argument("folder", type=Path)
    run.add_argument("--router", help="where to register, such as http://127.0.0.1:30001")
    run.add_argument("--seed", type=int, default=0, help="of what is sampled")
    args = parser.parse_args()
    if args.command == "make":
        make_checkpoint(args.folder)
    elif not (args.folder / "tokenizer.json").is_file():
        parser.error(f"no checkpoint in {args.folder}: `make {args.folder}` writes one")
    else:
        asyncio.run(serve(args.folder, args.router, args.seed))


if __name__ == "__main__":
    main()
