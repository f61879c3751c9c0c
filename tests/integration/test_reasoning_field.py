"""The names of a chat reply's reasoning: SGLang's always, vLLM's beside it where that is asked."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.integration.gateway import CHAT, Served, user
from tests.integration.test_tool_calls import REPLIES, TOOLS, ask, ask_stream, parsing, say

pytestmark = pytest.mark.parsers

THOUGHT = "the weather, 東京\n"


async def streamed(router: Served, **fields: Any) -> list[dict[str, Any]]:
    chunks = await ask_stream(router, **fields)
    return [c["choices"][0]["delta"] for c in chunks[:-1] if c["choices"]]


@pytest.mark.parametrize("detailed", [False, True])
@pytest.mark.parametrize("field", ["reasoning_content", "both"])
async def test_reasoning_stands_under_one_name_or_under_both(field, detailed):
    """Also where each delta has more to tell than its text."""
    more = {"logprobs": True} if detailed else {}
    async with parsing(reasoning_field=field) as (router, worker):
        say(worker, REPLIES["reasoning"])
        message = (await ask(router, **more))["choices"][0]["message"]
        say(worker, REPLIES["reasoning"])
        deltas = await streamed(router, **more)
    has_two = field == "both"
    assert message["reasoning_content"].strip() == THOUGHT.strip()
    assert message.get("reasoning") == (message["reasoning_content"] if has_two else None)
    assert ("reasoning" in message) == has_two
    thoughts = [d for d in deltas if "reasoning_content" in d]
    assert "".join(d["reasoning_content"] or "" for d in thoughts).strip() == THOUGHT.strip()
    for delta in deltas:
        assert ("reasoning" in delta) == (has_two and "reasoning_content" in delta)
        assert delta.get("reasoning") == (delta.get("reasoning_content") if has_two else None)


async def test_without_reasoning_the_names_are_there_and_empty():
    async with parsing(reasoning_field="both") as (router, worker):
        say(worker, REPLIES["text"])
        message = (await ask(router))["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"]) == (None, None)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_either_name_is_read_when_the_reply_comes_back(name):
    """The turn goes on with the tokens that were sampled, and encodes only what is new."""
    async with parsing(reasoning_field="both") as (router, worker):
        say(worker, REPLIES["all"])
        message = (await ask(router))["choices"][0]["message"]
        kept = {k: v for k, v in message.items() if not k.startswith("reasoning")}
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}
        talk = [user("Hi"), {**kept, name: message[name]}, result]
        body = {"model": "tiny", "messages": talk, "tools": TOOLS}
        async with router.http.post(CHAT, json=body) as answer:
            assert answer.status == 200
            assert '"status":"extended"' in answer.headers["x-slime-receipt"]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_the_template_gets_it_under_either_name(name):
    """Of a reply that nobody sampled here."""
    talk = [user("Hi"), {"role": "assistant", "content": "A", name: "because"}, user("So?")]
    async with parsing() as (router, _):
        _, plain = await router.post("/tokenize", {"messages": talk})
        _, text = await router.post("/detokenize", {"tokens": plain["tokens"]})
    assert "because" in text["text"]


async def test_openais_client_reads_both():
    async with parsing(reasoning_field="both") as (router, worker):
        say(worker, REPLIES["reasoning"])
        base = f"{str(router.http._base_url).rstrip('/')}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            seen = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
    extra = [delta.model_extra or {} for delta in seen]
    assert "".join(e.get("reasoning") or "" for e in extra).strip() == THOUGHT.strip()
