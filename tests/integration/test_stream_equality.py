"""A stream says what the whole reply says, at each door and for replies of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from slime_router.testing.script import Script
from tests.integration.random_replies import COUNT, Answer, Reply, ask, replies, staged
from tests.stack import tiny_tokenizer
from tests.unit.formats import FORMATS

pytestmark = pytest.mark.parsers


def chat_whole(answer: Answer) -> Any:
    body = answer.body
    choices = [
        {
            "content": choice["message"]["content"] or "",
            "reasoning": choice["message"]["reasoning_content"] or "",
            "calls": [_called(call) for call in choice["message"].get("tool_calls", ())],
            "ids": choice.get("token_ids"),
            "logprobs": choice["logprobs"] and choice["logprobs"]["content"],
            "finish": (choice["finish_reason"], choice["matched_stop"]),
            "meta": _plain_meta(choice.get("meta_info")),
        }
        for choice in body["choices"]
    ]
    return choices, body["usage"], body.get("prompt_token_ids"), answer.recorded


def chat_streamed(answer: Answer) -> Any:
    *chunks, usage, done = answer.events
    assert done == "[DONE]"
    said = [(chunk, chunk["choices"][0]) for chunk in chunks]
    indexes = sorted({choice["index"] for _, choice in said})
    prompts = [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk]
    choices = [_folded([each for _, each in said if each["index"] == i]) for i in indexes]
    return choices, usage["usage"], prompts[0] if prompts else None, answer.recorded


def _folded(parts: Sequence[Any]) -> Any:
    deltas = [part["delta"] for part in parts]
    calls: list[dict[str, str]] = []
    for call in [call for delta in deltas for call in delta.get("tool_calls", ())]:
        if call["index"] == len(calls):
            calls.append({"name": call["function"]["name"], "arguments": ""})
        calls[call["index"]]["arguments"] += call["function"]["arguments"]
    has_logprobs = any(part.get("logprobs") for part in parts)
    return {
        "content": "".join(delta.get("content") or "" for delta in deltas),
        "reasoning": "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "calls": calls,
        "ids": _joined(parts, "token_ids"),
        "logprobs": [
            entry for part in parts if part.get("logprobs") for entry in part["logprobs"]["content"]
        ]
        if has_logprobs
        else None,
        "finish": (parts[-1]["finish_reason"], parts[-1]["matched_stop"]),
        "meta": _plain_meta(parts[-1].get("meta_info")),
    }


def _joined(parts: Sequence[Any], name: str) -> list[Any] | None:
    given = [part[name] for part in parts if part.get(name) is not None]
    return [value for values in given for value in values] if given else None


def _called(call: Any) -> Any:
    assert call["type"] == "function"
    assert call["id"]
    return call["function"]


def _plain_meta(meta: Any) -> Any:
    """Without the id, which is each request's own, and lists of which a worker may send parts."""
    return meta and {
        key: value for key, value in meta.items() if key != "id" and "logprobs" not in key
    }


def completions_whole(answer: Answer) -> Any:
    body = answer.body
    choices = [
        {
            "text": choice["text"],
            "ids": choice.get("token_ids"),
            "prompt": choice.get("prompt_token_ids"),
            "logprobs": choice["logprobs"],
            "finish": (choice["finish_reason"], choice["matched_stop"]),
        }
        for choice in body["choices"]
    ]
    return choices, body["usage"], answer.recorded


def completions_streamed(answer: Answer) -> Any:
    *chunks, usage, done = answer.events
    assert done == "[DONE]"
    said = [chunk["choices"][0] for chunk in chunks]
    choices = []
    for index in sorted({choice["index"] for choice in said}):
        parts = [choice for choice in said if choice["index"] == index]
        lists = [part["logprobs"] for part in parts if part["logprobs"] is not None]
        names = lists[0] if lists else {}
        choices.append(
            {
                "text": "".join(part["text"] for part in parts),
                "ids": _joined(parts, "token_ids"),
                "prompt": _joined(parts, "prompt_token_ids"),
                "logprobs": {name: _joined(lists, name) for name in names} or None,
                "finish": (parts[-1]["finish_reason"], parts[-1]["matched_stop"]),
            }
        )
    return choices, usage["usage"], answer.recorded


def messages_whole(answer: Answer) -> Any:
    body = answer.body
    blocks = [_unsigned(block) for block in body["content"]]
    return blocks, body["stop_reason"], body["stop_sequence"], body["usage"], answer.recorded


def messages_streamed(answer: Answer) -> Any:
    start, *middle, end, stop = answer.named_events
    assert (start["type"], stop["type"]) == ("message_start", "message_stop")
    blocks: list[Any] = []
    texts: list[str] = []
    for event in middle:
        match event["type"]:
            case "content_block_start":
                blocks.append(dict(event["content_block"]))
                texts = []
            case "content_block_stop":
                text, kind = "".join(texts), blocks[-1]["type"]
                if kind == "tool_use":
                    blocks[-1]["input"] = _input(text)
                else:
                    blocks[-1][kind] = text
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                kind = delta["type"].removesuffix("_delta")
                if kind == "signature":
                    blocks[-1]["signature"] = delta["signature"]
                else:
                    texts.append(delta["partial_json" if kind == "input_json" else kind])
    delta = end["delta"]
    content = [_unsigned(block) for block in blocks]
    return content, delta["stop_reason"], delta["stop_sequence"], end["usage"], answer.recorded


