"""The families that are examined, and what each is served with.

Their templates are those of `trl`, our own, and those that real vocabularies come with.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.chat_templates import template_text
from tests.families import templates
from tests.families.checkpoints import Family

_IM = ("<|im_start|>", "<|im_end|>")
_DEEPSEEK = (
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
)
_GEMMA4 = (
    "<bos>",
    "<eos>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|think|>",
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|audio|>",
    "<|video|>",
)
_LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
_GLM = (
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
)
_HARMONY = (
    "<|start|>",
    "<|message|>",
    "<|end|>",
    "<|channel|>",
    "<|constrain|>",
    "<|call|>",
    "<|return|>",
)
_LFM2 = (
    "<|startoftext|>",
    *_IM,
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
)
_COHERE = (
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)
_PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_MUSE = ("<|start|>", "<|message|>", "<|eot|>", "<|eom|>", "<|patch|>", "<|video|>")
_SMOL = (*_IM, "<end_of_utterance>", "<image>")
_LLAVA = ("<s>", "</s>", "[INST]", "[/INST]", "<image>")
_GEMMA3 = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
_KIMI = (
    "<|im_system|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|im_end|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_KIMI_K3 = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")
_MINIMAX = ("]~!b[", "]~b]", "[e~[", "<minimax:tool_call>", "</minimax:tool_call>")
_STEP3 = (
    "<｜begin▁of▁sentence｜>",
    "<|BOT|>",
    "<|EOT|>",
    "<｜tool_calls_begin｜>",
    "<｜tool_calls_end｜>",
    "<｜tool_call_begin｜>",
    "<｜tool_call_end｜>",
    "<｜tool_sep｜>",
    "<｜tool_outputs_begin｜>",
    "<｜tool_outputs_end｜>",
    "<｜tool_output_begin｜>",
    "<｜tool_output_end｜>",
)
_MISTRAL = (
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<s>",
    "</s>",
)


def _chatml(name: str, tools: str | None = None, reasoning: str | None = None) -> Family:
    return Family(name, template_text(name), ends=("<|im_end|>",), tools=tools, reasoning=reasoning)


def _deepseek(name: str, tools: str, reasoning: str) -> Family:
    return Family(
        name,
        template_text(name),
        vocabulary="deepseek_v3",
        controls=_DEEPSEEK,
        ends=("<｜end▁of▁sentence｜>",),
        tools=tools,
        reasoning=reasoning,
    )


def _gemma4(name: str) -> Family:
    return Family(
        name,
        template_text(name),
        controls=_GEMMA4,
        ends=("<turn|>", "<|tool_response>"),
        tools="gemma4",
        reasoning="gemma4",
        bos="<bos>",
    )


def _of_trl() -> tuple[Family, ...]:
    text = template_text
    cohere: dict[str, Any] = {
        "controls": _COHERE,
        "ends": ("<|END_OF_TURN_TOKEN|>",),
        "bos": "<BOS_TOKEN>",
    }
    llama: dict[str, Any] = {
        "controls": _LLAMA,
        "bos": "<|begin_of_text|>",
        "ends": ("<|eot_id|>", "<|eom_id|>"),
    }
    lfm2: dict[str, Any] = {"controls": _LFM2, "ends": ("<|im_end|>",), "bos": "<|startoftext|>"}
    smol: dict[str, Any] = {"controls": _SMOL, "ends": ("<end_of_utterance>",)}
    gemma3: dict[str, Any] = {"controls": _GEMMA3, "ends": ("<end_of_turn>",), "bos": "<bos>"}
    return (
        Family("cohere", text("cohere"), **cohere),
        Family("cohere2", text("cohere2"), **cohere),
        _deepseek("deepseek_r1_distill", "deepseekv3", "deepseek-r1"),
        _deepseek("deepseekv3", "deepseekv3", "deepseek-r1"),
        *map(_gemma4, ("diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4")),
        _gemma4("gemma4_v5"),
        Family("gemma", text("gemma"), **gemma3),
        Family("gemma3", text("gemma3"), **gemma3),
        Family(
            "glm4moe",
            text("glm4moe"),
            controls=_GLM,
            ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
            tools="glm45",
            reasoning="glm45",
        ),
        Family(
            "gptoss",
            text("gptoss"),
            controls=_HARMONY,
            ends=("<|return|>", "<|call|>"),
            tools="gpt-oss",
            reasoning="gpt-oss",
        ),
        Family("idefics3", text("idefics3"), **smol),
        Family("lfm2", text("lfm2"), **lfm2),
        Family("lfm2_2_5", text("lfm2_2_5"), tools="lfm2", **lfm2),
        Family("lfm2_2_5_v2", text("lfm2_2_5_v2"), tools="lfm2", **lfm2),
        Family("lfm2_2_5_vl", text("lfm2_2_5_vl"), tools="lfm2", **lfm2),
        Family("lfm2_v2", text("lfm2_v2"), tools="lfm2", **lfm2),
        Family("llama3", text("llama3"), **llama),
        Family("llama3_1", text("llama3_1"), tools="llama3", **llama),
        Family("llama3_2", text("llama3_2"), tools="llama3", **llama),
        Family("llava_next", text("llava_next"), controls=_LLAVA, ends=("</s>",), bos="<s>"),
        Family(
            "muse_glimmer",
            text("muse_glimmer"),
            controls=_MUSE,
            ends=("<|eot|>", "<|eom|>"),
            tools="muse",
            reasoning="muse",
        ),
        _chatml("nemotron_3_5_lightning", "qwen3_coder", "nemotron_3"),
        _chatml("nemotron_3_nano", "qwen3_coder", "nemotron_3"),
        _chatml("nemotron_3_super", "qwen3_coder", "nemotron_3"),
        _chatml("nemotron_3_ultra", "qwen3_coder", "nemotron_3"),
        Family("phi3", text("phi3"), controls=_PHI, ends=("<|end|>",)),
        Family("phi3_5", text("phi3_5"), controls=_PHI, ends=("<|end|>",)),
        _chatml("qwen2_5", "qwen25"),
        _chatml("qwen2_5_vl"),
        _chatml("qwen3", "qwen25", "qwen3"),
        _chatml("qwen3_5_nothink", "qwen3_coder", "qwen3"),
        _chatml("qwen3_5_think", "qwen3_coder", "qwen3"),
        _chatml("qwen3_6", "qwen3_coder", "qwen3"),
        _chatml("qwen3_8", "qwen3_coder", "qwen3"),
        _chatml("qwen3_instruct_2507", "qwen25"),
        _chatml("qwen3_vl", "qwen25"),
        Family("smolvlm", text("smolvlm"), **smol),
    )


def _of_ours() -> tuple[Family, ...]:
    """Families that `trl` has no template of, in templates of our own."""
    return (
        Family(
            "kimi_k2",
            templates.KIMI_K2,
            controls=_KIMI,
            ends=("<|im_end|>",),
            tools="kimi_k2",
        ),
        Family(
            "kimi_k3",
            templates.KIMI_K3,
            controls=_KIMI_K3,
            ends=("<|end_of_msg|>",),
            tools="kimi_k3",
            reasoning="kimi_k3",
        ),
        Family(
            "minimax_m2",
            templates.MINIMAX_M2,
            controls=_MINIMAX,
            ends=("[e~[",),
            tools="minimax-m2",
            reasoning="minimax",
        ),
        Family(
            "step3",
            templates.STEP3,
            controls=_STEP3,
            ends=("<|EOT|>",),
            tools="step3",
            reasoning="step3",
        ),
        Family(
            "deepseek_v31",
            templates.DEEPSEEK_V31,
            vocabulary="deepseek_v3",
            controls=_DEEPSEEK,
            ends=("<｜end▁of▁sentence｜>",),
            tools="deepseekv31",
            reasoning="deepseek-v3",
        ),
        Family(
            "mistral_small",
            templates.MISTRAL_SMALL,
            vocabulary="mistral_nemo",
            controls=_MISTRAL,
            ends=("</s>",),
            tools="mistral",
        ),
        Family("llama_2", templates.LLAMA_2, vocabulary="mistral_7b_sp", ends=("</s>",)),
        Family(
            "phi3_rstrip",
            template_text("phi3"),
            vocabulary="mistral_7b_sp",
            controls=_PHI,
            ends=("<|end|>",),
            strips=True,
        ),
        Family(
            "glm_4_5",
            templates.GLM_4_5,
            controls=_GLM,
            ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
            tools="glm45",
            reasoning="glm45",
        ),
    )


def _built_in() -> tuple[Family, ...]:
    """The templates that the real vocabularies come with."""
    return (
        Family("built-in qwen3", None, "qwen3", tools="qwen25", reasoning="qwen3"),
        Family(
            "built-in deepseek_v3",
            None,
            "deepseek_v3",
            tools="deepseekv3",
        ),
        Family("built-in mistral_nemo", None, "mistral_nemo", tools="mistral"),
        Family("built-in llama3_2", None, "llama3_2", tools="llama3"),
        Family("built-in gemma3", None, "gemma3"),
    )


@cache
def families() -> tuple[Family, ...]:
    """All of them."""
    return (*_of_trl(), *_of_ours(), *_built_in())


def family(name: str) -> Family:
    """The one of this name."""
    [found] = [each for each in families() if each.name == name]
    return found
