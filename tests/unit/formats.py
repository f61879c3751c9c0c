"""How models write tool calls, in each of the formats that SGLang reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]
Call = tuple[str, Arguments]
NS = "]<]minimax[>["  # MiniMax-M3's mark of its own tags


@dataclass(frozen=True)
class Format:
    """How calls are spelled: `head + join.join(calls) + tail`."""

    call: Callable[[int, str, Arguments], str]
    head: str = ""
    join: str = ""
    tail: str = ""
    most: int = 2  # calls that one reply can hold
    speaks: bool = True  # text may stand before the calls

    def write(self, calls: Sequence[Call], lead: str = "") -> str:
        """The reply with these calls, with text before them."""
        written = (self.call(index, *call) for index, call in enumerate(calls))
        return lead + self.head + self.join.join(written) + self.tail


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _object(name: str, arguments: Arguments) -> str:
    return f'{{"name": "{name}", "arguments": {_json(arguments)}}}'


def _parameters(name: str, arguments: Arguments) -> str:
    return f'{{"name": "{name}", "parameters": {_json(arguments)}}}'


def _tags(spelling: str, arguments: Arguments) -> str:
    """Each argument by a spelling with `{key}`, `{value}`, `{type}` and `{is_string}`."""
    return "".join(
        spelling.replace("{key}", key)
        .replace("{type}", _type(value))
        .replace("{is_string}", _json(isinstance(value, str)))
        .replace("{value}", _plain(value))
        for key, value in arguments.items()
    )


def _type(value: Any) -> str:
    kinds = {bool: "boolean", str: "string", dict: "object", list: "array"}
    return kinds.get(type(value), "number")


def _tagged(begin: str, argument: str, end: str) -> Callable[[int, str, Arguments], str]:
    """Calls of `begin`, the arguments and `end`, with `{name}` in them."""

    def spell(_index: int, name: str, arguments: Arguments) -> str:
        return (begin + _tags(argument, arguments) + end).replace("{name}", name)

    return spell


def _around(begin: str, end: str, spell: Callable[[str, Arguments], str] = _object) -> Format:
    return Format(lambda _, name, arguments: begin + spell(name, arguments) + end, join="\n")


def _python(_index: int, name: str, arguments: Arguments) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, list):
        return f"[{','.join(map(_gemma, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_gemma(each)}' for key, each in value.items())}}}"
    return _json(value)


def _minimax3(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"{NS}<{key}>{_minimax3(each)}{NS}</{key}>" for key, each in value.items())
    if isinstance(value, list):
        return "".join(f"{NS}<item>{_minimax3(each)}{NS}</item>" for each in value)
    return _plain(value)


_QWEN = _around("<tool_call>\n", "\n</tool_call>")
_GLM = _tagged(
    "<tool_call>{name}\n",
    "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
    "</tool_call>",
)
_GLM47 = _tagged(
    "<tool_call>{name}", "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>", "</tool_call>"
)
_CODER = _tagged(
    "<tool_call>\n<function={name}>\n",
    "<parameter={key}>\n{value}\n</parameter>\n",
    "</function>\n</tool_call>",
)


def _dsml(block: str, invoke: str, parameter: str) -> Format:
    return Format(
        _tagged(
            f'<｜DSML｜{invoke} name="{{name}}">\n',
            f'<｜DSML｜{parameter} name="{{key}}" string="{{is_string}}">{{value}}'
            f"</｜DSML｜{parameter}>\n",
            f"</｜DSML｜{invoke}>\n",
        ),
        head=f"\n\n<｜DSML｜{block}>\n",
        tail=f"</｜DSML｜{block}>",
    )


def _deepseek(spelling: str) -> Format:
    return Format(
        lambda _, name, arguments: spelling.replace("{name}", name) % _json(arguments),
        head="<｜tool▁calls▁begin｜>",
        tail="<｜tool▁calls▁end｜>",
    )


HARMONY = Format(  # gpt-oss, after `<|start|>assistant`
    lambda _, name, arguments: (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{_json(arguments)}<|call|>"
    ),
    join="<|start|>assistant",
    speaks=False,
)
FORMATS: dict[str, Format] = {
    "apertus2509": Format(
        lambda _, name, arguments: _json({name: arguments}),
        head="<|tools_prefix|>[",
        join=", ",
        tail="]<|tools_suffix|>",
    ),
    "beam": Format(
        _tagged(
            " to={name}<|channel|>analysis <|constrain|>xml<|message|>",
            '<rfl:parameter name="{key}">\n{value}\n</rfl:parameter>',
            "",
        ),
        join="<|end|><|start|>assistant",
        tail="<|call|>",
        speaks=False,
    ),
    "cohere_command4": Format(
        lambda index, name, arguments: _json(
            {"tool_call_id": str(index), "tool_name": name, "parameters": arguments}
        ),
        head="<|START_ACTION|>[\n",
        join=",\n",
        tail="\n]<|END_ACTION|>",
    ),
    "deepseekv3": _deepseek(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n%s\n```<｜tool▁call▁end｜>"
    ),
    "deepseekv31": _deepseek("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>%s<｜tool▁call▁end｜>"),
    "deepseekv32": _dsml("function_calls", "invoke", "parameter"),
    "deepseekv4": _dsml("tool_calls", "invoke", "parameter"),
    "deepseekv41": _dsml(" calls", " invoke", " parameter"),
    "dots": Format(
        _tagged(
            '<invoke name="{name}">\n',
            '<parameter name="{key}">{value}</parameter>\n',
            "</invoke>\n",
        ),
        head="<dots_function_call>\n",
        tail="</dots_function_call>",
    ),
    "gemma4": Format(
        lambda _, name, arguments: f"<|tool_call>call:{name}{_gemma(arguments)}<tool_call|>"
    ),
    "gigachat3": Format(
        lambda _, name, arguments: _object(name, arguments), head="<|function_call|>", most=1
    ),
    "gigachat35": Format(
        _tagged(
            '<｜GCML｜invoke name="{name}">\n',
            '<｜GCML｜parameter name="{key}" string="{is_string}">{value}</｜GCML｜parameter>\n',
            "</｜GCML｜invoke>\n",
        ),
        head="\n\n<｜GCML｜tool_calls>\n",
        tail="</｜GCML｜tool_calls>",
    ),
    "glm": Format(_GLM, join="\n"),
    "glm45": Format(_GLM, join="\n"),
    "glm47": Format(_GLM47),
    "hermes": _around("<tool_call>\n", "\n</tool_call>"),
    "hunyuan": Format(
        _tagged(
            "<tool_call>{name}<tool_sep>\n",
            "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
            "</tool_call>\n",
        ),
        head="<tool_calls>\n",
        tail="</tool_calls>",
    ),
    "inkling": Format(
        lambda _, name, arguments: (
            f"<|message_model|>{name}<|content_invoke_tool_json|>"
            f'{{"name":"{name}","args":{_json(arguments)}}}<|end_message|>'
        )
    ),
    "interns1": _around("<|action_start|> <|plugin|>\n", "<|action_end|>", _parameters),
    "iquest_q1": Format(
        _tagged(
            "<iquest_tool_call>{name}",
            "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>",
            "</iquest_tool_call>",
        )
    ),
    "k2_horizon": Format(
        _tagged(
            "<ifm|tool_call>{name}\n",
            "<ifm|arg_key>{key}</ifm|arg_key>\n<ifm|arg_value>{value}</ifm|arg_value>\n",
            "</ifm|tool_call>\n",
        ),
        head="<ifm|tool_calls>\n",
        tail="</ifm|tool_calls>",
    ),
    "kimi_k2": Format(
        lambda index, name, arguments: (
            f"<|tool_call_begin|>functions.{name}:{index + 3}<|tool_call_argument_begin|>"
            f"{_json(arguments)}<|tool_call_end|>"
        ),
        head="<|tool_calls_section_begin|>",
        tail="<|tool_calls_section_end|>",
    ),
    "kimi_k3": Format(
        lambda index, name, arguments: (
            f'<|open|>call tool="{name}" index="{index + 1}"<|sep|>'
            + _tags(
                '<|open|>argument key="{key}" type="{type}"<|sep|>{value}<|close|>argument<|sep|>',
                arguments,
            )
            + "<|close|>call<|sep|>"
        ),
        head="<|open|>tools<|sep|>",
        tail="<|close|>tools<|sep|>",
    ),
    "lfm2": Format(_python, head="<|tool_call_start|>[", join=", ", tail="]<|tool_call_end|>"),
    "ling3": Format(_GLM, join="\n"),
    "llama3": Format(
        lambda _, name, arguments: _parameters(name, arguments),
        head="<|python_tag|>",
        join="; ",
        speaks=False,
    ),
    "mimo": Format(
        _tagged(
            "<tool_call>\n<function={name}>\n",
            "<parameter={key}>{value}</parameter>\n",
            "</function>\n</tool_call>",
        ),
        join="\n",
    ),
    "minicpm5": Format(
        _tagged('<function name="{name}">', '<param name="{key}">{value}</param>', "</function>"),
        join="\n",
    ),
    "minimax-m2": Format(
        _tagged(
            '<invoke name="{name}">\n',
            '<parameter name="{key}">{value}</parameter>\n',
            "</invoke>\n",
        ),
        head="<minimax:tool_call>\n",
        tail="</minimax:tool_call>",
    ),
    "minimax-m3": Format(
        lambda _, name, arguments: (
            f'{NS}<invoke name="{name}">{_minimax3(arguments)}{NS}</invoke>\n'
        ),
        head=f"{NS}<tool_call>\n",
        tail=f"{NS}</tool_call>",
    ),
    "mistral": Format(
        lambda _, name, arguments: _object(name, arguments),
        head="[TOOL_CALLS] [",
        join=", ",
        tail="]",
    ),
    "muse": Format(
        _tagged(
            "<|start|>assistant to={name}<|message|><atem:function_calls>\n"
            '<atem:invoke name="{name}">\n',
            '<atem:parameter name="{key}">{value}</atem:parameter>\n',
            "</atem:invoke>\n</atem:function_calls><|eom|>",
        ),
        speaks=False,
    ),
    "nanbeige": Format(_CODER, join="\n"),
    "poolside_v1": Format(_GLM, join="\n"),
    "pythonic": Format(_python, head="[", join=", ", tail="]", speaks=False),
    "qwen": _QWEN,
    "qwen25": _QWEN,
    "qwen3_coder": Format(_CODER, join="\n"),
    "spark25": Format(_GLM47),
    "step3": Format(
        _tagged(
            '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{name}">\n',
            '<steptml:parameter name="{key}">{value}</steptml:parameter>\n',
            "</steptml:invoke><｜tool_call_end｜>\n",
        ),
        head="<｜tool_calls_begin｜>\n",
        tail="<｜tool_calls_end｜>",
    ),
    "step3p5": Format(_CODER, join="\n"),
    "trinity": _around("<tool_call>\n", "\n</tool_call>"),
}
