# mypy: ignore-errors
"""litellm: its completion, whole and streamed, to chat completions and to messages."""

import json

import litellm
from weather import AND_THEN, KEY, MAX_TOKENS, TASK, chat_tools, given, tell, use

litellm.telemetry = False


def chat(url, **asked):
    return litellm.completion(model="openai/qwen3", api_base=f"{url}/v1", api_key=KEY, **asked)


def messages(url, **asked):
    return litellm.completion(model="anthropic/qwen3", api_base=url, api_key=KEY, **asked)


DOORS = {"chat": chat, "messages": messages}


def ask(url, door, how, talk):
    """One reply; a stream is put together by litellm."""
    asked = {"messages": talk, "tools": chat_tools(), "max_tokens": MAX_TOKENS}
    if how == "whole":
        return DOORS[door](url, **asked).choices[0].message
    chunks = list(DOORS[door](url, **asked, stream=True))
    return litellm.stream_chunk_builder(chunks, messages=talk).choices[0].message


def solve(url, way, talk):
    """Ask and use tools until there is an answer; `talk` grows."""
    while True:
        message = ask(url, *way.split("-"), talk)
        talk.append(message.model_dump())
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            result = use(call.function.name, json.loads(call.function.arguments))
            talk.append({"role": "tool", "tool_call_id": call.id, "content": result})


def main():
    url, way = given()
    talk = [{"role": "user", "content": TASK}]
    first = solve(url, way, talk)
    talk.append({"role": "user", "content": AND_THEN})
    tell(first, solve(url, way, talk))


main()
