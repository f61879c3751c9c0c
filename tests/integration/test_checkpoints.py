"""Conversations on checkpoints without tokenizer.json, or without a template: held tokens stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.testing import FakeWorker, Script
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message
from tests.checkpoints import (
    RENDERS,
    build_deepseek_checkpoint,
    build_glm_checkpoint,
    build_tekken_checkpoint,
    build_tiktoken_checkpoint,
    slow_code,
)
from tests.integration.gateway import Served, Words, assistant, serving, user
from tests.talk import Talk, stop
from tests.tiny import CONTEXT_LEN


def kimi_k3(directory: Path) -> Path:
    return build_tiktoken_checkpoint(
        directory, code=slow_code(RENDERS), template=None, architecture="KimiK3ForCausalLM"
    )


def v4(directory: Path) -> Path:
    return build_deepseek_checkpoint(directory, "DeepseekV4ForCausalLM", "deepseek_v4")


def tekken(version: str) -> Callable[[Path], Path]:
    return lambda directory: build_tekken_checkpoint(directory, "tekken_240911.json", version)


# How to build it, the token that ends a turn, and what the next question is put between.
CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "kimi_k2": (
        build_tiktoken_checkpoint,
        "<|im_end|>",
        "<|im_user|>user<|im_middle|>{}<|im_end|><|im_assistant|>assistant<|im_middle|>",
    ),
    "kimi_k3": (
        kimi_k3,
        "<|im_end|>",
        "<|im_user|>user<|im_middle|>{}<|im_end|><|im_assistant|>assistant<|im_middle|>",
    ),
    "deepseek_v32": (
        build_deepseek_checkpoint,
        "<｜end▁of▁sentence｜>",
        "<｜User｜>{}<｜Assistant｜></think>",
    ),
    "deepseek_v4": (v4, "<｜end▁of▁sentence｜>", "<｜User｜>{}<｜Assistant｜></think>"),
    "glm": (build_glm_checkpoint, "<|endoftext|>", "<|user|>{}<|assistant|><think>"),
    "tekken_v7": (tekken("v7"), "</s>", "[INST]{}[/INST]"),
    "tekken_v13": (tekken("v13"), "</s>", "[INST]{}[/INST]"),
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def built(request, tmp_path_factory) -> tuple[Path, str, str]:
    build, closer, question = CHECKPOINTS[request.param]
    return build(tmp_path_factory.mktemp("checkpoint")), closer, question


@pytest.fixture(scope="module")
def tokenizer(built) -> Tokenizer:
    named = "glm-5.3" if built[1] == "<|endoftext|>" else None
    return load_tokenizer(str(built[0]), trust_remote_code=True, chat_template=named)


def split_apart(tokenizer: Tokenizer, text: str) -> list[int]:
    """A sample of `text` in tokens that the tokenizer would not choose: one per byte."""
    ids = {tokenizer.token_bytes(each): each for each in reversed(range(tokenizer.vocab_size))}
    return [ids[bytes([byte])] for byte in text.encode()]


@pytest.mark.parsers
async def test_held_tokens_are_extended_by_what_the_format_puts_behind(built, tokenizer):
    _, closer, question = built
    [end] = tokenizer.encode(closer).tolist()
    talk = Talk(tokenizer)
    sampled = split_apart(tokenizer, "Hello, I'm HAVING 東 1234.")
    assert sampled != tokenizer.encode("Hello, I'm HAVING 東 1234.").tolist()
    messages: list[Message] = [user("Hi there")]
    held: list[int] = []
    for index in range(3):
        turn = await talk.say(messages, [*sampled, end], stop(end))
        if index:
            suffix = question.format(f"and {index}?")
            assert turn.ids == held + tokenizer.encode(suffix).tolist()
            assert turn.prompt.receipt.status == "extended"
        held = turn.held
        messages += [turn.reply, user(f"and {index + 1}?")]


@pytest.mark.parsers
async def test_in_template_mode_the_prompt_is_what_the_format_renders(built, tokenizer):
    talk = Talk(tokenizer, history="template")
    [end] = tokenizer.encode(built[1]).tolist()
    first = await talk.say([user("Hi")], [*tokenizer.encode("Hello!").tolist(), end], stop(end))
    messages = [user("Hi"), first.reply, user("more")]
    second = await talk.say(messages, [end], stop(end))
    assert second.ids == tokenizer.encode(talk.rendered(messages, second.call)).tolist()


def worker_with(tokenizer: Tokenizer, ids: Sequence[int]) -> FakeWorker:
    """A worker that always samples `ids`."""
    return FakeWorker(
        vocab_size=tokenizer.vocab_size,
        context_len=CONTEXT_LEN,
        eos_ids=sorted(tokenizer.eos_ids),
        tokenizer=Words(tokenizer),
        reply=lambda _: Script(ids=tuple(ids)),
    )


async def ask(router: Served, messages: list[Message], **fields: Any) -> tuple[str, Any]:
    return await router.chat(messages, max_tokens=200, **fields)


@pytest.mark.parsers
@pytest.mark.parametrize("name", ["kimi_k2", "kimi_k3", "deepseek_v32"])
@pytest.mark.parametrize("stream", [False, True])
async def test_two_turns_through_the_whole_router(name, stream, tmp_path):
    build, closer, question = CHECKPOINTS[name]
    path = str(await asyncio.to_thread(build, tmp_path))
    tokenizer = await asyncio.to_thread(load_tokenizer, path, trust_remote_code=True)
    [end] = tokenizer.encode(closer).tolist()
    sampled = [*split_apart(tokenizer, "I'm HAVING fun"), end]
    async with (
        worker_with(tokenizer, sampled) as worker,
        serving(worker.url, hf_checkpoint=path, trust_remote_code=True) as router,
    ):
        text, receipt = await ask(router, [user("Hello")], stream=stream)
        assert text == "I'm HAVING fun"
        assert receipt["status"] == "fresh"
        messages = [user("Hello"), assistant(text), user("More?")]
        _, receipt = await ask(router, messages, stream=stream)
        assert receipt["status"] == "extended"
        first, second = (request.body["input_ids"] for request in worker.requests)
        assert second == first + sampled + tokenizer.encode(question.format("More?")).tolist()
        status, body = await router.get("/template")
        assert status == 200
        assert body["has_template"]
        assert body["source"] == tokenizer.chat_template
