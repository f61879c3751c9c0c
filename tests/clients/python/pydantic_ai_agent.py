# mypy: ignore-errors
"""pydantic-ai: its agent on chat completions, responses and messages, whole and streamed."""

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from weather import AND_THEN, KEY, MODEL, TASK, add, get_weather, given, tell


def chat(url):
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))


def responses(url):
    return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))


def messages(url):
    return AnthropicModel(MODEL, provider=AnthropicProvider(base_url=url, api_key=KEY))


MODELS = {"chat": chat, "responses": responses, "messages": messages}


async def read(_, events):
    """With somebody who reads its events, the agent asks for streams."""
    async for _ in events:
        pass


async def main():
    url, way = given()
    door, _, how = way.partition("-")
    agent = Agent(MODELS[door](url), tools=[get_weather, add])
    handler = read if how == "streamed" else None
    first = await agent.run(TASK, event_stream_handler=handler)
    then = await agent.run(
        AND_THEN, message_history=first.all_messages(), event_stream_handler=handler
    )
    tell(first.output, then.output)


asyncio.run(main())
