"""An oracle that shares nothing with the router: `renderers` writes formats in Python.

Where both know a family, the next prompt must be the same ids, held tokens and all. Its gpt-oss
needs a vocabulary of its own, and its other families are none of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from renderers import configs, create_renderer

from slime_router.checkup.examination import Examination
from slime_router.checkup.scenarios import TOOLS, Scenario, scenarios
from slime_router.tokens.tokenizer import Tokenizer
from tests.families.catalogue import family

pytestmark = pytest.mark.tokenizers

KEEP: Any = {"thinking_retention": "all"}  # what was sampled stays
RENDERERS: dict[str, Callable[..., Any]] = {
    "qwen3": configs.Qwen3RendererConfig,
    "qwen3_5_think": configs.Qwen35RendererConfig,
    "qwen3_6": configs.Qwen36RendererConfig,
    "qwen3_8": configs.Qwen38RendererConfig,
    "qwen3_vl": configs.Qwen3VLRendererConfig,
    "gemma4_v5": configs.Gemma4RendererConfig,
    "glm4moe": configs.GLM45RendererConfig,
    "minimax_m2": configs.MiniMaxM2RendererConfig,
    "kimi_k2": configs.KimiK2RendererConfig,
    "built-in deepseek_v3": configs.DeepSeekV3RendererConfig,
    "deepseek_r1_distill": configs.DeepSeekR1RendererConfig,
    "nemotron_3_nano": configs.Nemotron3RendererConfig,
    "nemotron_3_super": configs.Nemotron3RendererConfig,
    "nemotron_3_ultra": configs.Nemotron3UltraRendererConfig,
    "nemotron_3_5_lightning": configs.Nemotron35RendererConfig,
    "llama3_2": configs.Llama3RendererConfig,
}


CLOSES_THOUGHT = "it closes a thought that was cut before it closes the turn; no template does"
NO_OUTPUTS_BEGIN = "it opens the results of each loop, the template those of the first only"
NO_THINK = "it opens a thought after results; this template does not"
USER_AFTER = "it closes the results before a user's turn; the template only before a reply"
LINE_END = "the template puts a line end between results; it does not"
DECLINES = "it declines to continue such a turn"
OWN_END = "it closes a turn that was cut with <|endoftext|>; the template with the next header"
THINKERS = (
    "qwen3",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "gemma4_v5",
    "glm4moe",
    "minimax_m2",
    "deepseek_r1_distill",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "nemotron_3_5_lightning",
)
# Where it continues a turn otherwise, and why the router's way is right anyway.
DIFFERENCES = {
    **{(name, "cut in thinking"): CLOSES_THOUGHT for name in THINKERS},
    ("glm4moe", "cut in content"): OWN_END,
    ("glm4moe", "cut in a call"): OWN_END,
    ("gemma4_v5", "result and user"): DECLINES,
    ("gemma4_v5", "cut in a call"): DECLINES,
    ("built-in deepseek_v3", "tool loop"): NO_OUTPUTS_BEGIN,
    ("built-in deepseek_v3", "user after tools"): NO_OUTPUTS_BEGIN,
    ("built-in deepseek_v3", "result and user"): USER_AFTER,
    ("built-in deepseek_v3", "parallel calls"): LINE_END,
    ("deepseek_r1_distill", "thinking with tools"): NO_THINK,
    ("deepseek_r1_distill", "tool loop"): NO_THINK,
    ("deepseek_r1_distill", "user after tools"): NO_THINK,
    ("deepseek_r1_distill", "call without arguments"): NO_THINK,
    ("deepseek_r1_distill", "result and user"): USER_AFTER,
    ("deepseek_r1_distill", "parallel calls"): LINE_END,
}
DEFAULTS = {"gemma4_v5": False}  # whether a model thinks where nobody says


class Adapter:
    """The router's tokenizer as `renderers` wants one."""

    unk_token_id = None

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        self.name_or_path = name
        self.eos_token_id = min(tokenizer.eos_ids)

    def encode(self, text: str, *_: Any, **__: Any) -> list[int]:
        return [int(token_id) for token_id in self._tokenizer.encode(text)]

    def decode(self, ids: Sequence[int], *_: Any, **__: Any) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        found = [each for *_, each in self._tokenizer.find_added(token)]
        return found[0] if len(found) == 1 else None


async def differences(name: str) -> dict[str, str]:
    chosen = family(name)
    examination = Examination(chosen.tokenizer(), chosen.chat_template(), chosen.parsers())
    found = {}
    for scenario in scenarios():
        config = RENDERERS[name](**KEEP, **_switch(name, scenario))
        renderer = create_renderer(Adapter(chosen.tokenizer(), name), config)
        difference = await difference_in(scenario, examination, renderer)
        if difference:
            found[scenario.capability] = difference
    return found


def _switch(name: str, scenario: Scenario) -> dict[str, bool]:
    """How the oracle learns whether the model thinks; as the template is, which may not ask."""
    if "enable_thinking" not in RENDERERS[name].model_fields:  # type: ignore[attr-defined]
        return {}
    return {
        "enable_thinking": bool(scenario.kwargs.get("enable_thinking", DEFAULTS.get(name, True)))
    }


async def difference_in(scenario: Scenario, examination: Examination, renderer: Any) -> str:
    """What the oracle continues a turn with where that is something else."""
    before = None
    async for turn, asks in examination.turns(examination.stand(), scenario):
        if before is not None:
            tools = list(TOOLS) if scenario.has_tools else None
            bridged = renderer.bridge_to_next_turn(
                list(before.ids), list(before.output_ids), asks, tools=tools
            )
            if bridged is None:
                return "declines"
            if list(turn.ids) != list(bridged.token_ids):
                held = len(before.held)
                ours, theirs = turn.ids[held:], bridged.token_ids[held:]
                return f"ours {examination.text(ours)!r}, theirs {examination.text(theirs)!r}"
        before = turn
    return ""


@pytest.mark.parametrize("name", RENDERERS)
async def test_the_oracle_continues_turns_alike(name):
    """But for what is listed, which must differ still."""
    listed = {capability for family_name, capability in DIFFERENCES if family_name == name}
    found = await differences(name)
    assert found.keys() == listed, {each: found.get(each) for each in found.keys() ^ listed}
