# mypy: ignore-errors
"""openai-agents: its runner on chat completions and responses, whole and streamed."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from weather import AND_THEN, KEY, MODEL, TASK, add, get_weather, given, tell

DOORS = {
    "chat": (OpenAIChatCompletionsModel, {}),
    "responses": (OpenAIResponsesModel, {}),
    "carried": (
        OpenAIResponsesModel,
        {"store": False, "response_include": ["reasoning.encrypted_content"]},
    ),
}


async def whole(agent, talk):
    return await Runner.run(agent, talk)


async def streamed(agent, talk):
    result = Runner.run_streamed(agent, talk)
    async for _ in result.stream_events():
        pass
    return result


async def main():
    url, way = given()
    door, _, how = way.partition("-")
    set_tracing_disabled(True)
    make, settings = DOORS[door]
    agent = Agent(
        name="Weather",
        instructions="Be brief. ☕",
        model=make(model=MODEL, openai_client=AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY)),
        model_settings=ModelSettings(**settings),
        tools=[function_tool(get_weather), function_tool(add)],
    )
    ask = {"whole": whole, "streamed": streamed}[how]
    first = await ask(agent, TASK)
    then = await ask(agent, [*first.to_input_list(), {"role": "user", "content": AND_THEN}])
    tell(first.final_output, then.final_output)


asyncio.run(main())
