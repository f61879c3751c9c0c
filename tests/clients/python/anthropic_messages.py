# mypy: ignore-errors
"""anthropic: messages, whole and streamed, and its tool runner."""

import anthropic
from anthropic import beta_tool
from weather import AND_THEN, KEY, MAX_TOKENS, MODEL, SCHEMAS, TASK, add, get_weather, given, tell
from weather import use as use_tool

TOOLS = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
THINKING = {"type": "enabled", "budget_tokens": 1024}


def whole(client, messages):
    return client.messages.create(
        model=MODEL, max_tokens=MAX_TOKENS, messages=messages, tools=TOOLS, thinking=THINKING
    )


def streamed(client, messages):
    with client.messages.stream(
        model=MODEL, max_tokens=MAX_TOKENS, messages=messages, tools=TOOLS, thinking=THINKING
    ) as stream:
        return stream.get_final_message()


def loop(ask, client, messages):
    while True:
        reply = ask(client, messages)
        messages.append({"role": "assistant", "content": reply.content})
        if reply.stop_reason != "tool_use":
            return reply
        results = [
            {
                "type": "tool_result",
                "tool_use_id": block.id,
                "content": use_tool(block.name, block.input),
            }
            for block in reply.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})


def runner(client, messages):
    """The SDK's own loop."""
    running = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=MAX_TOKENS,
        messages=[*messages],
        tools=[beta_tool(get_weather), beta_tool(add)],
    )
    for reply in running:
        messages.append({"role": "assistant", "content": reply.content})
        if (results := running.generate_tool_call_response()) is not None:
            messages.append(results)
    return reply


def text(reply):
    return "".join(block.text for block in reply.content if block.type == "text")


def main():
    url, way = given()
    client = anthropic.Anthropic(base_url=url, api_key=KEY)
    messages = [{"role": "user", "content": TASK}]

    def solve():
        if way == "runner":
            return text(runner(client, messages))
        return text(loop({"whole": whole, "streamed": streamed}[way], client, messages))

    first = solve()
    messages.append({"role": "user", "content": AND_THEN})
    tell(first, solve())


main()
