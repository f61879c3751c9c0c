"""Random conversations on real vocabularies, against slow and obvious rules.

held mode       the next prompt begins with all that is held; what follows is the template's
                own text after the reply, encoded
template mode   the next prompt reads as the template renders it, and holds the sampled ids
                wherever the whole sampled text stands in it
both            without drift, the prompt is the tokenization of the whole text
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from slime_router.tokens.tokenizer import After, Tokenizer
from slime_router.types import Message
from tests.examples import SCALE, examples
from tests.families.catalogue import family
from tests.talk import LENGTH, Talk, Turn, real_tokenizer, stop, user
from tests.vocabularies import NAMES

pytestmark = pytest.mark.tokenizers

LOOK_ALIKES = (
    "<|im_end|>",
    "<|im_",
    "<think>",
    "</think>",
    "</th",
    "<tool_call>",
    "[INST]",
    "[/INST]",
    "</s>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<start_of_turn>user",
    "<|end|>",
    "<|return|>",
    "<｜User｜>",
)
WORDS = (
    "HAVING",
    " Pantom",
    "Hello",
    "count to 1",
    "0",
    "'s",
    " the",
    "\n",
    "\n\n",
    "  ",
    " ",
    "\t",
    '{"name": "f"}',
    '"}}\n',
    "e\u0301",
    "\u0301",
    "é",
    "東",
    "京都",
    "🦩",
    "👩‍👩‍👧",
    "\ufffd",
    "\u1112\u1161",
    "x = [1, 2]\n    return",
    "https://a.b/c?d=e",
    "...",
    "ﬁ",
    "\u00a0",
    "ไทย",
)
texts = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(LOOK_ALIKES),
        st.text(st.characters(codec="utf-8"), max_size=6),
    ),
    max_size=6,
).map("".join)


def with_text(text: str) -> bool:
    """Templates refuse or drop messages that are blank."""
    return bool(text.strip())


samples = st.one_of(
    st.tuples(st.just("canonical"), texts.filter(with_text)),
    st.tuples(st.just("split"), st.lists(texts, min_size=1, max_size=3)),
    st.tuples(st.just("bytes"), st.lists(st.integers(0, 255), min_size=1, max_size=4)),
)
endings = st.sampled_from(("stop", "stop", "length"))
turns = st.lists(
    st.tuples(texts.filter(with_text), samples, endings, st.integers(1, 4)), min_size=2, max_size=4
)


def closer(stack: Talk) -> int:
    [found] = stack.tokenizer.encode(stack.template.findings.closer or "").tolist()
    return int(found)


def output_ids(tokenizer: Tokenizer, sample: tuple[str, Any]) -> list[int]:
    kind, value = sample
    if kind == "bytes":  # any ids of the low vocabulary: single bytes, odd merges
        return [token_id + 3 for token_id in value]
    parts = [value] if kind == "canonical" else value
    runs = [tokenizer.encode(part, After.TEXT).tolist() for part in parts]
    return [token_id for run in runs for token_id in run]


def echo(turn: Turn) -> Message | None:
    """What a client sends back; None where the template would not take it."""
    return turn.reply if with_text(turn.reply["content"]) else None


async def hold_conversation(stack: Talk, script, history: str) -> None:
    messages: list[Message] = []
    previous: Turn | None = None
    eos = closer(stack)
    for content, sample, ending, chunk_len in script:
        messages.append(user(content))
        ids = output_ids(stack.tokenizer, sample)
        finish = stop(eos) if ending == "stop" else LENGTH
        ids += [eos] if ending == "stop" else []
        if not ids:
            return
        turn = await stack.say(messages, ids, finish, chunk_len=chunk_len, history=history)
        check(stack, previous, turn, messages, history)
        reply = echo(turn)
        if reply is None:
            return
        messages.append(reply)
        previous = turn
    stack.cache.check_integrity()
    stack.store.check_integrity()


def check(stack: Talk, previous: Turn | None, turn: Turn, messages, history: str) -> None:
    rendered = stack.rendered(messages, turn.call)
    if previous is None:
        assert turn.ids == whole(stack.tokenizer, rendered)
        return
    if history == "held":
        check_held(stack, previous, turn, rendered)
    else:
        check_template(stack, previous, turn, rendered)


def check_held(stack: Talk, previous: Turn, turn: Turn, rendered: str) -> None:
    receipt = turn.prompt.receipt
    if receipt.status != "extended":
        assert "append" in receipt.reason, receipt
        return
    held = previous.held
    assert turn.ids[: len(held)] == held
    assert receipt.reused == len(held)
    suffix = turn.ids[len(held) :]
    after = After.CONTROL if stack.tokenizer.is_control(held[-1]) else After.TEXT
    if is_verbatim(stack, rendered):
        text = stack.tokenizer.decode(suffix, skip_special_tokens=False)
        assert rendered.endswith(text)
        assert suffix == stack.tokenizer.encode(text, after).tolist()
    else:  # what it reads as is not what it was made of: white space is eaten, or added
        ends = (rendered[start:] for start in range(len(rendered), -1, -1))
        assert any(suffix == stack.tokenizer.encode(end, after).tolist() for end in ends)


def check_template(stack: Talk, previous: Turn, turn: Turn, rendered: str) -> None:
    tokenizer = stack.tokenizer
    if is_verbatim(stack, rendered) and not is_sentencepiece(tokenizer):
        assert tokenizer.decode(turn.ids, skip_special_tokens=False) == rendered
    sampled = previous.output_ids
    text = tokenizer.decode([*previous.ids, *sampled], skip_special_tokens=False)
    # A first turn's prompt reads as it was rendered, so where the next text begins with it and
    # with what was sampled, every id must be there.
    if is_verbatim(stack, rendered) and rendered.startswith(text):
        assert turn.ids[: len(previous.held)] == previous.held
        rest = rendered[len(text) :]
        after = After.CONTROL if tokenizer.is_control(previous.held[-1]) else After.TEXT
        assert turn.ids[len(previous.held) :] == tokenizer.encode(rest, after).tolist()


@lru_cache(maxsize=2)
def library_tokenizer(directory: str) -> Any:
    return AutoTokenizer.from_pretrained(directory)


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """The library's own tokenization of the whole text."""
    hf = library_tokenizer(tokenizer._name)
    ids: list[int] = hf(text, add_special_tokens=False)["input_ids"]
    return ids


