"""A detected format is tried out on the calls and thoughts that the template prints itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.checkup import speech
from slime_router.checkup.chosen_formats import chosen_formats
from slime_router.checkup.proof import Proof
from slime_router.checkup.scenarios import Said
from slime_router.checkup.speech import PLAIN_ASK, THINK_MARKS, Speech
from slime_router.replies.formats import Choice, Formats, choose_formats
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_detection import Detected
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.template.chat_template import ChatTemplate
from slime_router.types import TemplateOptions
from tests.tiny import build_tiny_checkpoint

TURNS = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.reasoning_content %}THOUGHT{% endif %}{{ m.content or '' }}
{%- for c in m.tool_calls or [] -%}
{%- set f = c.function -%}
CALL
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
QWEN = """{{ '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + f.arguments | tojson }}}
</tool_call>{{ '' if loop.last else '\\n' }}"""
LLAMA = """{{ '{"name": "' + f.name + '", "parameters": ' + f.arguments | tojson }}}"""
FRAMED = "{{ '<|im_start|>' if loop.first else '; ' }}" + LLAMA
MISTRAL = "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"
DEEPSEEK_V3 = """{{ '<｜tool▁calls▁begin｜>' if loop.first else '\\n' -}}
<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}
```json
{{ f.arguments | tojson }}
```<｜tool▁call▁end｜>{{ '<｜tool▁calls▁end｜>' if loop.last }}"""
LIST_IN_TAGS = """<TOOLCALL>[{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}]\
</TOOLCALL>"""
SEED = """<seed:tool_call>
<function={{ f.name }}>
{% for name, value in f.arguments.items() %}<parameter={{ name }}>{{ value }}</parameter>
{% endfor %}</function>
</seed:tool_call>"""
THINK = "<think>{{ m.reasoning_content }}</think>"
THINK_IN_BRACKETS = "[THINK]{{ m.reasoning_content }}[/THINK]"
SEED_THINK = "<seed:think>{{ m.reasoning_content }}</seed:think>"
ODD_THINK = "<pondering>{{ m.reasoning_content }}</pondering>"


class Model:
    """A tiny tokenizer with a template in the style of a family."""

    def __init__(
        self, directory: Path, call: str = "", thought: str = "", turns: str = TURNS
    ) -> None:
        text = turns.replace("CALL", call).replace("THOUGHT", thought)
        checkpoint = str(build_tiny_checkpoint(directory))
        self.tokenizer = load_tokenizer(checkpoint, chat_template=text)
        self.template = ChatTemplate(self.tokenizer)

    def proof(self) -> Proof:
        def make(**formats: object) -> ReplyParsers:
            return ReplyParsers(load_parsers, **formats)  # type: ignore[arg-type]

        return Proof(self.tokenizer, self.template.findings, make, load_parsers)

    def formats(self) -> Formats:
        return chosen_formats(
            "auto",
            "auto",
            tokenizer=self.tokenizer,
            template=self.template,
            strips_newlines=False,
        )[0]


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("call", "found"),
    [
        (QWEN, "qwen"),
        (QWEN, "hermes"),
        (LLAMA, "llama3"),
        (MISTRAL, "mistral"),
        (DEEPSEEK_V3, "deepseekv3"),
    ],
)
def test_a_format_that_reads_the_calls_stays(tmp_path, call, found):
    assert Model(tmp_path, call).proof().tools(found, None) is None


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("call", "found", "name"),
    [
        (DEEPSEEK_V3, "deepseekv31", "deepseekv3"),  # it takes `function` for the name
        (QWEN, None, "qwen"),
        (LLAMA, None, "llama3"),
        (MISTRAL, None, "mistral"),
        (MISTRAL, "glm45", "mistral"),
    ],
)
def test_another_format_that_reads_the_calls_takes_its_place(tmp_path, call, found, name):
    why = f"reads the calls that the template prints; {found or 'none'} is detected"
    assert Model(tmp_path, call).proof().tools(found, None) == Choice(name, why, is_detected=True)


@pytest.mark.parsers
def test_calls_that_no_format_reads_are_said(tmp_path):
    proof = Model(tmp_path, LIST_IN_TAGS).proof()
    why = "no format reads the calls that the template prints"
    assert proof.tools(None, None) == Choice(None, why)
    why = "detected, but does not read the calls that the template prints"
    assert proof.tools("glm45", None) == Choice("glm45", why, is_detected=True)


@pytest.mark.parsers
def test_a_format_that_leaves_the_frame_of_a_call_stays_and_says_so(tmp_path):
    choice = Model(tmp_path, SEED).formats().tools
    left = "detected, but leaves '<seed:tool_call> </seed:tool_call>' in the content"
    assert choice == Choice("qwen3_coder", left, is_detected=True)


@pytest.mark.parsers
@pytest.mark.parametrize("found", [None, "glm45"])
def test_a_format_that_leaves_nothing_but_control_tokens_is_taken_and_says_so(tmp_path, found):
    """Llama 4 and Command A print empty frames before a call."""
    left = "but leaves '<|im_start|>' in the content"
    why = f"reads the calls that the template prints, {left}; {found or 'none'} is detected"
    choice = Model(tmp_path, FRAMED).proof().tools(found, None)
    assert choice == Choice("llama3", why, is_detected=True)


@pytest.mark.parsers
def test_a_thought_before_a_call_is_not_left_by_the_format_of_calls(tmp_path):
    model = Model(tmp_path, "<think></think>" + QWEN)
    assert model.proof().tools("qwen", None) is None


@pytest.mark.parsers
def test_without_calls_in_the_template_the_detection_stays(tmp_path):
    proof = Model(tmp_path).proof()
    assert proof.tools("glm45", None) is None
    assert proof.tools(None, None) is None
    assert proof.reasoning("qwen3") is None
    assert proof.reasoning(None) is None


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("thought", "found", "name"),
    [
        (THINK_IN_BRACKETS, None, "mistral"),
        (THINK_IN_BRACKETS, "qwen3", "mistral"),
        (THINK, "kimi", "deepseek-r1"),
    ],
)
def test_reasoning_is_read_in_the_format_that_reads_it(tmp_path, thought, found, name):
    why = f"reads the reasoning that the template prints; {found or 'none'} is detected"
    choice = Model(tmp_path, thought=thought).proof().reasoning(found)
    assert choice == Choice(name, why, is_detected=True)


@pytest.mark.parsers
@pytest.mark.parametrize("thought", [SEED_THINK, ODD_THINK])
def test_reasoning_that_no_format_reads_is_said(tmp_path, thought):
    proof = Model(tmp_path, thought=thought).proof()
    why = "no format reads the reasoning that the template prints"
    assert proof.reasoning(None) == Choice(None, why)
    assert proof.reasoning("step3") == Choice(None, why), "all of a plain reply is a thought there"
    why = "detected, but does not read the reasoning that the template prints"
    assert proof.reasoning("qwen3") == Choice("qwen3", why, is_detected=True)


@pytest.mark.parsers
@pytest.mark.parametrize("found", ["deepseek-r1", "qwen3", "step3"])
def test_reasoning_that_is_read_stays(tmp_path, found):
    assert Model(tmp_path, thought=THINK).proof().reasoning(found) is None


@pytest.mark.parsers
@pytest.mark.parametrize("found", ["deepseek-r1", "qwen3"])
@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_reasoning_is_tried_where_the_template_leaves_room_for_it(tmp_path, found, switch):
    """Without its switch, such a prompt ends with an empty thought."""
    text = TURNS.replace(
        "assistant\n{% endif",
        f"assistant\n<think>{{% if not {switch} %}}</think>{{% endif %}}{{% endif",
    )
    model = Model(tmp_path, thought=THINK, turns=text)
    assert model.tokenizer.render([PLAIN_ASK], TemplateOptions()).endswith("<think></think>")
    assert model.proof().reasoning(found) is None


def test_a_thought_that_is_not_printed_has_the_marks_that_are_tokens(tmp_path, monkeypatch):
    """Templates also know the marks of others, as those of Gemma 4 that strip `<think>`."""
    monkeypatch.setattr(speech, "THINK_MARKS", THINK_MARKS[::-1])
    text = TURNS + "{% set strips = ['</think>', '[/THINK]'] %}"
    model = Model(tmp_path, turns=text)
    voice = Speech(model.tokenizer, model.template.findings, None)
    said = Said("Yes.", thinking="Is it?")
    assert voice.write([PLAIN_ASK], said, TemplateOptions()).text.startswith("<think>")


@pytest.mark.parsers
def test_the_router_chooses_what_is_proved(tmp_path, caplog):
    formats = Model(tmp_path, DEEPSEEK_V3, THINK).formats()
    assert (formats.tools.name, formats.reasoning.name) == ("deepseekv3", "deepseek-r1")
    assert not formats.presumes_thinking
    [line] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.getMessage() == f"--tool-call-parser: {formats.tools}"
    assert "deepseekv31 is detected" in line.getMessage()


@pytest.mark.parsers
def test_trying_out_formats_says_nothing_in_the_log(tmp_path, caplog):
    """SGLang's detectors warn of calls that they cannot read."""
    assert Model(tmp_path, QWEN).formats().tools.name == "qwen"
    assert caplog.records == []
    assert logging.getLogger("sglang").level == logging.NOTSET


class Objecting:
    """A proof that has another choice for all."""

    def tools(self, found: str | None, reasoning: str | None) -> Choice | None:
        return Choice("other", f"{found} with {reasoning}")

    def reasoning(self, found: str | None) -> Choice | None:
        return Choice(None, f"not {found}")


@pytest.mark.parametrize(("tools", "said"), [("auto", "other (a with b)"), ("set", "set (set)")])
def test_only_what_is_detected_is_proved(tools, said):
    formats = choose_formats(
        tools,
        "auto",
        detect=lambda: Detected("a", "b"),
        try_out=lambda *_: None,
        proof=Objecting(),
    )
    assert (str(formats.tools), str(formats.reasoning)) == (said, "off (not b)")


def test_an_end_that_the_vocabulary_lacks_cuts_no_reply(tmp_path):
    model = Model(tmp_path, QWEN)
    tokenizer = model.tokenizer
    tokenizer.eos_ids = tokenizer.eos_ids | {tokenizer.vocab_size - 1}
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == b""
    said = Said(calls=(("get_weather", {"city": "Paris"}),))
    speech = Speech(tokenizer, model.template.findings, None)
    assert speech.write([PLAIN_ASK], said, TemplateOptions()).text.endswith("</tool_call>")
