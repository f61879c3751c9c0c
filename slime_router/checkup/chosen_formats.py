"""The formats that a checkpoint's replies are read in, and the parsers that read them."""

from __future__ import annotations

from functools import partial

from slime_router.checkup.proof import Proof
from slime_router.replies.formats import Formats, choose_formats
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_detection import ModelTraits, detect, thinking_of
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer


def chosen_formats(
    tools: str,
    reasoning: str,
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    strips_newlines: bool,
) -> tuple[Formats, ReplyParsers]:
    """What the flags `tools` and `reasoning` come to; what is detected is proved.

    Raises:
        SetupError: a format is named that SGLang does not have, or that cannot be used here.
    """
    make = partial(
        ReplyParsers,
        load_parsers,
        strips_newlines=strips_newlines,
        new_call_id=template.spelling.new_id,
        added_tokens=tokenizer.added_names(),
        thinking=thinking_of(tokenizer.jinja_template),
    )
    formats = choose_formats(
        tools,
        reasoning,
        detect=lambda: detect(ModelTraits.of(tokenizer)),
        try_out=lambda tools, reasoning: ReplyParsers(
            load_parsers, tools=tools, reasoning=reasoning
        ),
        proof=Proof(tokenizer, template.findings, make, load_parsers),
    )
    parsers = make(
        tools=formats.tools.name,
        reasoning=formats.reasoning.name,
        presumes_thinking=formats.presumes_thinking,
    )
    return formats, parsers
