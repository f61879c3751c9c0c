"""A faster encoder: used once it is proved, watched from then on, and never trusted blindly."""

from __future__ import annotations

import asyncio
import logging
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.config import Config
from slime_router.errors import BadRequest, SetupError
from slime_router.server.app import Gateway
from slime_router.server.metrics import figures
from slime_router.tokens.encoder_switch import CHECK_EVERY, MAX_CHECKED_LEN
from slime_router.tokens.libraries import Library, TokenizersLibrary
from slime_router.tokens.proof import RENDERED, first_difference, probes
from slime_router.tokens.tokenizer import CHECKED_INLINE_TEXT_LEN, Tokenizer
from slime_router.types import TokenIds, token_ids
from tests.integration.gateway import checkpoint

LIE = "\N{SNOWMAN}"  # in no probe


class PanicException(BaseException):
    """As code in Rust raises it."""


class Twisted:
    """Encodes as `tokenizers` does, but for texts that hold `word`: there `twist` has its way."""

    def __init__(
        self,
        vocabulary: str,
        word: str = LIE,
        twist: Callable[[TokenIds], Any] = lambda ids: ids[::-1],
    ) -> None:
        self.library = TokenizersLibrary(tokenizers.Tokenizer.from_str(vocabulary))
        self.word, self.twist = word, twist
        self.texts: list[str] = []
        self.threads: set[str] = set()

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        self.texts += texts
        self.threads.add(threading.current_thread().name)
        runs = self.library.encode(texts)
        return [
            token_ids(self.twist(ids)) if self.word in text else ids
            for ids, text in zip(runs, texts, strict=True)
        ]


class Spy:
    """The reference, which notes what it is asked for."""

    def __init__(self, library: Library) -> None:
        self.library, self.texts = library, list[str]()

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        self.texts += texts
        return self.library.encode(texts)


@pytest.fixture
def ours() -> Iterator[Tokenizer]:
    tokenizer = load_tokenizer(str(checkpoint()))
    yield tokenizer
    tokenizer.close()


def quickened(tokenizer: Tokenizer, **twists: Any) -> Twisted:
    made: list[Twisted] = []

    def load(vocabulary: str) -> Library:
        made.append(Twisted(vocabulary, **twists))
        return made[0]

    tokenizer.use_faster_encoder(load)
    made[0].texts.clear()
    made[0].threads.clear()
    return made[0]


async def asked(tokenizer: Tokenizer, text: str) -> list[int]:
    pieces = await tokenizer.encode_pieces_async(text)
    assert "".join(piece.text for piece in pieces) == text
    return [token_id for piece in pieces for token_id in piece.ids.tolist()]


def fail(exc: BaseException) -> Callable[[TokenIds], Any]:
    def twist(_: TokenIds) -> Any:
        raise exc

    return twist


# The proof


def test_a_library_that_agrees_is_used(ours):
    fast = quickened(ours)
    assert ours.encoder_figures() == {"fast": 1, "checked": 0, "differed": 0}
    before = ours.encode("Hello").tolist()
    assert fast.texts == ["Hello"]
    assert before == ours._encoder.encode("Hello", "start").tolist()


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Привет", "Cyrillic"),
        ("   ", "prose"),
        ("<|im_end|>", "added tokens"),
        ("<|im_start|>user\nCafé", "chat template"),
        ("\r\n", "code"),
    ],
)
def test_a_library_that_differs_on_a_probe_is_refused_and_the_probe_named(ours, word, name):
    with pytest.raises(SetupError) as caught:
        quickened(ours, word=word)
    assert "fastokens makes other tokens than tokenizers" in caught.value.message
    if name != "prose":
        assert name in caught.value.message
    assert "\n" not in caught.value.message
    assert ours.encoder_figures()["fast"] == 0


def test_a_library_that_fails_on_a_probe_is_refused(ours):
    with pytest.raises(SetupError, match="failed on a probe: no such"):
        quickened(ours, word="Привет", twist=fail(ValueError("no such\nscript")))
    assert ours.encoder_figures()["fast"] == 0


def test_a_library_that_differs_only_in_batches_is_refused(ours):
    """The encoder gives it one text at a time where they are short, many otherwise."""

    class Batches(Twisted):
        def encode(self, texts: Sequence[str]) -> list[TokenIds]:
            runs = super().encode(texts)
            return runs if len(texts) == 1 else [*runs[:-1], runs[0]]

    with pytest.raises(SetupError, match="other tokens"):
        ours.use_faster_encoder(Batches)


def test_the_proof_goes_through_every_added_token_and_what_the_template_writes(ours):
    backend = ours._backend
    renderings = list(ours._renderings())
    assert len(renderings) == len(RENDERED)
    made = list(probes(backend, renderings))
    everything = "".join(text for _, text in made)
    for token in backend.get_added_tokens_decoder().values():
        assert token.content in everything
    assert all(text in everything for text in renderings)
    assert LIE not in everything
    reference = TokenizersLibrary(backend)
    assert first_difference(reference, reference, made) is None


