"""Against a real SGLang server: calls, reasoning and forms, through every door, bit for bit.

The model is random: a grammar makes it say what it must, in tokens that it chooses. It chooses
other tokens than an encoder would, so a reply that is encoded again is not what was sampled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from tokenizers import Tokenizer

from slime_router.client import Client, Session
from tests.e2e.comparison import Generation, compare
from tests.e2e.test_sglang_trajectories import rows_of
from tests.sglang.recorder import RecordingProxy

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

PATIENCE_S = 60
EOS = 8191
MAX_TOKENS = 200
CITIES = {"Paris", "Oslo", "Köln"}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": sorted(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}
# As no serialiser would write it: a template that prints the arguments again changes the text.
CALL = r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city" :"(Paris|Oslo|Köln)"\}\}\n'
CALL += "</tool_call>"
THOUGHTS = {"\nLet me look.\n", "\nI know that.\n"}
ANSWERS = {"\n\nYes.", "\n\nNo."}
THOUGHT = r"<think>\n(Let me look|I know that)\.\n</think>\n\n(Yes|No)\."


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **fields}}


@pytest.fixture
def witness(recording_proxy: RecordingProxy) -> RecordingProxy:
    recording_proxy.clear()
    return recording_proxy


@pytest.fixture(scope="session")
def tokenizer(checkpoint_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint_dir / "tokenizer.json"))


@pytest.fixture(scope="session")
def brief(tokenizer: Tokenizer) -> dict[str, float]:
    """A `logit_bias` of a model that ends as soon as its grammar lets it, and leaves no blanks."""
    texts = {token_id: tokenizer.decode([token_id]) for token_id in range(EOS)}
    blanks = {str(i): -100.0 for i, text in texts.items() if text != text.strip()}
    return {**blanks, str(EOS): 100.0}


@pytest.fixture
def session(parsing_router_url: str) -> Iterator[Session]:
    with Client(parsing_router_url).open_session() as session:
        yield session


@pytest.fixture
def agent(session: Session) -> Iterator[OpenAI]:
    with OpenAI(base_url=session.base_url, api_key="none", timeout=PATIENCE_S) as client:
        yield client


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def ask(agent: OpenAI, messages: list[Any], *, stream: bool, **fields: Any) -> Any:
    """The whole reply to one chat turn."""
    fields |= {"model": "tiny", "messages": messages, "max_tokens": MAX_TOKENS}
    if not stream:
        return agent.chat.completions.create(**fields)
    fields["stream_options"] = {"include_usage": True}
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    with agent.chat.completions.create(**fields, stream=True) as chunks:
        for chunk in chunks:
            state.handle_chunk(chunk)
    return state.get_final_completion()


def calls_of(message: Any) -> list[dict[str, Any]]:
    """A reply's tool calls as an agent sends them back."""
    return [
        {
            "id": call.id,
            "type": call.type,
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in message.tool_calls or ()
    ]


def with_results(messages: list[Any], message: Any) -> list[Any]:
    """The conversation after the agent has made the calls."""
    calls = calls_of(message)
    reply = {"role": "assistant", "content": message.content, "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "Sun."} for call in calls]
    return [*messages, reply, *results]


def one_row(session: Session, witness: RecordingProxy) -> list[Generation]:
    """What was sampled: one conversation, each turn after all tokens of the one before.

    Its one row trains each of these tokens, with the logprob that it was sampled with.
    """
    generations = [Generation.of(exchange) for exchange in witness.exchanges]
    held: list[int] = []
    for generation in generations:
        assert generation.prompt[: len(held)] == held
        held = generation.prompt + generation.output
    export = rows_of(session)
    assert compare(export, generations) == set()
    (row,) = export["rows"]
    assert row["tokens"] == held
    assert len(row["turn_ids"]) == len(generations)
    return generations


@streamed_or_not
def test_three_tool_calls_are_one_trajectory(session, agent, witness, tokenizer, stream):
    messages = [user("What is the weather?")]
    for _ in range(3):
        reply = ask(
            agent, messages, stream=stream, tools=[tool("get_weather")], extra_body={"regex": CALL}
        )
        (choice,) = reply.choices
        assert choice.finish_reason == "tool_calls"
        assert not choice.message.content
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        sampled = Generation.of(witness.exchanges[-1]).output
        assert reply.usage.completion_tokens == len(sampled)
        (city,) = json.loads(call.function.arguments).values()
        assert f'{{"city" :"{city}"}}}}\n</tool_call>' in tokenizer.decode(sampled)
        messages = with_results(messages, choice.message)
    assert len(one_row(session, witness)) == 3


@streamed_or_not
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "get_forecast"}),
        ({"type": "function", "function": {"name": "get_forecast"}}, {"get_forecast"}),
    ],
    ids=["required", "named"],
)
def test_a_forced_call_is_valid(session, agent, witness, brief, stream, choice, names):
    """No grammar of the client's: the router makes one of the tools and their schemas."""
    tools = [tool("get_weather", strict=True), tool("get_forecast", strict=True)]
    fields = {"tools": tools, "tool_choice": choice, "logit_bias": brief}
    messages = [user("What is the weather?")]
    for _ in range(2):
        reply = ask(agent, messages, stream=stream, **fields)
        message = reply.choices[0].message
        assert reply.choices[0].finish_reason == "tool_calls"
        (call,) = message.tool_calls
        assert call.function.name in names
        assert json.loads(call.function.arguments) in [{"city": city} for city in CITIES]
        messages = with_results(messages, message)
    one_row(session, witness)


