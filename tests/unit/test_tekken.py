"""Mistral's tekken.json: the ids are those of `mistral-common`, whatever the text between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import BadRequest
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from tests.checkpoints import build_tekken_checkpoint
from tests.talk import real_tokenizer

pytestmark = pytest.mark.slow

WHOLE = "tekken_240911.json"
FORMATS = (WHOLE, "v7", "v11", "v13", "v15")
PLAIN = TemplateOptions()
SYSTEM: Message = {"role": "system", "content": "Be short.\n\nAnd kind."}
ASK: Message = {"role": "user", "content": "  What's the weather in 東京? 🙂\n"}
REPLY: Message = {"role": "assistant", "content": "I don't know - sorry!"}
AGAIN: Message = {"role": "user", "content": "HAVING 1234,5"}


def call(*ids: str) -> Message:
    calls = [
        {
            "id": each,
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln", "n": index}},
        }
        for index, each in enumerate(ids)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(call_id: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ONE, TWO = "abcdefghi", "jklmnopq1"
CONVERSATIONS: dict[str, list[Message]] = {
    "one question": [ASK],
    "three turns": [ASK, REPLY, AGAIN],
    "a call": [ASK, call(ONE), result(ONE, '{"t": 21}')],
    "a call and its end": [ASK, call(ONE), result(ONE, "sunny"), REPLY, AGAIN],
    "two calls": [ASK, call(ONE, TWO), result(ONE, "sunny"), result(TWO, "rain")],
    "two loops": [ASK, call(ONE), result(ONE, "a"), call(TWO), result(TWO, "b")],
}


@pytest.fixture(scope="module", params=FORMATS)
def checkpoint(request, tmp_path_factory) -> Path:
    name = request.param
    directory = tmp_path_factory.mktemp("tekken")
    return build_tekken_checkpoint(directory, WHOLE, None if name == WHOLE else name)


@pytest.fixture(scope="module")
def ours(checkpoint) -> Iterator[Tokenizer]:
    tokenizer = load_tokenizer(str(checkpoint))
    yield tokenizer
    tokenizer.close()


@pytest.fixture(scope="module")
def theirs(checkpoint) -> Any:  # a MistralTokenizer
    return MistralTokenizer.from_file(str(checkpoint / "tekken.json"), mode=ValidationMode.test)


def test_a_conversation_has_the_ids_of_mistral_common(ours, theirs):
    shown = 0
    for name, has_system, has_tools in product(CONVERSATIONS, (False, True), (False, True)):
        messages = [SYSTEM, *CONVERSATIONS[name]] if has_system else CONVERSATIONS[name]
        tools = [TOOL] if has_tools else None
        request = ChatCompletionRequest.from_openai(messages=messages, tools=tools)
        expected = theirs.encode_chat_completion(request).tokens
        text = ours.render(messages, TemplateOptions(tools=tuple(tools or ())))
        assert ours.encode(text).tolist() == expected, (name, has_system, has_tools)
        pieces = ours.encode_pieces(text)
        assert [i for piece in pieces for i in piece.ids.tolist()] == expected
        shown += 1
    assert shown == 24


def test_each_token_stands_for_the_bytes_that_it_stands_for_there(ours, theirs):
    reader = theirs.instruct_tokenizer.tokenizer
    first = reader.num_special_tokens
    for token_id in range(first, reader.n_words, 7):
        assert ours.token_bytes(token_id) == reader.id_to_byte_piece(token_id)
    assert ours.eos_ids == {reader.eos_id}
    assert ours.vocab_size == reader.n_words


def test_a_final_message_is_continued(ours):
    options = TemplateOptions(continue_final_message=True, add_generation_prompt=False)
    begun = {"role": "assistant", "content": "It is"}
    text = ours.render([ASK, begun], options)
    assert text == ours.render([ASK], PLAIN) + "It is"


def test_a_message_that_spells_a_control_token_is_refused_not_changed(ours):
    for spelled in ("say [INST] please", "</s>", "x<SPECIAL_999>" if ours.eos_ids else ""):
        with pytest.raises(BadRequest, match="spells a control token") as caught:
            ours.render([{"role": "user", "content": spelled}], PLAIN)
        assert caught.value.param == "messages"
    harmless = "[INST /s> <s"
    assert harmless in ours.render([{"role": "user", "content": harmless}], PLAIN)


def test_what_the_format_refuses_is_a_bad_request_in_its_own_words(ours):
    late = [ASK, REPLY, SYSTEM, {"role": "tool", "tool_call_id": ONE, "content": "x"}]
    with pytest.raises(BadRequest, match=r"cannot render these messages: .*role"):
        ours.render(late, PLAIN)
    with pytest.raises(BadRequest, match="cannot render"):
        ours.render([], PLAIN)


def test_an_empty_reply_is_left_out_as_a_worker_leaves_it_out(ours):
    empty = {"role": "assistant", "content": "\n"}
    assert ours.render([ASK, empty], PLAIN) == ours.render([ASK], PLAIN)


def test_reasoning_is_no_reason_to_refuse(ours):
    thinking = {**REPLY, "reasoning_content": "hm"}
    text = ours.render([ASK, thinking, AGAIN], PLAIN)
    plain = ours.render([ASK, REPLY, AGAIN], PLAIN)
    assert text == plain or "[THINK]hm[/THINK]" in text


def test_an_effort_is_what_the_format_makes_of_it(ours, theirs):
    options = TemplateOptions(kwargs={"reasoning_effort": "high", "thinking": True})
    if theirs.instruct_tokenizer.tokenizer.version.supports_model_settings:
        request = ChatCompletionRequest.from_openai(messages=[ASK], reasoning_effort="high")
        expected = theirs.encode_chat_completion(request).tokens
        assert ours.encode(ours.render([ASK], options)).tolist() == expected
        assert ours.render([ASK], options) != ours.render([ASK], PLAIN)
    else:
        with pytest.raises(BadRequest, match="reasoning_effort"):
            ours.render([ASK], options)


def test_the_self_test_finds_how_turns_close(ours, checkpoint):
    version = json.loads((checkpoint / "tekken.json").read_text())["config"]["version"]
    found = ChatTemplate(ours).findings
    assert found.has_template
    assert found.prints_messages
    assert found.closer == "</s>"
    assert found.appends_after_user
    assert found.appends_with_system == (version != "v3"), "version 3 moves the system prompt"


@pytest.mark.tokenizers
def test_the_vocabulary_is_that_of_the_fast_tokenizer(tmp_path):
    ours = load_tokenizer(str(build_tekken_checkpoint(tmp_path, "tekken_240718.json")))
    fast = real_tokenizer("mistral_nemo")
    texts = [str(each["content"]) for talk in CONVERSATIONS.values() for each in talk]
    texts += [Path(__file__).read_text(encoding="utf-8"), "".join(map(chr, range(0x3000)))]
    for text in texts:
        assert ours.encode(text).tolist() == fast.encode(text).tolist()
    assert all(ours.token_bytes(i) == fast.token_bytes(i) for i in range(1000, ours.vocab_size, 11))
    conversation = [ASK, REPLY, AGAIN]
    assert ours.render(conversation, PLAIN) == fast.render(conversation, PLAIN)
