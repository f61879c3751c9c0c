"""The proof that a library encodes as `tokenizers` does: probes on which both must agree.

Probes hold what implementations are known to differ on: scripts, runs of white space, digits,
combining marks, control tokens whole and broken, each added token, tokens of the vocabulary as
text, and what the chat template writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tokenizers

from slime_router.tokens.libraries import Library
from slime_router.types import Message, TemplateOptions

Probe = tuple[str, str]  # its name in the log, and its text

MAX_SAMPLED_TOKENS = 4096  # of the vocabulary
MAX_BROKEN_LITERALS = 64

_TEXTS: Sequence[Probe] = (
    ("nothing", ""),
    ("prose", "You are a helpful assistant.  What's 1 + 23 - 4567?\n\nI'LL go, don't, it's 'S."),
    ("code", "    def f(x):\n\treturn x  # it's\n\n\n#include <a.h>\r\n\r\n\tif (a&&b) {\n}\n//"),
    ("JSON", '{"name": "get_weather", "arguments": {"city": "Zürich", "n": [1, -2.5e3]}}}\n'),
    ("Latin", "Grüße aus Köln, déjà vu — naïve café; İstanbul ǅ ﬁ"),
    ("Cyrillic and Greek", "Привет  мир! Σίσυφος"),
    ("Chinese and Japanese", "東京は日本の首都です。中文English混合，\u3000ＡＢ１"),
    ("Korean", "안녕 하세요 한글"),
    ("Arabic and Hebrew", "مرحبا بالعالم ש\u05c1\u05b8לו\u05b9ם 123"),
    ("Thai and Hindi", "ภาษาไทยน\u0e49ำ नमस\u094dत\u0947 क\u094dष\u0947"),
    ("combining marks", "e\u0301 o\u0308\u0323 a\u0300\u0316b\u0315 \u212b Å क़"),
    ("emoji", "🙂 ok🙂 👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 1\ufe0f\u20e3"),
    ("digits", "1 12 123 1234 1234567890 1.000.000,5 0x1F 3rd v2.0.1 ١٢٣ ½ Ⅳ"),
    ("spaces", "a  b   c    d\u00a0e\u3000f\u200bg \u2028 \u0085 \v\f" + " " * 70 + "x" + " " * 7),
    ("line breaks", "a\nb\n\nc\n\n\nd\r\ne\r\n\r\nf \n g\n \n\th\r" + "\n" * 40 + "i\n"),
    ("tabs", "\ta\t\tb \tc\t d\n\t\t\te" + "\t" * 20),
    ("punctuation", "!!! ... ?! -- === //// ((())) [[]] {{}} <<>> “x” «» $%^&*~`@#"),
    ("broken control tokens", "<| |> <|im <|im_end| im_end|> </s <s [INST <pad <0x0A> ▁"),
    ("controls", "\x00\x01\x1b[0m\x7f\u00ad\u200d\ufeff�\ufffe\U0010ffff"),
    ("one long word", "a" * 600 + "abcdefghij" * 80 + "==" * 60),
)  # fmt: skip

_SAID: Message = {"role": "user", "content": "Café 東京 12 +  34?\n\n\tHi "}
_REPLY: Message = {"role": "assistant", "content": "\n\nYes: ```py\nx = 1\n``` 🙂"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
# Conversations for the chat template, which may refuse any of them.
RENDERED: Sequence[tuple[Sequence[Message], TemplateOptions]] = (
    ([_SAID], TemplateOptions()),
    ([{"role": "system", "content": "Be short."}, _SAID, _REPLY, _SAID], TemplateOptions()),
    ([_SAID], TemplateOptions(tools=(_TOOL,))),
)


def vocabulary_probes(backend: tokenizers.Tokenizer) -> Iterator[Probe]:
    """Texts that are made of the vocabulary's own tokens."""
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    if added:
        for name, between in (("side by side", ""), ("in text", " x "), ("on lines", "\n\n")):
            yield f"added tokens {name}", between.join(added)
        some = added[:: max(1, len(added) // MAX_BROKEN_LITERALS)]
        yield "broken added tokens", " ".join(word[:-1] + word + word[1:] for word in some)
    size = backend.get_vocab_size(with_added_tokens=False)
    step = max(1, size // MAX_SAMPLED_TOKENS)
    ids = [[token_id] for token_id in range(0, size, step)]
    words = backend.decode_batch(ids, skip_special_tokens=False)
    for name, between in (("side by side", ""), ("in text", " ")):
        yield f"tokens {name}", between.join(words)


def probes(backend: tokenizers.Tokenizer, renderings: Sequence[str]) -> Iterator[Probe]:
    """All probes; `renderings` are the chat template's."""
    yield from _TEXTS
    yield "all of these", "".join(text for _, text in _TEXTS)
    yield from vocabulary_probes(backend)
    yield from (("the chat template's text", text) for text in renderings)


def first_difference(reference: Library, other: Library, asked: Sequence[Probe]) -> str | None:
    """The name of the first probe that both encode differently, each alone and all at once."""
    texts = [text for _, text in asked]
    expected = reference.encode(texts)
    alone = (other.encode([text])[0] for text in texts)
    for (name, _), ids, run, in_batch in zip(
        asked, expected, alone, other.encode(texts), strict=True
    ):
        if not ids.tolist() == run.tolist() == in_batch.tolist():
            return name
    return None