# Requests


async def test_a_request_on_which_it_differs_gets_the_tokens_of_tokenizers(ours, caplog):
    expected = ours.encode(f"a {LIE} b").tolist()
    fast = quickened(ours)
    with caplog.at_level(logging.WARNING):
        assert await asked(ours, f"a {LIE} b") == expected
    [line] = [record.message for record in caplog.records]
    assert "fastokens is switched off" in line
    assert LIE not in line, "what clients write is none of the log's business"
    assert ours.encoder_figures() == {"fast": 0, "checked": 1, "differed": 1}
    fast.texts.clear()
    assert await asked(ours, f"a {LIE} b") == expected
    assert fast.texts == [], "it stays off"
    ours._switch.switch_on(fast)
    assert not ours._switch.is_fast


async def test_one_request_of_many_is_compared(ours):
    fast = quickened(ours)
    for _ in range(2 * CHECK_EVERY):
        await asked(ours, "Hello there")
    assert ours.encoder_figures() == {"fast": 1, "checked": 2, "differed": 0}
    wrong = fast.encode([LIE])[0].tolist()
    await asked(ours, "the next one to be compared")
    assert await asked(ours, LIE) == wrong, "this test would not notice if all were compared"


async def test_comparing_never_holds_the_loop_for_long(ours):
    fast = quickened(ours)
    await asked(ours, "Hello there " * CHECKED_INLINE_TEXT_LEN)
    assert all(name.startswith("tokenizer") for name in fast.threads)
    fast.threads.clear()
    await asked(ours, "Hello again")
    assert fast.threads == {threading.current_thread().name}


async def test_a_short_text_is_compared_where_it_is_encoded(ours):
    fast = quickened(ours)
    await asked(ours, "Hello there")
    assert fast.threads == {threading.current_thread().name}
    assert ours.encoder_figures()["checked"] == 1


