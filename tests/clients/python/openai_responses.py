# mypy: ignore-errors
"""openai: responses, that are stored or carry their reasoning, whole, streamed, and `.stream()`."""

import json

import openai
from weather import AND_THEN, KEY, MODEL, SCHEMAS, TASK, given, tell, use

TOOLS = [{"type": "function", "name": name, "parameters": s} for name, s in SCHEMAS.items()]
ENCRYPTED = {"store": False, "include": ["reasoning.encrypted_content"]}


def whole(client, asked):
    return client.responses.create(**asked)


def streamed(client, asked):
    *_, last = client.responses.create(**asked, stream=True)
    return last.response


def helper(client, asked):
    with client.responses.stream(**asked) as stream:
        return stream.get_final_response()


WAYS = {"whole": whole, "streamed": streamed, "helper": helper}


def outputs(response):
    return [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": use(item.name, json.loads(item.arguments)),
        }
        for item in response.output
        if item.type == "function_call"
    ]


def stored(ask, text, before=None):
    """Go on from the id of the last response."""
    asked = {"model": MODEL, "tools": TOOLS, "instructions": "Be brief. ☕"}
    given_now = [{"role": "user", "content": text}]
    while given_now:
        before = ask(**asked, input=given_now, previous_response_id=before and before.id)
        given_now = outputs(before)
    return before


def carried(ask, text, items):
    """Send all items again; the server keeps none."""
    asked = {"model": MODEL, "tools": TOOLS, "instructions": "Be brief. ☕", **ENCRYPTED}
    items.append({"role": "user", "content": text})
    while True:
        response = ask(**asked, input=items)
        items += response.output
        if not (new := outputs(response)):
            return response
        items += new


def main():
    url, way = given()
    kept, _, how = way.partition("-")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)

    def ask(**asked):
        return WAYS[how](client, {k: v for k, v in asked.items() if v is not None})

    if kept == "stored":
        first = stored(ask, TASK)
        then = stored(ask, AND_THEN, first)
    else:
        items = []
        first = carried(ask, TASK, items)
        then = carried(ask, AND_THEN, items)
    tell(first.output_text, then.output_text)


main()
