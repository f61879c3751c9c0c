"""Which formats replies are read in: SGLang's detection on real templates, and what comes of it."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import SetupError
from slime_router.replies.formats import Choice, choose_formats
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_detection import Detected, ModelTraits, detect
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import ReplyFormat
from tests import chat_templates, vocabularies
from tests.chat_templates import template_text
from tests.tiny import CHATML

NOTHING = (None, None)
# Tool calls and reasoning, by SGLang's names. Llama's, Cohere's, Qwen2.5's and Phi's formats of
# calls have no rule; nor has Muse's, which SGLang knows by its architecture.
BY_TEMPLATE = {
    "cohere": NOTHING,
    "cohere2": NOTHING,
    "deepseek_r1_distill": ("deepseekv31", "deepseek-r1"),
    "deepseekv3": ("deepseekv31", "deepseek-r1"),
    "diffusion_gemma": ("gemma4", "gemma4"),
    "gemma": NOTHING,
    "gemma3": NOTHING,
    "gemma4": ("gemma4", "gemma4"),
    "gemma4_v2": ("gemma4", "gemma4"),
    "gemma4_v3": ("gemma4", "gemma4"),
    "gemma4_v4": ("gemma4", "gemma4"),
    "gemma4_v5": ("gemma4", "gemma4"),
    "glm4moe": ("glm45", "glm45"),
    "gptoss": ("gpt-oss", "gpt-oss"),
    "idefics3": NOTHING,
    "lfm2": NOTHING,
    "lfm2_2_5": ("lfm2", None),
    "lfm2_2_5_v2": ("lfm2", None),
    "lfm2_2_5_vl": ("lfm2", None),
    "lfm2_v2": ("lfm2", None),
    "llama3": NOTHING,
    "llama3_1": NOTHING,
    "llama3_2": NOTHING,
    "llava_next": NOTHING,
    "muse_glimmer": NOTHING,
    "nemotron_3_5_lightning": ("qwen3_coder", "nemotron_3"),
    "nemotron_3_nano": ("qwen3_coder", "nemotron_3"),
    "nemotron_3_super": ("qwen3_coder", "nemotron_3"),
    "nemotron_3_ultra": ("qwen3_coder", "nemotron_3"),
    "phi3": NOTHING,
    "phi3_5": NOTHING,
    "qwen2_5": NOTHING,
    "qwen2_5_vl": NOTHING,
    "qwen3": ("qwen", "qwen3"),
    "qwen3_5_nothink": ("qwen3_coder", "deepseek-r1"),
    "qwen3_5_think": ("qwen3_coder", "qwen3"),
    "qwen3_6": ("qwen3_coder", "qwen3"),
    "qwen3_8": ("qwen3_coder", "qwen3"),
    "qwen3_instruct_2507": NOTHING,
    "qwen3_vl": NOTHING,
    "smolvlm": NOTHING,
}
# Where a rule looks at the names of tokens, those of the model's that it looks for.
TOKENS = {"glm4moe": ("<tool_call>", "<|user|>", "<|endoftext|>", "<arg_key>", "<arg_value>")}
BY_VOCABULARY = {
    "qwen3": ("qwen", "qwen3"),
    "deepseek_v3": ("deepseekv31", None),
    "mistral_nemo": NOTHING,
    "llama3_2": NOTHING,
    "mistral_7b_sp": NOTHING,  # these two have no template
    "gptoss": NOTHING,
    "gemma3": NOTHING,
}
BY_ARCHITECTURE = {
    ("DeepseekV3ForCausalLM", "deepseek_v3"): ("deepseekv32", "deepseek-v3"),
    ("DeepseekV4ForCausalLM", "deepseek_v4"): ("deepseekv4", "deepseek-v4"),
    ("KimiK3ForCausalLM", "kimi_k3"): ("kimi_k3", "kimi_k3"),
    ("MiniMaxM2ForCausalLM", "minimax_m2"): ("minimax-m2", "minimax"),
    ("LlamaForCausalLM", "llama"): NOTHING,
    ("", ""): NOTHING,
}


def detected(model: ModelTraits) -> tuple[str | None, str | None]:
    found = detect(model)
    return found.tools, found.reasoning


def by_sglang(template: str, hf: Any) -> tuple[str | None, str | None]:
    """What SGLang's own functions say, called as its server calls them."""
    rules = importlib.import_module("sglang.srt.parser.template_detection")
    is_forced, toggle = rules.detect_reasoning_pattern(template)
    context = rules.build_detection_context(template, hf, toggle, is_forced)
    calls = rules.match_rules(context, rules.TOOL_CALL_PARSER_RULES, "calls")
    return calls, rules.match_rules(context, rules.REASONING_PARSER_RULES, "reasoning")