@pytest.mark.parametrize("word", ["word ", "x", "<|im_end|>\n<|im_start|>user\n"])
async def test_of_a_long_text_only_a_part_is_compared(ours, word):
    quickened(ours)
    ours._switch._check_every = 1
    spy = Spy(ours._encoder._library)
    ours._encoder._library = spy
    text = word * (40 * MAX_CHECKED_LEN // len(word))
    for _ in range(3):
        await asked(ours, text)
        assert sum(map(len, spy.texts)) <= 2 * MAX_CHECKED_LEN
        spy.texts.clear()
    assert ours.encoder_figures()["differed"] == 0
    assert ours.encoder_figures()["checked"] == (0 if word == "x" else 3)


async def test_a_difference_late_in_a_long_text_is_found_sooner_or_later(ours):
    text = "word " * 4 * MAX_CHECKED_LEN + LIE
    expected = ours.encode(text).tolist()
    quickened(ours)
    ours._switch._check_every = 1
    for _ in range(60):
        if await asked(ours, text) == expected:
            break
    assert ours.encoder_figures()["differed"] == 1


@pytest.mark.parametrize("exc", [RuntimeError("pcre2"), MemoryError(), KeyError(3)])
async def test_a_request_on_which_it_fails_gets_the_tokens_of_tokenizers(ours, caplog, exc):
    expected = ours.encode(LIE).tolist()
    quickened(ours, twist=fail(exc))
    await asked(ours, "the first is compared, this one is not")
    assert await asked(ours, LIE) == expected
    assert ours.encoder_figures() == {"fast": 0, "checked": 1, "differed": 1}
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


async def test_a_text_that_is_not_unicode_is_the_clients_fault(ours):
    quickened(ours)
    for _ in range(3):
        with pytest.raises(BadRequest):
            await ours.encode_pieces_async("a\ud800b")
    assert ours.encoder_figures()["fast"] == 1


# The library itself


def pretend(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    """Put a module in the place of fastokens."""
    monkeypatch.setitem(sys.modules, "fastokens", SimpleNamespace(**members))


def module(**changes: Any) -> dict[str, Any]:
    """What is used of it, made of `tokenizers`."""

    class Tokenizer:
        def __init__(self, vocabulary: str) -> None:
            self.backend = tokenizers.Tokenizer.from_str(vocabulary)

        from_json_str = classmethod(lambda cls, vocabulary: cls(vocabulary))

        def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
            runs = [self.backend.encode(text, add_special_tokens=False).ids for text in texts]
            ids = [token_id for run in runs for token_id in run]
            ends = [sum(map(len, runs[:end])) for end in range(len(runs) + 1)]
            return struct.pack(f"<{len(ids)}I", *ids), struct.pack(f"<{len(ends)}Q", *ends)

    for name, value in changes.items():
        setattr(Tokenizer, name, value)
    return {"Tokenizer": Tokenizer}


def test_a_library_like_fastokens_fits(ours, monkeypatch):
    pretend(monkeypatch, **module())
    ours.use_faster_encoder()
    assert ours.encoder_figures()["fast"] == 1


@pytest.mark.parametrize(
    "members",
    [
        {},
        module(from_json_str=None),
        module(encode_batch_flat=None),
        module(encode_batch_flat=lambda self, texts: [[1]]),
        module(encode_batch_flat=lambda self, texts: (b"", b"")),
        module(encode_batch_flat=lambda self, texts: (b"abc", bytes(32))),
        module(encode_batch_flat=lambda self: None),
    ],
)
def test_another_version_of_the_library_is_refused(ours, monkeypatch, members):
    pretend(monkeypatch, **members)
    with pytest.raises(SetupError, match="this version of fastokens does not fit: Tokenizer"):
        ours.use_faster_encoder()
    assert ours.encoder_figures()["fast"] == 0


@pytest.mark.parametrize("exc", [ValueError("no\nMetaspace"), PanicException("no\nMetaspace")])
def test_a_vocabulary_that_it_cannot_read_is_named_on_one_line(ours, monkeypatch, exc):
    pretend(monkeypatch, **module(from_json_str=lambda vocabulary: fail(exc)(token_ids([]))))
    with pytest.raises(SetupError, match="cannot read this vocabulary: no Metaspace"):
        ours.use_faster_encoder()


async def test_a_panic_in_rust_ends_no_request(ours, monkeypatch):
    plain = module()["Tokenizer"].encode_batch_flat

    def panics(self: Any, texts: list[str]) -> Any:
        if LIE in "".join(texts):
            raise PanicException("index out of bounds")
        return plain(self, texts)

    expected = ours.encode(LIE).tolist()
    pretend(monkeypatch, **module(encode_batch_flat=panics))
    ours.use_faster_encoder()
    assert await asked(ours, LIE) == expected
    assert ours.encoder_figures()["fast"] == 0


# The flag


def gateway(**settings: Any) -> Gateway:
    return Gateway(Config(hf_checkpoint=str(checkpoint()), **settings))


def test_asking_for_the_library_where_it_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    with pytest.raises(SetupError) as caught:
        gateway(encoder="fastokens")
    assert "pip install 'slime-router[fast]'" in caught.value.message
    assert "\n" not in caught.value.message


def test_asking_for_the_library_where_it_differs_is_one_line(monkeypatch):
    kind = module()["Tokenizer"]
    plain = kind.encode_batch_flat
    kind.encode_batch_flat = lambda self, texts: plain(
        self, [text.replace("Привет", "") for text in texts]
    )
    pretend(monkeypatch, Tokenizer=kind)
    with pytest.raises(SetupError, match="other tokens than tokenizers of 'Cyrillic and Greek'"):
        gateway(encoder="fastokens")


@pytest.mark.parametrize("encoder", ["auto", "tokenizers", "fastokens"])
async def test_the_flag_chooses(encoder):
    router = gateway(encoder=encoder)
    if encoder != "auto":  # which may be ready by now
        assert figures(router)["encoder"]["fast"] == (encoder == "fastokens")
    assert await started(router) == (encoder != "tokenizers")


async def test_the_loops_first_text_is_none_of_a_request(monkeypatch):
    """Each thread's first one makes fastokens allocate for it."""
    kind, threads = module()["Tokenizer"], list[str]()
    plain = kind.encode_batch_flat

    def noted(self: Any, texts: list[str]) -> Any:
        threads.append(threading.current_thread().name)
        return plain(self, texts)

    kind.encode_batch_flat = noted
    pretend(monkeypatch, Tokenizer=kind)
    router = gateway(encoder="auto")
    assert await started(router)
    assert threads[-1] == threading.current_thread().name
    assert threads[0] != threads[-1]


async def test_by_default_a_missing_library_is_only_noted(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    router = gateway()
    with caplog.at_level(logging.INFO):
        await started(router)
    lines = [r.message for r in caplog.records if "fastokens" in r.message]
    assert lines == [
        "texts are encoded by tokenizers: fastokens is not installed: pip install"
        " 'slime-router[fast]', or --encoder tokenizers"
    ]
    assert figures(router)["background"]["failures"] == 0


async def started(router: Gateway) -> bool:
    """Start and end it, and wait in between for the library to be loaded; whether it is used."""
    life = router._lifespan(router.app())
    await anext(life)
    loading = [task for task in asyncio.all_tasks() if task.get_name() == "faster encoder"]
    async with asyncio.timeout(60):
        await asyncio.gather(*loading)
    is_fast: int = figures(router)["encoder"]["fast"]
    with pytest.raises(StopAsyncIteration):
        await anext(life)
    assert figures(router)["encoder"]["fast"] == 0, "it takes no memory when all is over"
    return bool(is_fast)
