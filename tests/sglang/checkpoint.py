"""Makes a tiny model with random weights that a real worker serves.

    python -m tests.sglang.checkpoint DIRECTORY=SEED ...

Runs in the worker's own environment, which has torch. The tokenizer is a real byte-level BPE: it
learns its merges from the Python files of the standard library. Another seed gives other weights
after the same tokenizer, as a trainer's next step does.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.tiny import CONTEXT_LEN, SPECIAL_TOKENS, build_tiny_checkpoint

VOCAB_LEN = 8192  # the special tokens, which stand at the end, included
END_OF_TURN = "<|im_end|>"
INITIALIZER_RANGE = 0.2  # ten times the usual: less gives nearly flat logits


def build_checkpoint(directory: Path, seed: int) -> None:
    """Write tokenizer, chat template, configuration and weights into `directory`."""
    build_tiny_checkpoint(directory)  # gives the template, and how text is cut before BPE
    tokenizer_path = directory / "tokenizer.json"
    tokenizer = train(Tokenizer.from_file(str(tokenizer_path)))
    tokenizer.save(str(tokenizer_path))
    settings_path = directory / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # it names the ids of the smaller vocabulary
    settings_path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    torch.manual_seed(seed)
    eos_id = tokenizer.token_to_id(END_OF_TURN)
    assert eos_id == VOCAB_LEN - 1, "the merges did not fill the vocabulary"
    Qwen3MoeForCausalLM(model_config(eos_id)).save_pretrained(directory)


def train(pattern: Tokenizer) -> Tokenizer:
    """A BPE of `VOCAB_LEN` tokens that cuts and joins text as `pattern` does."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = pattern.normalizer
    tokenizer.pre_tokenizer = pattern.pre_tokenizer
    tokenizer.decoder = pattern.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_LEN - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def corpus() -> Iterator[str]:
    """The text of every top-level module of the standard library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def model_config(eos_id: int) -> Qwen3MoeConfig:
    """The smallest Qwen3 that still has every part: layers, heads, grouped keys, experts."""
    return Qwen3MoeConfig(
        vocab_size=VOCAB_LEN,
        hidden_size=64,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=CONTEXT_LEN,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=None,
        eos_token_id=eos_id,
        dtype="float32",
    )


def main() -> None:
    for model in sys.argv[1:]:
        directory, _, seed = model.rpartition("=")
        build_checkpoint(Path(directory), int(seed))


if __name__ == "__main__":
    main()