def is_verbatim(stack: Talk, text: str) -> bool:
    """Whether the tokenizer keeps the text's characters: some compose them (NFC)."""
    ids = stack.tokenizer.encode(text).tolist()
    return stack.tokenizer.decode(ids, skip_special_tokens=False) == text


def is_sentencepiece(tokenizer: Tokenizer) -> bool:
    return "prefix_free=False" in repr(tokenizer)


# Seams of other kinds: strict roles, thoughts that are stripped, control tokens that overlap or
# that eat white space, a header that ends a turn.
FAMILIES = ("gemma4_v5", "gptoss (trl)", "minimax_m2", "qwen3_5_think", "phi3_rstrip")


def tokenizer_of(name: str) -> Tokenizer:
    if name in NAMES:
        return real_tokenizer(name)
    return family(name.removesuffix(" (trl)")).tokenizer()


@pytest.mark.parametrize("history", ["held", "template"])
@pytest.mark.parametrize("name", [*NAMES, *FAMILIES])
def test_every_sampled_id_is_kept_and_the_rest_is_canonical(name, history):
    tokenizer = tokenizer_of(name)

    @settings(
        max_examples=examples(25),
        suppress_health_check=list(HealthCheck),
        derandomize=SCALE <= 1,
    )
    @given(turns)
    def run(script):
        asyncio.run(hold_conversation(Talk(tokenizer), script, history))

    run()


@pytest.mark.parametrize("name", [*NAMES, "gemma4_v5"])
def test_a_conversation_without_drift_is_tokenized_as_the_whole_text(name):
    """The model samples what the tokenizer makes of the whole text: nothing may differ from it."""
    tokenizer = tokenizer_of(name)
    seen = 0

    async def hold(script) -> int:
        stack, messages, count = Talk(tokenizer), [], 0
        eos = closer(stack)
        for content, reply in script:
            messages.append(user(content))
            call = stack.ask(messages)
            prompt = stack.rendered(messages, call)
            after = [*messages, {"role": "assistant", "content": reply}, user("next")]
            rendered = stack.rendered(after, call)
            end = len(prompt) + len(reply)
            if not rendered.startswith(prompt + reply):
                return count  # the template trims or rewrites this reply
            ids, head = whole(tokenizer, rendered[:end]), whole(tokenizer, prompt)
            if ids[: len(head)] != head:
                return count  # the text merges over the end of the prompt: no model samples so
            sample = ([*ids[len(head) :], eos], stop(eos))
            for history in ("template", "held"):
                turn = await stack.say(messages, *sample, history=history)
                if history == "held" and turn.prompt.receipt.status != "extended" and count:
                    assert "append" in turn.prompt.receipt.reason
                assert turn.ids == head, (history, turn.prompt.receipt)
            messages.append(turn.reply)
            if turn.reply["content"] != reply:
                return count
            count += 1
        return count

    @settings(
        max_examples=examples(25),
        suppress_health_check=list(HealthCheck),
        derandomize=SCALE <= 1,
    )
    @given(
        st.lists(
            st.tuples(texts.filter(with_text), texts.filter(with_text)), min_size=2, max_size=4
        )
    )
    def run(script):
        nonlocal seen
        seen += asyncio.run(hold(script))

    run()
    assert seen > 10, "the property was hardly ever put to the test"