class Names:
    """A tokenizer of `transformers`, as far as it is asked for names."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def get_vocab(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._names)}


# What is detected


def test_every_template_is_in_the_table():
    assert set(BY_TEMPLATE) == set(chat_templates.NAMES)


@pytest.mark.tokenizers
@pytest.mark.parsers
@pytest.mark.parametrize("name", chat_templates.NAMES)
def test_the_formats_of_a_template_are_those_that_sglang_detects(name):
    text, tokens = template_text(name), TOKENS.get(name, ())
    assert detected(ModelTraits(text, tokens)) == BY_TEMPLATE[name]
    assert by_sglang(text, Names(*tokens)) == BY_TEMPLATE[name]


@pytest.mark.tokenizers
@pytest.mark.parsers
def test_a_rule_that_looks_at_tokens_sees_them():
    text = template_text("glm4moe")
    assert detected(ModelTraits(text)) == ("qwen", "qwen3")
    assert detected(ModelTraits(text, TOKENS["glm4moe"])) == ("glm45", "glm45")


@pytest.mark.parsers
def test_the_rules_look_for_no_other_tokens_than_those_with_a_bracket():
    """The others are not shown to them: see `Tokenizer.mark_names`."""
    detect(ModelTraits(CHATML))  # loads them
    source = inspect.getsource(importlib.import_module("sglang.srt.parser.template_detection"))
    looked_for = re.findall(r'ctx\.has_vocab(?:_pattern)?\(\s*r?"\^?(.)', source)
    assert len(looked_for) == len(re.findall(r"ctx\.has_vocab|ctx\.vocab", source))
    assert set(looked_for) == {"<"}


def marks(hf: Any) -> set[str]:
    """The names of a tokenizer's tokens that were added or have a bracket."""
    names = {name for name in hf.get_vocab() if "<" in name or "[" in name}
    return names | {token.content for token in hf.added_tokens_decoder.values()}


@pytest.mark.tokenizers
@pytest.mark.parsers
@pytest.mark.parametrize("name", vocabularies.NAMES)
def test_the_formats_of_a_checkpoint_are_those_that_sglang_detects(name):
    from transformers import AutoTokenizer

    path = str(vocabularies.vocabulary(name))
    tokenizer = load_tokenizer(path)
    tokenizer.close()
    template = tokenizer.chat_template
    hf = AutoTokenizer.from_pretrained(path)
    assert set(tokenizer.mark_names()) == marks(hf)
    found = detected(ModelTraits(template, tokenizer.mark_names()))
    assert found == BY_VOCABULARY[name]
    if template is not None:
        assert by_sglang(template, hf) == found


@pytest.mark.parsers
@pytest.mark.parametrize(("architecture", "model_type"), BY_ARCHITECTURE)
def test_without_a_template_the_architecture_says_it(architecture, model_type):
    model = ModelTraits(None, architectures=(architecture,), model_type=model_type)
    assert detected(model) == BY_ARCHITECTURE[architecture, model_type]


@pytest.mark.parsers
def test_with_a_template_the_architecture_says_nothing():
    model = ModelTraits(CHATML, architectures=("DeepseekV3ForCausalLM",), model_type="deepseek_v3")
    assert detected(model) == (None, "deepseek-r1")


@pytest.mark.parsers
@pytest.mark.parametrize("name", [name for name, found in BY_TEMPLATE.items() if any(found)])
def test_what_is_detected_can_be_used_here(name):
    tools, reasoning = BY_TEMPLATE[name]
    parsers = ReplyParsers(load_parsers, tools=tools, reasoning=reasoning)
    assert (parsers.tools, parsers.reasoning) == (tools, reasoning)


