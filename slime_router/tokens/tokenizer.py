"""The model's own tokenizer: text to ids, ids to text, messages to text.

`checkpoint/` loads what it is made of; encoder, decoder and renderer do the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import cached_property

import numpy as np
import tokenizers

from slime_router.choices import EncoderName
from slime_router.errors import BadRequest, ContextLengthExceeded, SetupError, one_line
from slime_router.tokens.components import components
from slime_router.tokens.control_tokens import ControlTokens
from slime_router.tokens.decoder import Decoder, TokenBytes
from slime_router.tokens.encoder import After, Encoder
from slime_router.tokens.encoder_switch import EncoderSwitch
from slime_router.tokens.fast_encoder import load_fast_library
from slime_router.tokens.least_tokens import LeastTokens
from slime_router.tokens.libraries import Library, TokenizersLibrary
from slime_router.tokens.model import Model
from slime_router.tokens.proof import RENDERED, first_difference, probes
from slime_router.types import NO_TOKENS, Message, Piece, TemplateOptions, TokenIds, token_ids

logger = logging.getLogger(__name__)

__all__ = ["After", "Decoder", "Tokenizer"]

# Texts shorter than this are encoded in a few milliseconds: a thread would cost more than it saves.
INLINE_TEXT_LEN = 16_000
FAST_INLINE_TEXT_LEN = 32_000  # the same for a faster encoder, whatever the vocabulary and text
CHECKED_INLINE_TEXT_LEN = 1_000  # the same where both encode: a quarter of a millisecond


class Tokenizer:
    """One checkpoint's tokenizer and chat template. Immutable.

    Attributes:
        vocab_size: Ids that the model accepts; may be more than the tokenizer has.
        context_len, experts_shape, architectures, model_type: As `ModelConfig` has them.
        eos_ids: Ids at which a generation ends by itself.
        chat_template: The template's source, or the name of the format where Python code renders
            it; None when the checkpoint has no chat format.
        jinja_template: The template's source where Jinja renders it; else None.
        has_developer_role: Whether messages of the role `developer` have a form of their own.
        is_multimodal: Whether the model takes pictures or sound too.
        picture_token, picture_id: What a worker puts a picture's tokens in place of; "" and None
            where the checkpoint does not say it.
    """

    def __init__(self, checkpoint: Model) -> None:
        """`load_tokenizer` is the way to get one."""
        hf, config = checkpoint.hf, checkpoint.config
        # Encoding goes past the wrapper of `transformers`: in every call that one sets padding
        # and truncation on the shared backend, and two threads in it fail with "Already
        # borrowed". Set once here, the backend is only read from now on.
        backend: tokenizers.Tokenizer = hf.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.vocab_size: int = max(config.vocab_size, len(hf), max(added, default=0) + 1)
        self.context_len = config.context_len
        self.experts_shape = config.experts_shape
        own_eos = () if hf.eos_token_id is None else (hf.eos_token_id,)
        self.eos_ids = config.eos_ids.union(own_eos)
        self.architectures = config.architectures
        self.model_type = config.model_type
        self._renderer = checkpoint.renderer
        self.chat_template = None if self._renderer is None else self._renderer.source
        is_jinja = self._renderer is not None and self._renderer.is_jinja
        self.jinja_template = self.chat_template if is_jinja else None
        self.has_developer_role = self._renderer is not None and self._renderer.has_developer_role
        self.is_multimodal = config.is_multimodal or checkpoint.takes_media
        self.picture_token = added[config.picture_id].content if config.picture_id in added else ""
        self.picture_id = config.picture_id
        self._name = checkpoint.name
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._controls = ControlTokens(added, has_normalizer=bool(components(backend.normalizer)))
        literals = {
            token_id: token.content.encode()
            for token_id, token in added.items()
            if token_id in self._special_ids or token_id in self._controls
        }
        self._bytes = TokenBytes(backend, literals)
        self._visible_bytes = TokenBytes(backend, literals | dict.fromkeys(self._special_ids, b""))
        self._before, self._after = _around_text(backend)
        self._backend = backend
        self._encoder = Encoder(backend, self._controls, self._bytes)
        self._switch = EncoderSwitch(self._encoder)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._loading: Future[None] | None = None

    def __repr__(self) -> str:
        return (
            f"Tokenizer({self._name!r}, vocab_size={self.vocab_size}, "
            f"controls={len(self._controls)}, prefix_free={self._encoder.is_prefix_free})"
        )

    def close(self) -> None:
        """End the encoding thread. What needs no thread keeps working."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._switch.close()

    # Text to ids.

    def encode(self, text: str, after: After = After.START) -> TokenIds:
        """What the model's tokenizer makes of `text`, special tokens not added.

        Returns:
            Read-only int32, shape `[tokens]`.

        Raises:
            BadRequest: The text is not valid Unicode.
        """
        return self._switch.encode(lambda encoder: encoder.encode(text, after))

    def least_len(self, text: str) -> int:
        """At least so many tokens has `text`, whatever comes before it; nothing is encoded.

        The first call takes a tenth of a second, others 2 ms for a megabyte.
        """
        return self._least_tokens.of(text)

    @cached_property
    def _least_tokens(self) -> LeastTokens:
        return LeastTokens(self._backend)

    def framed(self, ids: TokenIds) -> TokenIds:
        """The ids of a text with the special tokens that the checkpoint puts around one."""
        return np.concatenate((self._before, ids, self._after))

    def encode_pieces(self, text: str, after: After = After.START) -> tuple[Piece, ...]:
        """`text` cut at safe places, each piece with its ids.

        `concat(p.text) == text` and `concat(p.ids) == encode(text, after)`. Where a piece ends
        depends on the text before that place, and on nothing after it but the control token or
        the space that begins there.
        """
        return self._switch.encode(lambda encoder: encoder.encode_pieces(text, after))

    async def encode_pieces_async(
        self, text: str, held: TokenIds = NO_TOKENS, context_len: int | None = None
    ) -> tuple[Piece, ...]:
        """`encode_pieces` of what follows the tokens `held`, as the whole text has it there.

        A long text is encoded in a thread while the event loop keeps running, and so is one that is
        not short on which a faster encoder is compared with `tokenizers`.

        Raises:
            BadRequest: The text is not valid Unicode.
            ContextLengthExceeded: The text is long, and can be seen not to fit after `held`.
        """
        if context_len is not None and len(text) >= max(INLINE_TEXT_LEN, context_len - len(held)):
            # In another thread than the executor's, where it would wait for texts to be encoded.
            least = len(held) + await asyncio.to_thread(self.least_len, text)
            if least >= context_len:
                raise ContextLengthExceeded.of(least, context_len, is_least=True)
        last_id = int(held[-1]) if len(held) else None
        work: Callable[[int | None, str], tuple[Piece, ...]] = self._encode_after
        inline_len = FAST_INLINE_TEXT_LEN if self._switch.is_fast else INLINE_TEXT_LEN
        if self._switch.is_check_due():
            work, inline_len = self._switch.encode_checked, CHECKED_INLINE_TEXT_LEN
        if len(text) < inline_len:
            return work(last_id, text)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, last_id, text)

    def _encode_after(self, last_id: int | None, text: str) -> tuple[Piece, ...]:
        return self._switch.encode(lambda encoder: encoder.encode_pieces_after(last_id, text))

    # A faster encoder.

    def use_faster_encoder(self, load: Callable[[str], Library] = load_fast_library) -> None:
        """Encode by a faster library from now on, if it is there and makes the same tokens.

        Takes seconds; other threads may encode in the meantime. `load` is given the vocabulary as
        the text of a `tokenizer.json`.

        Raises:
            SetupError: One line that says why `tokenizers` goes on.
        """
        library = load(self._backend.to_str())
        asked = list(probes(self._backend, list(self._renderings())))
        try:
            differs = first_difference(TokenizersLibrary(self._backend), library, asked)
        except Exception as exc:  # whatever the library raises on a text
            raise SetupError(f"fastokens failed on a probe: {one_line(exc)}") from exc
        if differs is not None:
            raise SetupError(f"fastokens makes other tokens than tokenizers of {differs!r}")
        self._switch.switch_on(library)

    def choose_encoder(self, name: EncoderName) -> None:
        """Encode by the library of this name; with `auto`, the faster one is loaded in a thread.

        Loading begins by holding the interpreter for some tenths of a second, so that is done
        early, while nobody waits for a stream.

        Raises:
            SetupError: The faster one was asked for and cannot be used.
        """
        if name == "fastokens":
            self.use_faster_encoder()
        elif name == "auto":
            loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="faster encoder")
            self._loading = loader.submit(self.use_faster_encoder)
            loader.shutdown(wait=False)

    async def encoder_chosen(self) -> None:
        """Waits until a faster encoder is loaded; where it cannot be used, the log says why."""
        loading, self._loading = self._loading, None
        if loading is None:
            return
        try:
            await asyncio.wrap_future(loading)
        except SetupError as exc:
            logger.info("texts are encoded by tokenizers: %s", exc.message)
        else:
            self.encode("a")  # the first text of a thread takes it 20 ms: not somebody's request
            logger.debug("texts are encoded by fastokens, which makes the tokens of tokenizers")

    def encoder_figures(self) -> dict[str, int]:
        """Whether a faster encoder is used, and how often it was compared and differed."""
        return {"fast": int(self._switch.is_fast), **asdict(self._switch.counts)}

    def _renderings(self) -> Iterator[str]:
        """What the template writes around a text and a tool, where it takes them."""
        for messages, options in RENDERED:
            with suppress(BadRequest):
                yield self.render(messages, options)

    # Control tokens and anchors.

    def find_controls(self, text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """All anchor control tokens from `start` on, left to right, as `(start, end, id)`."""
        return self._controls.find(text, start)

    def find_added(self, text: str) -> Iterator[tuple[int, int, int]]:
        """All added tokens in `text`, anchors or not, left to right, as `(start, end, id)`."""
        return self._controls.find_added(text)

    def eater(self, token_id: int) -> str:
        """The literal of an added token that may change what follows it; else ""."""
        return self._controls.eater(token_id)

    @property
    def control_ids(self) -> frozenset[int]:
        """All anchor control tokens."""
        return self._controls.ids

    def is_control(self, token_id: int) -> bool:
        """Whether it is an anchor control token."""
        return token_id in self._controls

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` removes it from the text."""
        return token_id in self._special_ids

    def is_anchor(self, text: str, index: int) -> bool:
        """Whether unsampled `text` can be cut at `index` without changing any token.

        It can at its start and where a control token starts; and, if the tokenizer puts nothing
        before a text, between a letter or digit and a space.
        """
        return self._encoder.is_anchor(text, index)

    def mark_names(self) -> Collection[str]:
        """The names of the tokens that may be a format's marks: added ones, and those with a
        bracket."""
        named = map(self._backend.id_to_token, range(self.vocab_size))
        marks = {name for name in named if name is not None and ("<" in name or "[" in name)}
        return marks.union(self.added_names())

    def added_names(self) -> list[str]:
        """The names of the tokens that were added to the vocabulary, control tokens among them."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values()]

    # Ids to text.

    def spelled(self, ids: TokenIds) -> list[str | None]:
        """The tokens as the vocabulary spells them (`ĠHello`); None for an id without a token."""
        return [self._backend.id_to_token(token_id) for token_id in ids.tolist()]

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes in the middle of a text; `b""` for an id without a token."""
        return self._bytes[token_id]

    def decoder(self, *, skip_special_tokens: bool) -> Decoder:
        """A new incremental decoder, for output that follows a prompt."""
        return Decoder(self._visible_bytes if skip_special_tokens else self._bytes)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids` as they read after a prompt."""
        decoder = self.decoder(skip_special_tokens=skip_special_tokens)
        return decoder.push(ids) + decoder.flush()

    # Messages to text.

    def render(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        *,
        date: datetime | None = None,
    ) -> str:
        """The prompt text that the chat template makes of `messages`.

        Args:
            messages: At least one; they are not changed.
            options: Tools, and whatever else the template is given.
            date: What the template takes as the current time, if it asks; None is the present.

        Raises:
            BadRequest: There is no template, or it refused the messages; in its own words.
        """
        if self._renderer is None:
            raise BadRequest("This model has no chat template.", param="messages")
        return self._renderer.render(messages, options, date)


def _around_text(backend: tokenizers.Tokenizer) -> tuple[TokenIds, TokenIds]:
    """The special tokens that the tokenizer puts before a text and after it."""
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    for start in range(len(whole)):
        end = start + len(bare)
        if whole[start:end] == bare:
            return token_ids(whole[:start]), token_ids(whole[end:])
    return NO_TOKENS, NO_TOKENS
