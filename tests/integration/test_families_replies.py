"""Replies of model families, as their tokens come, through the chat door: whole and streamed."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.testing import FakeWorker
from slime_router.testing.script import Script
from slime_router.tokens.tokenizer import Tokenizer
from tests.integration.gateway import CHAT, Served, served, serving, tiny_worker, until, user
from tests.integration.storytellers import only_turn
from tests.integration.test_tool_calls import ask, ask_stream, folded, tool, whole
from tests.stack import tiny_tokenizer
from tests.unit.formats import FORMATS
from tests.vocabularies import vocabulary

pytestmark = pytest.mark.parsers

ARGUMENTS = '{"city":"Paris"}'
WEATHER = {"name": "get_weather", "arguments": ARGUMENTS}
ANALYSIS = "<|channel|>analysis<|message|>Need it.<|end|>"
CALL = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    f"{ARGUMENTS}<|call|>"
)
HARMONY = """\
{%- for message in messages -%}
{{- '<|start|>' + message.role + '<|message|>' + (message.content or '') + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""


@cache
def gpt_oss() -> Tokenizer:
    return load_tokenizer(str(vocabulary("gptoss")), chat_template=HARMONY)


@pytest.fixture(scope="module")
def harmony_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt-oss's vocabulary and end tokens, and the frame of its prompts."""
    directory = tmp_path_factory.mktemp("gpt-oss")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(vocabulary("gptoss") / name, directory / name)
    ends = [spell(mark)[0] for mark in ("<|return|>", "<|call|>")]
    config = {"vocab_size": gpt_oss().vocab_size, "max_position_embeddings": 4096}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (directory / "chat_template.jinja").write_text(HARMONY)
    return directory


def spell(text: str) -> list[int]:
    ids: list[int] = gpt_oss().encode(text).tolist()
    return ids


class _Words:
    def encode(self, text: str) -> Sequence[int]:
        return spell(text)

    def decode(self, ids: Sequence[int]) -> str:
        return gpt_oss().decode(ids, skip_special_tokens=True)


@asynccontextmanager
async def harmony(
    checkpoint: Path, *, tools: str | None = "gpt-oss", reasoning: str | None = "gpt-oss"
) -> AsyncIterator[tuple[Served, FakeWorker]]:
    worker = FakeWorker(
        vocab_size=gpt_oss().vocab_size,
        eos_ids=[spell(mark)[0] for mark in ("<|return|>", "<|call|>")],
        context_len=4096,
        tokenizer=_Words(),
    )
    async with (
        worker,
        serving(
            worker.url,
            hf_checkpoint=str(checkpoint),
            tool_call_parser=tools,
            reasoning_parser=reasoning,
        ) as router,
    ):
        yield router, worker


async def both(
    router: Served, worker: FakeWorker, ids: Sequence[int], **fields: Any
) -> dict[str, Any]:
    """What a reply of these tokens says, whole and streamed alike."""
    given = {"tools": [tool("get_weather"), tool("now")], **fields}
    worker.script(list(ids))
    one = whole(await ask(router, **given))
    worker.script(list(ids))
    other = folded(await ask_stream(router, **given))
    for each in (one, other):
        each["usage"].pop("prompt_tokens_details")
    assert one == other
    return one


# gpt-oss


@pytest.mark.tokenizers
@pytest.mark.parametrize(
    "text",
    [
        f"{ANALYSIS}<|start|>assistant{CALL}",
        f"{ANALYSIS}<|start|>assistant to=functions.get_weather<|channel|>commentary "
        f"<|constrain|>json<|message|>{ARGUMENTS}<|call|>",
        f"{ANALYSIS}<|start|>assistant<|channel|>analysis to=functions.get_weather "
        f"<|constrain|>json<|message|>{ARGUMENTS}<|call|>",
        f"{ANALYSIS}<|start|>assistant<|channel|>commentary to=functions.get_weather"
        f"<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>",
    ],
    ids=["channel", "role", "analysis", "respelled"],
)
async def test_a_call_of_gpt_oss_is_a_call(harmony_checkpoint, text):
    """Wherever its recipient stands."""
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, spell(text))
        turns = [*router.gateway.store._turns.values()]
    assert reply["calls"] == [WEATHER]
    assert (reply["reasoning"], reply["content"]) == ("Need it.", "")
    assert reply["finish"] == "tool_calls"
    assert all(turn.output_ids.tolist() == spell(text) for turn in turns)


@pytest.mark.tokenizers
async def test_a_call_whose_recipient_opens_the_reply_is_a_call(harmony_checkpoint):
    text = (
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
        f"{ARGUMENTS}<|call|>"
    )
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, spell(text))
    assert (reply["calls"], reply["content"]) == ([WEATHER], "")