def test_without_sglang_the_error_says_how_to_install_it(monkeypatch):
    def gone(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(SetupError, match="slime-router install-parsers"):
        detect(ModelTraits(CHATML))


@pytest.mark.parsers
def test_an_sglang_without_detection_is_too_old(monkeypatch):
    load = importlib.import_module

    def old(name: str) -> Any:
        if name.endswith("template_detection"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", old)
    with pytest.raises(SetupError, match="template_detection"):
        detect(ModelTraits(CHATML))


@pytest.mark.parsers
def test_rules_that_fail_are_one_line(monkeypatch):
    detect(ModelTraits(CHATML))  # loads them
    rules = importlib.import_module("sglang.srt.parser.template_detection")

    def failing(_: str) -> Any:
        raise RecursionError("too\ndeep")

    monkeypatch.setattr(rules, "detect_reasoning_pattern", failing)
    with pytest.raises(SetupError, match=r"^no format can be detected: too deep$"):
        detect(ModelTraits(CHATML))


# What is made of it


FOUND = Detected("qwen", "qwen3")


def choose(
    tools: str = "auto",
    reasoning: str = "auto",
    *,
    found: Detected | SetupError = FOUND,
    unusable: str = "",
) -> tuple[Choice, Choice, str | None]:
    tried: list[str | None] = []

    def detecting() -> Detected:
        assert "auto" in (tools, reasoning), "nobody asked for it"
        if isinstance(found, SetupError):
            raise found
        return found

    def try_out(*names: str | None) -> None:
        tried.extend(names)
        if unusable in names:
            raise SetupError(f"{unusable} cannot be used here")

    formats = choose_formats(tools, reasoning, detect=detecting, try_out=try_out)
    assert not {tools, reasoning} & set(tried), "what is set is not tried out here"
    return formats.tools, formats.reasoning, formats.missing


def test_auto_takes_what_is_detected():
    tools, reasoning, missing = choose()
    assert (tools.name, reasoning.name, missing) == ("qwen", "qwen3", None)
    assert (str(tools), str(reasoning)) == ("qwen (detected)", "qwen3 (detected)")


def test_a_name_is_taken_as_it_is_and_none_is_off():
    tools, reasoning, _ = choose("glm45", "none")
    assert (tools, str(tools)) == (Choice("glm45", "set"), "glm45 (set)")
    assert (reasoning.name, str(reasoning)) == (None, "off (--reasoning-parser none)")


def test_each_flag_is_for_itself():
    tools, reasoning, _ = choose("glm45", "auto")
    assert (tools.name, reasoning.name) == ("glm45", "qwen3")
    tools, reasoning, _ = choose("auto", "glm45")
    assert (tools.name, reasoning.name) == ("qwen", "glm45")


def test_what_no_rule_knows_is_off_and_says_how_to_set_it():
    tools, reasoning, missing = choose(found=Detected(None, None))
    assert (tools.name, reasoning.name, missing) == (None, None, None)
    assert str(tools) == "off (no format detected; set --tool-call-parser)"
    assert str(reasoning) == "off (no format detected; set --reasoning-parser)"


@pytest.mark.parametrize("name", ["qwen", "qwen3"])
def test_what_cannot_be_used_here_is_off_alone(name):
    choices = choose(unusable=name)[:2]
    [off] = [choice for choice in choices if choice.name is None]
    [on] = [choice for choice in choices if choice.name is not None]
    assert str(off).startswith(f"off ({name} is detected, but {name} cannot be used here; set --")
    assert str(on).endswith("(detected)")


def test_a_detection_that_fails_is_off_and_logged_once(caplog):
    tools, reasoning, missing = choose(found=SetupError("no SGLang"))
    assert tools == reasoning == Choice(None, "no SGLang")
    assert missing == "no SGLang"
    assert caplog.messages == ["replies are not taken apart: no SGLang"]


def test_a_name_that_is_set_stands_where_detection_fails():
    tools, reasoning, missing = choose("qwen25", found=SetupError("no SGLang"))
    assert (tools.name, reasoning.name, missing) == ("qwen25", None, "no SGLang")


# A model that SGLang takes for DeepSeek-R1 because its template says <think>


def read(text: str, *, prompt_tail: str = "", presumes_thinking: bool) -> tuple[str, str]:
    """Content and reasoning."""
    parsers = ReplyParsers(
        load_parsers, tools=None, reasoning="deepseek-r1", presumes_thinking=presumes_thinking
    )
    parser = parsers.parser(ReplyFormat(), prompt_tail=prompt_tail, history=())
    assert parser is not None
    deltas = [parser.push(each, is_last=False) for each in text] + [parser.push("", is_last=True)]
    return "".join(d.content for d in deltas), "".join(d.reasoning for d in deltas)


@pytest.mark.parametrize(
    ("choice", "presumes"),
    [
        (Choice("deepseek-r1", "detected", is_detected=True), False),
        (Choice("deepseek-r1", "set"), True),
        (Choice("qwen3", "detected", is_detected=True), True),
    ],
)
def test_only_the_last_resort_presumes_no_thinking(choice, presumes):
    formats = choose_formats(
        "none",
        "auto" if choice.is_detected else choice.name,
        detect=lambda: Detected(None, choice.name),
        try_out=lambda *_: None,
    )
    assert formats.reasoning == choice
    assert formats.presumes_thinking is presumes


@pytest.mark.parsers
def test_a_model_that_is_taken_for_r1_thinks_where_it_is_shown():
    assert read("Paris.", presumes_thinking=False) == ("Paris.", "")
    assert read("<think>Hm.</think>Paris.", presumes_thinking=False) == ("Paris.", "Hm.")
    opened = read("Hm.</think>Paris.", prompt_tail="<think>\n", presumes_thinking=False)
    assert opened == ("Paris.", "Hm.")
    closed = read("Paris.", prompt_tail="</think>\n\n", presumes_thinking=False)
    assert closed == ("Paris.", "")


@pytest.mark.parsers
def test_r1_itself_thinks_until_it_says_that_it_is_over():
    assert read("Hm.</think>Paris.", presumes_thinking=True) == ("Paris.", "Hm.")
