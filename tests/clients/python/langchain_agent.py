# mypy: ignore-errors
"""LangChain: its agent on chat completions, responses and messages, whole and streamed."""

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from weather import AND_THEN, KEY, MAX_TOKENS, MODEL, TASK, add, get_weather, given, tell


def chat(url, **settings):
    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY, **settings)


def responses(url, **settings):
    return chat(url, use_responses_api=True, **settings)


def messages(url, **settings):
    return ChatAnthropic(model=MODEL, base_url=url, api_key=KEY, max_tokens=MAX_TOKENS, **settings)


MODELS = {"chat": chat, "responses": responses, "messages": messages}


def main():
    url, way = given()
    door, _, how = way.partition("-")
    agent = create_agent(MODELS[door](url, streaming=how == "streamed"), [get_weather, add])

    def ask(talk):
        return agent.invoke({"messages": talk})["messages"]

    talk = ask([{"role": "user", "content": TASK}])
    then = ask([*talk, {"role": "user", "content": AND_THEN}])
    tell(talk[-1].text, then[-1].text)


main()