@pytest.mark.tokenizers
async def test_a_preamble_comes_once(harmony_checkpoint):
    text = (
        f"{ANALYSIS}<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
        f"<|start|>assistant{CALL}"
    )
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, spell(text))
    assert (reply["reasoning"], reply["content"]) == ("Need it.", "I look it up.")
    assert reply["calls"] == [WEATHER]


@pytest.mark.tokenizers
async def test_an_answer_of_gpt_oss_is_content(harmony_checkpoint):
    text = f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>It is [3] < 4.<|return|>"
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, spell(text))
        thoughts = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert len(spell("Need it.")) <= thoughts <= len(spell(ANALYSIS))
        again = await both(router, worker, spell(text), tools=[])
    assert (reply["reasoning"], reply["content"]) == ("Need it.", "It is [3] < 4.")
    assert (again["reasoning"], again["content"]) == ("Need it.", "It is [3] < 4.")
    assert reply["finish"] == "stop"


@pytest.mark.tokenizers
async def test_a_call_of_gpt_oss_without_arguments_has_an_empty_object(harmony_checkpoint):
    text = "<|channel|>commentary to=functions.now <|constrain|>json<|message|><|call|>"
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, spell(text))
    assert reply["calls"] == [{"name": "now", "arguments": "{}"}]


@pytest.mark.tokenizers
async def test_gpt_oss_with_one_parser_alone(harmony_checkpoint):
    """What is not taken apart stays content, without the marks."""
    text = f"{ANALYSIS}<|start|>assistant{CALL}"
    async with harmony(harmony_checkpoint, reasoning=None) as (router, worker):
        tools = await both(router, worker, spell(text))
    async with harmony(harmony_checkpoint, tools=None) as (router, worker):
        thoughts = await both(router, worker, spell(text))
    assert (tools["calls"], tools["reasoning"]) == ([WEATHER], "")
    assert tools["content"] == "Need it."
    assert (thoughts["calls"], thoughts["reasoning"]) == ([], "Need it.")
    assert "functions.get_weather" in thoughts["content"]
    assert ARGUMENTS in thoughts["content"]
    assert "<|" not in thoughts["content"]


@pytest.mark.tokenizers
async def test_a_call_of_gpt_oss_of_an_unknown_tool_is_content(harmony_checkpoint):
    text = f"{ANALYSIS}<|start|>assistant{CALL.replace('get_weather', 'rm')}"
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, spell(text))
    assert reply["calls"] == []
    assert "functions.rm" in reply["content"]
    assert ARGUMENTS in reply["content"]


@pytest.mark.tokenizers
async def test_what_gpt_oss_said_before_the_limit_is_there(harmony_checkpoint):
    text = (
        f"{ANALYSIS}<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
        f"<|start|>assistant{CALL}"
    )
    ids = spell(text)
    async with harmony(harmony_checkpoint) as (router, worker):
        for limit in range(1, len(ids)):
            reply = await both(router, worker, ids, max_tokens=limit)
            said = gpt_oss().decode(ids[:limit], skip_special_tokens=False)
            shown = reply["reasoning"] + reply["content"] + str(reply["calls"])
            for word in ("Need it", "I look", "up.", "Paris"):
                assert (word in said) == (word in shown), (said, shown)
            assert reply["finish"] == "length"


@pytest.mark.tokenizers
async def test_marks_that_are_spelled_in_other_tokens_are_text(harmony_checkpoint):
    ends = spell("<|channel|>final<|message|>Write ")
    ids = [*ends, *[each for letter in "<|call|>" for each in spell(letter)], *spell(" so.")]
    async with harmony(harmony_checkpoint) as (router, worker):
        reply = await both(router, worker, [*ids, *spell("<|return|>")])
    assert reply["content"] == "Write <|call|> so."


# End tokens


@pytest.mark.parametrize("parsers", ["both", "tools", "reasoning"])
async def test_an_end_token_at_the_limit_is_no_content(parsers):
    """The worker says `length`, and does not name it as matched."""
    end = max(tiny_tokenizer().eos_ids)
    ids = [*tiny_tokenizer().encode("It is sunny.").tolist(), end]
    names: dict[str, Any] = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3"}
    dropped = {"both": "", "tools": "reasoning_parser", "reasoning": "tool_call_parser"}[parsers]
    names.pop(dropped, None)
    async with served(**names) as (router, worker):
        for finish in ({"type": "length", "length": len(ids)}, {"type": "stop"}):
            script = Script(ids=ids, finish=finish)
            worker._engine.reply = lambda _, script=script: script
            given: dict[str, Any] = {"ignore_eos": True, "tools": [tool("now")]}
            one = whole(await ask(router, **given))
            other = folded(await ask_stream(router, **given))
            assert one["content"] == other["content"] == "It is sunny."


async def test_an_end_token_in_the_middle_is_no_content():
    end = max(tiny_tokenizer().eos_ids)
    first, second = (tiny_tokenizer().encode(text).tolist() for text in ("It is", " sunny."))
    async with served(tool_call_parser="qwen25", reasoning_parser="qwen3") as (router, worker):
        reply = await both(router, worker, [*first, end, *second], ignore_eos=True)
        assert reply["content"] == "It is sunny."
        [turn, _] = router.gateway.store._turns.values()
        assert turn.output_ids.tolist() == [*first, end, *second]


