"""The causes of drift: why two texts that should be the same are not, and how to explain it.

A cause is judged on a stretch of text in which both sides differ, with some text around it that
they share: a stretch begins and ends at tokens, which can be inside a word.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import Any

MAX_QUOTE_LEN = 48  # characters of a text that an explanation quotes
MAX_JSON_STARTS = 400  # brackets in a stretch of text at which a JSON value is looked for

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*"
_DATE = re.compile(
    rf"\b(?:{_DAY},?\s+)?(?:\d{{1,2}}[ -]{_MONTH},?[ -]\d{{4}}|{_MONTH} \d{{1,2}},? \d{{4}}"
    r"|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})\b"
    r"(?:[ T]\d{1,2}:\d{2}(?::\d{2})?)?"
)
_CONSTANT = re.compile(r"\b(?:true|false|null|none)\b", re.IGNORECASE)
_EMPTY = r"\s*+(?:false|none|null|0|\[\]|\{\}|)\s*+"  # possessive: white space may run long
_EMPTY_PARAMETER = re.compile(  # of a tool call that is written as XML: Qwen3-Coder, GLM
    rf"<parameter=[^<>\s]+>{_EMPTY}</parameter>"
    rf"|<arg_key>[^<>\s]+</arg_key>\s*+<arg_value>{_EMPTY}</arg_value>",
    re.IGNORECASE,
)
_BRACKET = re.compile(r"[\[{]")
_JSON = json.JSONDecoder()


class Cause(StrEnum):
    """Why the two sides diverge. Those listed first are looked for first."""

    SAME = "same"
    END_OF_TURN_NEWLINE = "end_of_turn_newline"
    TRUNCATED = "truncated"
    DOUBLE_BOS = "double_bos"
    SPECIAL_TOKEN_TEXT = "special_token_text"
    BPE_REMERGE = "bpe_remerge"
    REASONING_STRIPPED = "reasoning_stripped"
    STOP_TOKEN = "stop_token"
    JSON_RESPACED = "json_respaced"
    SCHEMA_DEFAULT = "schema_default"
    UNICODE_NORMALISED = "unicode_normalised"
    BOOLEAN_RESPELLED = "boolean_respelled"
    DATE_IN_TEMPLATE = "date_in_template"
    WHITESPACE = "whitespace"
    CLIENT_REWRITE = "client_rewrite"


def of_texts(held: str, rendered: str) -> Cause:
    """The cause that explains the whole difference of two stretches of text."""
    if held == rendered:
        return Cause.BPE_REMERGE
    for cause, plain in _SPELLINGS:
        if plain(held) == plain(rendered):
            return cause
    return Cause.CLIENT_REWRITE


def of_json(held: Any, rendered: Any) -> Cause | None:
    """The cause where both sides have the same JSON value; None where their values differ.

    `true` is not 1; 1.0 is 1; the order of keys does not count.
    """
    if _is_same(held, rendered):
        return Cause.JSON_RESPACED
    if _only_adds(held, rendered) or _only_adds(rendered, held):
        return Cause.SCHEMA_DEFAULT
    return None


def json_around(text: str, start: int, end: int) -> tuple[Any] | None:
    """The outermost JSON object or array in `text` that holds `[start, end)`, in a tuple."""
    stretch = text[start:end]
    start += len(stretch) - len(stretch.lstrip())
    end -= len(stretch) - len(stretch.rstrip())
    at = 0
    for _ in range(MAX_JSON_STARTS):
        bracket = _BRACKET.search(text, at, start + 1)
        if bracket is None:
            return None
        try:
            value, after = _JSON.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            at = bracket.end()
            continue
        if after > start:
            return (value,) if end <= after else None
        at = after
    return None


def explain(cause: Cause, held: str, rendered: str) -> str:
    """One plain sentence. The texts are what each side has where they differ."""
    return _SENTENCES[cause].format(held=_quoted(held), rendered=_quoted(rendered))


def _constant(match: re.Match[str]) -> str:
    word = match.group().lower()
    return "null" if word == "none" else word


def _solid(text: str) -> str:
    return "".join(text.split())


_SPELLINGS: tuple[tuple[Cause, Callable[[str], str]], ...] = (
    (Cause.UNICODE_NORMALISED, lambda text: unicodedata.normalize("NFC", text)),
    (Cause.BOOLEAN_RESPELLED, lambda text: _CONSTANT.sub(_constant, text)),
    (Cause.DATE_IN_TEMPLATE, lambda text: _DATE.sub("", text)),
    (Cause.WHITESPACE, _solid),
    (Cause.SCHEMA_DEFAULT, lambda text: _solid(_EMPTY_PARAMETER.sub("", text))),
)

_SENTENCES = {
    Cause.SAME: "The held tokens are exactly what the messages render to.",
    Cause.END_OF_TURN_NEWLINE: (
        "The held tokens end the turn with its stop token, and the template puts a newline after"
        " it, which no model samples; the rendered side continues with {rendered}."
    ),
    Cause.TRUNCATED: (
        "One side is a prefix of the other: held continues with {held}, rendered with {rendered}."
    ),
    Cause.DOUBLE_BOS: (
        "The token that begins a text is there twice on one side: a rendered template has it"
        " already, and encoding it with add_special_tokens adds another."
    ),
    Cause.SPECIAL_TOKEN_TEXT: (
        "{held} reads the same on both sides, but is a control token on one side and plain text"
        " on the other."
    ),
    Cause.BPE_REMERGE: (
        "{held} is held in other pieces than the tokenizer makes of it: the text is the same,"
        " the token ids are not."
    ),
    Cause.REASONING_STRIPPED: (
        "The reasoning {held} is held, and what the messages render to leaves it out."
    ),
    Cause.STOP_TOKEN: "The turn was ended by {held}, and the template ends it with {rendered}.",
    Cause.JSON_RESPACED: (
        "The same JSON is written differently (white space, order of keys, escapes): held has"
        " {held}, rendered has {rendered}."
    ),
    Cause.SCHEMA_DEFAULT: (
        "A field with its default value was added on one side: held has {held}, rendered has"
        " {rendered}."
    ),
    Cause.UNICODE_NORMALISED: (
        "The same characters are composed differently (Unicode NFC): held has {held}, rendered"
        " has {rendered}."
    ),
    Cause.BOOLEAN_RESPELLED: (
        "A constant is spelled differently, as in JSON and in Python: held has {held}, rendered"
        " has {rendered}."
    ),
    Cause.DATE_IN_TEMPLATE: (
        "Only a date differs, as with templates that print today's: held has {held}, rendered has"
        " {rendered}."
    ),
    Cause.WHITESPACE: "Only white space differs: held has {held}, rendered has {rendered}.",
    Cause.CLIENT_REWRITE: (
        "The text is different, so the client or the template rewrote it: held has {held},"
        " rendered has {rendered}."
    ),
}


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _only_adds(less: Any, more: Any) -> bool:
    """Whether `more` is `less` with fields added that have an empty value: false, null, 0, ""."""
    if isinstance(less, dict) and isinstance(more, dict):
        return (
            less.keys() <= more.keys()
            and all(not more[key] for key in more.keys() - less.keys())
            and all(_only_adds(less[key], more[key]) for key in less)
        )
    if isinstance(less, list) and isinstance(more, list):
        return len(less) == len(more) and all(map(_only_adds, less, more))
    return _is_same(less, more)


def _quoted(text: str) -> str:
    if not text:
        return "nothing"
    room = MAX_QUOTE_LEN // 2
    if len(text) > MAX_QUOTE_LEN:
        text = f"{text[:room]}…{text[-room:]}"
    return json.dumps(text, ensure_ascii=False)
