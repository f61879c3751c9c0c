"""Pictures in the templates of models that see: a mark stands wherever they print one."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from slime_router.template.chat_template import ChatTemplate
from slime_router.template.pictures import digest_of, mark_of
from slime_router.template.renderer import JinjaRenderer
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import families
from tests.families.checkpoints import Family, _directory, _model

pytestmark = pytest.mark.tokenizers

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# What stands for a picture in a prompt, by the `config.json` of these models.
TOKENS = {
    "gemma3": "<image_soft_token>",
    "gemma4": "<|image|>",
    "diffusion_gemma": "<|image|>",
    "idefics3": "<image>",
    "lfm2": "<image>",
    "llava_next": "<image>",
    "muse_glimmer": "<|image|>",
    "qwen": "<|image_pad|>",
    "smolvlm": "<image>",
}
SEEING = {each.name: each for each in families() if "image" in (each.template or "")}
PICTURE = {"type": "image"}


@cache
def template_of(name: str) -> ChatTemplate:
    family: Family = SEEING[name]
    token = next(each for begin, each in TOKENS.items() if name.startswith(begin))
    if token not in family.controls:
        family = replace(family, controls=(*family.controls, token))
    model = _model(_directory(family))
    assert family.template is not None
    token_id = model.hf.convert_tokens_to_ids(token)
    return ChatTemplate(
        Tokenizer(
            replace(
                model,
                renderer=JinjaRenderer(model.hf, family.template),
                config=replace(model.config, picture_id=token_id),
            )
        )
    )


def on_the_page() -> dict[str, tuple[str, str]]:
    """What the page says: by family what is printed, and whose messages have it."""
    text = PAGE.read_text(encoding="utf-8").partition("## Pictures")[2]
    lines = re.findall(r"^- `(.*)`, in messages of (.*): (.*)$", text, re.MULTILINE)
    [passed_on] = re.findall(r"^- passed on: (.*)$", text, re.MULTILINE)
    return {
        **{name: (printed, who) for printed, who, names in lines for name in names.split(", ")},
        **dict.fromkeys(passed_on.split(", "), ("", "")),
    }


def test_the_page_lists_how_each_template_shows_pictures():
    found = {}
    for name in SEEING:
        pictures = template_of(name).pictures
        if pictures is None:
            found[name] = ("", "")
        else:
            printed = pictures.before + pictures.token + pictures.after
            who = "users and tools" if "tool" in pictures.roles else "users"
            found[name] = (printed.replace("\n", "\\n"), who)
    assert found == on_the_page()


TALKS: tuple[tuple[Any, ...], ...] = (
    (["What is it?", PICTURE], "A cat.", ["And", PICTURE, "this?"], "A dog.", "Thanks."),
    ([PICTURE, PICTURE, " both \n"], "They\n\nare.", "Hm.", "Yes.", [PICTURE]),
    (["\n a \n", PICTURE, "\n\n b", "c ", PICTURE, " "], "ok", ["d", "e"]),
    ("Hi", "Hello.", [PICTURE, "<b>&amp;</b> {{ x }} {% y %}", PICTURE, "z"]),
)


@pytest.mark.parametrize("name", [name for name, row in on_the_page().items() if row[1]])
@pytest.mark.parametrize("talk", TALKS)
def test_marks_are_printed_where_the_template_prints_pictures(name, talk):
    """The template renders the conversation as it is, and the router that with marks."""
    template = template_of(name)
    assert template.pictures is not None
    real: list[Message] = []
    marked: list[Message] = []
    for number, said in enumerate(talk):
        role = "assistant" if number % 2 else "user"
        real.append({"role": role, "content": _parts(said, PICTURE)})
        mark = {"type": "text", "text": mark_of(digest_of(str(number).encode()))}
        marked.append({"role": role, "content": _parts(said, mark)})
    options = TemplateOptions()
    expected = template._try_as_it_is(real, options)
    text = template.pictures.shown(template.render(marked, options))
    assert template.pictures.written(text) == expected


def _parts(said: Any, picture: dict[str, Any]) -> Any:
    if isinstance(said, str):
        return said
    return [picture if each is PICTURE else {"type": "text", "text": each} for each in said]
