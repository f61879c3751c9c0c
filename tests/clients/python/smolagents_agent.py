# mypy: ignore-errors
"""smolagents: its tool-calling agent, whole and streamed; it ends with its tool `final_answer`."""

from smolagents import LogLevel, OpenAIModel, ToolCallingAgent, tool
from weather import AND_THEN, KEY, MODEL, TASK, add, get_weather, given, tell


def main():
    url, way = given()
    agent = ToolCallingAgent(
        tools=[tool(get_weather), tool(add)],
        model=OpenAIModel(model_id=MODEL, api_base=f"{url}/v1", api_key=KEY),
        stream_outputs=way == "streamed",
        verbosity_level=LogLevel.OFF,
        max_steps=6,
    )
    first = agent.run(TASK)
    tell(first, agent.run(AND_THEN, reset=False))


main()