# Ids of Kimi, calls without arguments, calls that are not shown


def said(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer().encode(text).tolist()
    return [*ids, max(tiny_tokenizer().eos_ids)]


async def test_the_id_that_kimi_sampled_is_the_clients():
    """By itself it identifies no turn, since other samples have the same one."""
    text = FORMATS["kimi_k2"].write([("get_weather", {"city": "Paris"})])
    async with served(tool_call_parser="kimi_k2") as (router, worker):
        worker.script(said(text))
        reply = await ask(router)
        worker.script(said(text))
        chunks = await ask_stream(router)
        turns = [*router.gateway.store._turns.values()]
        assert router.gateway.store.of_handle("functions.get_weather:3", None) is None
        router.gateway.store.check_integrity()
    [call] = reply["choices"][0]["message"]["tool_calls"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-2]]
    [begun] = [c for d in deltas for c in d.get("tool_calls", ()) if c.get("id")]
    assert call["id"] == begun["id"] == "functions.get_weather:3"
    assert all(turn.calls == (("functions.get_weather:3", "get_weather"),) for turn in turns)
    assert all(turn.handles == () for turn in turns)


async def test_an_id_that_was_made_here_leads_to_its_turn():
    text = FORMATS["qwen25"].write([("get_weather", {"city": "Paris"})])
    async with served(tool_call_parser="qwen25") as (router, worker):
        worker.script(said(text))
        [call] = (await ask(router))["choices"][0]["message"]["tool_calls"]
        turn = only_turn(router)
        assert turn.handles == (call["id"],)
        assert router.gateway.store.of_handle(call["id"], None) is turn


@pytest.mark.parametrize("name", ["minimax-m2", "step3", "qwen25", "glm45", "mimo"])
async def test_a_call_without_arguments_has_an_empty_object(name):
    text = FORMATS[name].write([("now", {})])
    async with served(tool_call_parser=name) as (router, worker):
        reply = await both(router, worker, said(text))
    assert reply["calls"] == [{"name": "now", "arguments": "{}"}]
    assert reply["content"] == ""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_not_shown_is_said(stream, caplog):
    """In the receipt, in a log line and in a counter."""
    text = FORMATS["qwen25"].write([("get_weather", {"city": "Paris"}), ("now", {})])
    headers = {"X-Session-ID": "s"}
    asked = {"model": "tiny", "messages": [user("Hi")], "stream": stream}
    tools = [tool("get_weather"), tool("now")]
    async with served(tool_call_parser="qwen25") as (router, worker):
        worker.script(said(text))
        body = {**asked, "tools": tools, "parallel_tool_calls": False}
        async with router.http.post(CHAT, json=body, headers=headers) as response:
            assert b"now" not in await response.read()
            header = orjson.loads(response.headers["x-slime-receipt"])
        _, session = await router.get("/sessions/s")
        [turn] = session["turn_list"]
        async with router.http.get("/metrics") as response:
            counts = await response.text()
        recorded = only_turn(router).receipt
    note = "1 tool call was not shown: parallel_tool_calls is false"
    assert recorded is not None
    assert recorded.notes == (note,)
    assert header.get("notes", []) == ([] if stream else [note]), "the stream's header was out"
    assert turn["receipt"]["notes"] == [note]
    assert "hidden_calls" in counts
    assert sum("not shown" in record.message for record in caplog.records) == 1


# Weight versions


@pytest.mark.parametrize("has_spans", [False, True])
async def test_a_row_has_the_versions_that_the_worker_named(has_spans):
    """It was updated without the router, which believed in version 5 all the while."""
    meta = {} if has_spans else {"weight_versions": None}
    ids = tiny_tokenizer().encode("It is sunny there").tolist()[:4]
    parts = iter([Script(ids=ids, meta=meta), Script(ids=ids[2:], meta=meta)])
    async with (
        tiny_worker(weight_version="5", reply=lambda _: next(parts)) as worker,
        serving(worker.url) as router,
    ):
        [known] = router.gateway.pool.list()
        known.observed("5", known=None)
        worker.weight_version = "6"
        worker.hold(after_tokens=2)
        body = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 4}
        asked = asyncio.create_task(
            router.http.post(CHAT, json=body, headers={"X-Session-ID": "s"})
        )
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        [rid] = worker.running
        worker._engine.abort(rid)
        await until(lambda: known.weight_version == "6")
        worker.weight_version = "7"
        worker.release()
        async with await asked as response:
            assert response.status == 200
        _, rows = await router.get("/sessions/s/rows")
    [row] = rows["rows"]
    assert row["weight_versions"][-4:] == ["6", "6", "7", "7"]
