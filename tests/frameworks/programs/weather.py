"""The task of all programs here, and its tool. Runs in the environment of the frameworks."""

from __future__ import annotations

TASK = "Weather task: is Paris warm?"
MESSAGES = [{"role": "user", "content": TASK}]


def get_weather(city: str) -> str:
    """
    Looks up the weather.

    Args:
        city: The name of the city.

    Returns:
        What it is like there.
    """
    return f"21 °C in {city}"
