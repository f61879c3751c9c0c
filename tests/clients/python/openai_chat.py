# mypy: ignore-errors
"""openai: chat completions, by the sync and the async client, whole, streamed, and `.stream()`."""

import asyncio
import json

import openai
from openai.lib.streaming.chat import ChatCompletionStreamState
from weather import AND_THEN, KEY, MODEL, TASK, chat_tools, given, tell, use


def whole(client, asked):
    return client.chat.completions.create(**asked).choices[0].message


def streamed(client, asked):
    state = ChatCompletionStreamState()
    for chunk in client.chat.completions.create(**asked, stream=True):
        state.handle_chunk(chunk)
    return state.get_final_completion().choices[0].message


def helper(client, asked):
    with client.chat.completions.stream(**asked) as stream:
        stream.until_done()
        return stream.get_final_completion().choices[0].message


def asynchronous(client, asked):
    async def ask():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=KEY) as other:
            return (await other.chat.completions.create(**asked)).choices[0].message

    return asyncio.run(ask())


def asynchronous_helper(client, asked):
    async def ask():
        async with (
            openai.AsyncOpenAI(base_url=client.base_url, api_key=KEY) as other,
            other.chat.completions.stream(**asked) as stream,
        ):
            return (await stream.get_final_completion()).choices[0].message

    return asyncio.run(ask())


WAYS = {
    "whole": whole,
    "streamed": streamed,
    "helper": helper,
    "async": asynchronous,
    "async-helper": asynchronous_helper,
}


def solve(client, way, messages):
    """Ask and use tools until there is an answer; `messages` grow."""
    while True:
        asked = {"model": MODEL, "messages": messages, "tools": chat_tools()}
        message = WAYS[way](client, asked)
        messages.append(message.to_dict(exclude_none=True) if way == "whole" else message)
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            result = use(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def main():
    url, way = given()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    messages = [{"role": "user", "content": TASK}]
    first = solve(client, way, messages)
    messages.append({"role": "user", "content": AND_THEN})
    tell(first, solve(client, way, messages))


main()
