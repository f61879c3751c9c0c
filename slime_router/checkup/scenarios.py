"""The conversations of a check-up. Values only: what is asked, what the model says, how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from slime_router.types import Message

Ending: TypeAlias = Literal["stop", "last", "length"]

WEATHER = "get_weather"
CLOCK = "current_time"


@dataclass(frozen=True, slots=True)
class Said:
    """A reply: what the model says, and how it ends.

    stop    the end token ends it
    last    the end token is the last of the tokens that were allowed: the worker says `length`
    length  it is cut in the middle of the last that it says
    """

    content: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, Mapping[str, str]], ...] = ()  # name and arguments
    ending: Ending = "stop"


@dataclass(frozen=True, slots=True)
class ScriptedExchange:
    """Messages that are asked with, and the reply to them.

    A message of role `tool` answers the call before it of the same place: the first answers the
    first, whatever ids these were given.
    """

    asks: tuple[Message, ...]
    said: Said
    returns_thinking: bool = False  # the client sends back what the model thought


@dataclass(frozen=True, slots=True)
class Scenario:
    """A conversation that shows one capability."""

    capability: str
    exchanges: tuple[ScriptedExchange, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the template
    has_tools: bool = False

    @property
    def thinks(self) -> bool:
        """Whether the model thinks in it."""
        return any(exchange.said.thinking for exchange in self.exchanges)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _result(text: str) -> Message:
    return {"role": "tool", "content": text}


def _tool(name: str, description: str, *arguments: str) -> dict[str, Any]:
    properties = {each: {"type": "string", "description": each} for each in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = (
    _tool(WEATHER, "The weather in a city", "city"),
    _tool(CLOCK, "What time it is"),
)

_HELLO = _user("Grüße! Having a walk in 東京: which street?")
_MORE = _user("And which one after that")
_LAST = _user("Thanks, that is all, goodbye")
_ASK = _user("What is the weather over there")
_FIRST = Said("Walking along Pantomime Street is unbelievable")
_SECOND = Said("Afterwards turn towards Quagmire Avenue")
_THIRD = Said("Farewell my wandering Companion")
_PARIS = Said(calls=((WEATHER, {"city": "Parisville"}),))
_ROME = Said(calls=((WEATHER, {"city": "Romeburg"}),))
_BOTH = Said(calls=(*_PARIS.calls, *_ROME.calls))
_NOW = Said(calls=((CLOCK, {}),))
CALL_ERROR = _result("Error SECRET66 broken")
_SUN = _result("Sunshine SECRET77 everywhere")
_RAIN = _result("Raining SECRET88 cats")
_NOON = _result("Noontime SECRET99 exactly")
_ANSWER = Said("Everything considered bring an Umbrella")
_THOUGHT = "Considering whether Pedestrians prefer shadow"
_ON, _OFF = (dict.fromkeys(("enable_thinking", "thinking"), each) for each in (True, False))

_CHAT = (
    ScriptedExchange((_HELLO,), _FIRST),
    ScriptedExchange((_MORE,), _SECOND),
    ScriptedExchange((_LAST,), _THIRD),
)


def _cut(said: Said, asks: tuple[Message, ...]) -> tuple[ScriptedExchange, ...]:
    return (
        ScriptedExchange((_HELLO,), said),
        ScriptedExchange(asks, _SECOND),
        ScriptedExchange((_LAST,), _THIRD),
    )


def scenarios() -> tuple[Scenario, ...]:
    """All of them; each capability once."""
    return (*_plain(), *_reasoning(), *_tools(), *_endings())


def _plain() -> tuple[Scenario, ...]:
    system: Message = {"role": "system", "content": "Answering briefly matters SECRET55 here"}
    return (
        Scenario("chat", _CHAT),
        Scenario("system", (ScriptedExchange((system, _HELLO), _FIRST), *_CHAT[1:])),
    )


def _reasoning() -> tuple[Scenario, ...]:
    thoughtful = Said(_FIRST.content, _THOUGHT)
    again = Said(_SECOND.content, "Remembering something " + _THOUGHT)
    calling = Said("", _THOUGHT, _PARIS.calls)
    answering = Said(_ANSWER.content, "Concluding " + _THOUGHT)
    return (
        Scenario(
            "thinking",
            (ScriptedExchange((_HELLO,), thoughtful), ScriptedExchange((_MORE,), again), _CHAT[2]),
            _ON,
        ),
        Scenario(
            "thinking returned",
            (
                ScriptedExchange((_HELLO,), thoughtful, returns_thinking=True),
                ScriptedExchange((_MORE,), again, returns_thinking=True),
                _CHAT[2],
            ),
            _ON,
        ),
        Scenario("thinking off", _CHAT, _OFF),
        Scenario(
            "thinking with tools",
            (
                ScriptedExchange((_ASK,), calling),
                ScriptedExchange((_SUN,), answering),
                ScriptedExchange((_LAST,), _THIRD),
            ),
            _ON,
            has_tools=True,
        ),
    )


def _tools() -> tuple[Scenario, ...]:
    loop = (
        ScriptedExchange((_ASK,), _PARIS),
        ScriptedExchange((_SUN,), _ROME),
        ScriptedExchange((_RAIN,), _ANSWER),
    )
    return (
        Scenario("tool loop", loop, has_tools=True),
        Scenario(
            "user after tools",
            (*loop, ScriptedExchange((_MORE,), _SECOND), ScriptedExchange((_LAST,), _THIRD)),
            has_tools=True,
        ),
        Scenario(
            "result and user",
            (ScriptedExchange((_ASK,), _PARIS), ScriptedExchange((_SUN, _MORE), _ANSWER), _CHAT[2]),
            has_tools=True,
        ),
        Scenario(
            "parallel calls",
            (ScriptedExchange((_ASK,), _BOTH), ScriptedExchange((_SUN, _RAIN), _ANSWER), _CHAT[2]),
            has_tools=True,
        ),
        Scenario(
            "call without arguments",
            (ScriptedExchange((_ASK,), _NOW), ScriptedExchange((_NOON,), _ANSWER), _CHAT[2]),
            has_tools=True,
        ),
    )


def _endings() -> tuple[Scenario, ...]:
    return (
        Scenario("cut in content", _cut(Said(_FIRST.content, ending="length"), (_MORE,))),
        Scenario("cut in thinking", _cut(Said("", _THOUGHT, ending="length"), (_MORE,)), _ON),
        Scenario(
            "cut in a call",
            _cut(Said(calls=_PARIS.calls, ending="length"), (_MORE,)),
            has_tools=True,
        ),
        Scenario("end token as the last", _cut(Said(_FIRST.content, ending="last"), (_MORE,))),
    )
