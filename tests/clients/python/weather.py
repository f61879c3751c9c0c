"""The task that every client solves, its tools, and how a program reports what it found out.

A program is run as `PROGRAM URL WAY`: where the router is, and which of its ways it takes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MODEL = "qwen3"
KEY = "none"  # the router checks no keys; SDKs want one
TASK = "Weather task: how warm are Paris and Tōkyō 🗼, added up?"
AND_THEN = "Thanks 🙂! And\n\n  in words?"
MAX_TOKENS = 1000

_WEATHER = {"Paris": "21 °C 🌤", "Tōkyō 🗼": '9 °C;  "rain" ☔\n'}


def get_weather(city: str, days: int = 1) -> str:
    """How warm it is in a city.

    Args:
        city: Its name.
        days: From now.
    """
    return _WEATHER[city]


def add(a: int, b: int) -> str:
    """The sum of two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return f"{a + b}"


SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
        "required": ["city"],
    },
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}


def use(name: str, arguments: dict[str, Any]) -> str:
    """What a tool answers."""
    return get_weather(**arguments) if name == "get_weather" else add(**arguments)


def chat_tools() -> list[Any]:
    """The tools as chat completions take them."""
    return [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in SCHEMAS.items()
    ]


def given() -> tuple[str, str]:
    """The URL and the way."""
    _, url, way = sys.argv
    return url, way


def tell(*answers: str | None) -> None:
    """The answers to the task and to what was asked then, for the test."""
    sys.stdout.write(f"\n{json.dumps(answers)}\n")  # some clients print too