@streamed_or_not
def test_a_forced_call_that_shall_be_the_only_one_ends_the_reply(agent, witness, brief, stream):
    """The model would go on: it must not spend tokens on what is not read."""
    reply = ask(
        agent,
        [user("What is the weather?")],
        stream=stream,
        tools=[tool("get_weather", strict=True)],
        tool_choice="required",
        parallel_tool_calls=False,
        logit_bias={**brief, str(EOS): -100.0},
    )
    (choice,) = reply.choices
    assert len(choice.message.tool_calls) == 1
    assert Generation.of(witness.exchanges[-1]).output[-1] == EOS


@streamed_or_not
def test_a_json_schema_is_kept(session, agent, witness, brief, stream):
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS}}
    reply = ask(agent, [user("Where?")], stream=stream, response_format=form, logit_bias=brief)
    assert json.loads(reply.choices[0].message.content) in [{"city": city} for city in CITIES]
    assert reply.choices[0].finish_reason == "stop"
    one_row(session, witness)


@streamed_or_not
@pytest.mark.parametrize("calls", [True, False])
def test_a_json_schema_beside_tools_forbids_no_call(
    session, agent, witness, brief, tokenizer, stream, calls
):
    """The model decides: a call, or the JSON that was asked for."""
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS}}
    first = tokenizer.encode("<tool_call>" if calls else "{", add_special_tokens=False).ids[0]
    bias = {**brief, str(first): 99}
    fields = {"tools": [tool("get_weather", strict=True)], "logit_bias": bias}
    reply = ask(agent, [user("Where?")], stream=stream, response_format=form, **fields)
    (choice,) = reply.choices
    if calls:
        (call, *_) = choice.message.tool_calls
        assert json.loads(call.function.arguments) in [{"city": city} for city in CITIES]
    else:
        assert not choice.message.tool_calls
        assert json.loads(choice.message.content) in [{"city": city} for city in CITIES]
    one_row(session, witness)


@streamed_or_not
def test_a_json_object_is_one(session, agent, witness, brief, tokenizer, stream):
    bias = {**brief, str(tokenizer.token_to_id("}")): 99}
    fields = {"response_format": {"type": "json_object"}, "logit_bias": bias}
    reply = ask(agent, [user("What?")], stream=stream, **fields)
    assert isinstance(json.loads(reply.choices[0].message.content), dict)
    one_row(session, witness)


@streamed_or_not
@pytest.mark.parametrize("returned", ["dropped", "sent-back"])
def test_reasoning_is_split_off_and_stays_in_the_next_prompt(
    session, agent, witness, tokenizer, stream, returned
):
    """Whether or not the agent sends it back."""
    messages = [user("Is it sunny?")]
    for _ in range(2):
        reply = ask(agent, messages, stream=stream, extra_body={"regex": THOUGHT})
        message = reply.choices[0].message
        assert message.reasoning_content in THOUGHTS
        assert message.content in ANSWERS
        sampled = Generation.of(witness.exchanges[-1]).output
        said = [tokenizer.decode(sampled[: index + 1]) for index in range(len(sampled))]
        begun = sum("<think>" in text for text in said)
        thinking = begun - sum("</think>" in text for text in said[:-1])  # up to the end of the tag
        assert reply.usage.completion_tokens_details.reasoning_tokens == thinking
        again = {"role": "assistant", "content": message.content}
        if returned == "sent-back":
            again["reasoning_content"] = message.reasoning_content
        messages += [again, user("Sure?")]
    one_row(session, witness)