def _input(text: str) -> Any:
    """Of what is not an object the whole reply has the text under a name; a stream that had begun
    the object has it there, too, and one that was cut gives just the text.
    """
    try:
        given = json.loads(text or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        return {"_raw": text}
    return {"_raw": given["_raw"]} if "_raw" in given else given


def _unsigned(block: dict[str, Any]) -> Any:
    """Without what is each reply's own."""
    if block["type"] == "tool_use":
        assert block["id"]
    if block["type"] == "thinking":
        assert block["signature"]
    return {key: value for key, value in block.items() if key not in ("id", "signature")}


def responses_whole(answer: Answer) -> Any:
    return _response(answer.body), answer.recorded


def responses_streamed(answer: Answer) -> Any:
    """What the deltas spell is what the done events say, and the response that ends the stream."""
    given = answer.named_events
    last = given[-1]
    response = last["response"]
    assert last["type"] == f"response.{response['status']}"
    spelled: dict[str, str] = {}
    for event in given:
        if event["type"].endswith(".delta"):
            spelled[event["item_id"]] = spelled.get(event["item_id"], "") + event["delta"]
        elif event["type"] == "response.output_item.done":
            item = event["item"]
            assert item == response["output"][event["output_index"]]
            text = item["arguments"] if "arguments" in item else item["content"][0]["text"]
            assert spelled.get(item["id"], "") == text
    return _response(response), answer.recorded


def _response(response: dict[str, Any]) -> Any:
    own = ("id", "call_id", "encrypted_content")
    output = [
        {key: value for key, value in item.items() if key not in own} for item in response["output"]
    ]
    of_time = dict.fromkeys(("id", "created_at", "completed_at"))
    return {**response, **of_time, "output": output}


def generate_whole(answer: Answer) -> Any:
    items = answer.body if isinstance(answer.body, list) else [answer.body]
    return [_item(item, answer.reply) for item in items], answer.recorded


def generate_streamed(answer: Answer) -> Any:
    *items, done = answer.events
    assert done == "[DONE]"
    mine: dict[int, list[Any]] = {}
    for item in items:
        mine.setdefault(item.pop("index", 0), []).append(item)
    last = [_last(mine[index]) for index in sorted(mine)]
    return [_item(item, answer.reply) for item in last], answer.recorded


def _last(items: Sequence[Any]) -> Any:
    """The last item has all of the reply, or from some workers what came since the one before."""
    last = items[-1]
    if len(last["output_ids"]) == last["meta_info"]["completion_tokens"]:
        return last
    meta = dict(last["meta_info"])
    for name in ("output_token_logprobs", "output_top_logprobs"):
        if name in meta:
            meta[name] = [value for item in items for value in item["meta_info"][name]]
    return {
        "text": "".join(item["text"] for item in items),
        "output_ids": [value for item in items for value in item["output_ids"]],
        "meta_info": meta,
    }


def _item(item: dict[str, Any], reply: Reply) -> Any:
    """The text is the worker's own; this one cuts characters where it sends parts."""
    text = None if reply.is_incremental else item["text"]
    return {**item, "text": text, "meta_info": {**item["meta_info"], "id": None}}


FOLDS: dict[str, tuple[Callable[[Answer], Any], Callable[[Answer], Any]]] = {
    "chat": (chat_whole, chat_streamed),
    "completions": (completions_whole, completions_streamed),
    "messages": (messages_whole, messages_streamed),
    "responses": (responses_whole, responses_streamed),
    "generate": (generate_whole, generate_streamed),
}


def _is_told(door: str, reply: Reply, whole: Any) -> None:
    """What was asked for is there: two empty replies would be equal, too."""
    if door in ("chat", "completions"):
        for choice in whole[0]:
            assert (choice["ids"] is not None) == reply.has_ids
            assert (choice["logprobs"] is not None) == (reply.logprobs is not None)
        if reply.has_ids:
            assert whole[0][0]["ids"] == whole[-1][0]
        assert whole[1]["completion_tokens"] >= len(whole[-1][0])


@pytest.mark.parametrize("half", ["", "more"])
@pytest.mark.parametrize("door", FOLDS)
async def test_a_stream_says_what_the_whole_reply_says(door, half):
    fold_whole, fold_stream = FOLDS[door]
    async with staged() as stage:
        for reply in replies(f"{door} {half}", COUNT // 2):
            whole = fold_whole(await ask(stage, door, reply, stream=False))
            streamed = fold_stream(await ask(stage, door, reply, stream=True))
            assert streamed == whole, reply
            _is_told(door, reply, whole)


FORMATS_ASKED = ("deepseekv3", "gemma4", "glm45", "kimi_k2", "llama3", "minimax-m2", "mistral")


@pytest.mark.parametrize("form", FORMATS_ASKED)
@pytest.mark.parametrize("door", ["chat", "messages", "responses"])
async def test_a_stream_says_what_the_whole_reply_says_in_other_formats(door, form):
    """As it ends by itself, and cut by the limit of tokens."""
    spoken = FORMATS[form].write([("get_weather", {"city": "Paris"}), ("search", {})])
    ids = [*tiny_tokenizer().encode(spoken).tolist(), max(tiny_tokenizer().eos_ids)]
    fold_whole, fold_stream = FOLDS[door]
    plain = replace(
        next(replies(f"{door} {form}", 1)),
        scripts=(Script(ids=ids),),
        stops=(),
        stop_ids=(),
        has_tools=True,
        is_parallel=True,
        logprobs=None,
    )
    async with staged(tool_call_parser=form, reasoning_parser=None) as stage:
        for limit in (len(ids), *range(1, len(ids), 31)):
            reply = replace(plain, max_tokens=limit)
            whole = await ask(stage, door, reply, stream=False)
            assert fold_stream(await ask(stage, door, reply, stream=True)) == fold_whole(whole)
            if limit == len(ids):
                assert whole.raw.count(b"get_weather") >= 1
                assert b"Paris" in whole.raw