@dataclass
class Talk:
    """A conversation in no API's words: what was said, each reply a call and its result."""

    url: str
    calls: list[tuple[str, str]] = field(default_factory=list)  # id and arguments

    def by_chat(self, stream: bool) -> None:
        messages = [user("What is the weather?")]
        for call_id, arguments in self.calls:
            function = {"name": "get_weather", "arguments": arguments}
            call = {"id": call_id, "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": call_id, "content": "Sun."})
        with OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=PATIENCE_S) as agent:
            reply = ask(agent, messages, stream=stream, tools=[tool("get_weather")])
        (call,) = reply.choices[0].message.tool_calls
        assert reply.choices[0].finish_reason == "tool_calls"
        self._note(call.id, call.function.name, call.function.arguments)

    def by_responses(self, stream: bool) -> None:
        items: list[Any] = [user("What is the weather?")]
        for call_id, arguments in self.calls:
            call = {"type": "function_call", "call_id": call_id, "arguments": arguments}
            items.append({**call, "name": "get_weather"})
            items.append({"type": "function_call_output", "call_id": call_id, "output": "Sun."})
        tools: Any = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS}]
        fields: Any = {"model": "tiny", "input": items, "max_output_tokens": MAX_TOKENS}
        with OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=PATIENCE_S) as agent:
            reply: Any = agent.responses.create(**fields, tools=tools, stream=stream)
            if stream:
                *_, last = reply
                assert last.type == "response.completed"
                reply = last.response
        (call,) = reply.output
        assert (call.type, reply.status) == ("function_call", "completed")
        self._note(call.call_id, call.name, call.arguments)

    def by_messages(self, stream: bool) -> None:
        messages: list[Any] = [user("What is the weather?")]
        for call_id, arguments in self.calls:
            use = {"type": "tool_use", "id": call_id, "name": "get_weather"}
            use["input"] = json.loads(arguments)
            result = {"type": "tool_result", "tool_use_id": call_id, "content": "Sun."}
            messages += [{"role": "assistant", "content": [use]}, user([result])]
        tools: Any = [{"name": "get_weather", "input_schema": PARAMETERS}]
        fields: Any = {"model": "tiny", "messages": messages, "max_tokens": MAX_TOKENS}
        with Anthropic(base_url=self.url, api_key="none", timeout=PATIENCE_S) as agent:
            reply: Any
            if stream:
                with agent.messages.stream(**fields, tools=tools) as events:
                    reply = events.get_final_message()
            else:
                reply = agent.messages.create(**fields, tools=tools)
        (block,) = reply.content
        assert (block.type, reply.stop_reason) == ("tool_use", "tool_use")
        self._note(block.id, block.name, json.dumps(block.input, ensure_ascii=False))

    def _note(self, call_id: str, name: str, arguments: str) -> None:
        assert name == "get_weather"
        assert json.loads(arguments)["city"] in CITIES
        self.calls.append((call_id, arguments))


@streamed_or_not
def test_a_conversation_that_changes_doors_is_one_trajectory(parsing_router_url, witness, stream):
    """The grammar is the session's: not every API has a field for one."""
    with Client(parsing_router_url).open_session(sampling={"regex": CALL}) as session:
        talk = Talk(session.url)
        talk.by_chat(stream)
        talk.by_responses(stream)
        talk.by_messages(stream)
        talk.by_responses(not stream)
        talk.by_chat(not stream)
        talk.by_messages(not stream)
        assert len(one_row(session, witness)) == 6


def test_a_streamed_completion_is_the_whole_one(session, agent, witness, tokenizer):
    """Greedy, so both were sampled alike; both tell the worker's own logprobs."""
    fields: Any = {"model": "tiny", "prompt": "def radix(tree):\n", "max_tokens": 24}
    fields |= {"temperature": 0, "logprobs": 2}
    whole = agent.completions.create(**fields).choices[0]
    with agent.completions.create(**fields, stream=True) as chunks:
        pieces = [chunk.choices[0] for chunk in chunks]
    first, second = (Generation.of(exchange) for exchange in witness.exchanges)
    assert first.prompt == second.prompt == tokenizer.encode(fields["prompt"]).ids
    assert first.output == second.output
    assert whole.text == "".join(piece.text for piece in pieces) == tokenizer.decode(first.output)
    assert whole.finish_reason == pieces[-1].finish_reason == "length"
    assert whole.logprobs.token_logprobs == first.logprobs
    told = [piece.logprobs for piece in pieces if piece.logprobs]
    assert [p for each in told for p in each.token_logprobs] == second.logprobs
    assert [t for each in told for t in each.tokens] == whole.logprobs.tokens
    assert [len(top) >= 2 for top in whole.logprobs.top_logprobs] == [True] * len(first.output)
