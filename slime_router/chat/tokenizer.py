"""The model's own tokenizer: text to ids, ids to text, messages to text.

The only module that imports `transformers`. It loads; encoder, decoder and renderer do the work.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from slime_router.chat.control import ControlTokens
from slime_router.chat.decoder import Decoder, TokenBytes, components
from slime_router.chat.encoder import After, Encoder
from slime_router.chat.modalities import is_multimodal
from slime_router.chat.renderer import Renderer, one_line
from slime_router.errors import BadRequest, SetupError
from slime_router.types import NO_TOKENS, Message, Piece, TemplateOptions, TokenIds

__all__ = ["After", "Decoder", "Tokenizer"]

# Texts shorter than this are encoded in a few milliseconds: a thread would cost more than it saves.
INLINE_TEXT_LEN = 16_000


class Tokenizer:
    """One checkpoint's tokenizer and chat template. Nothing of it changes after `load`.

    Attributes:
        vocab_size: Ids that the model accepts; may be more than the tokenizer has.
        context_len: Tokens that fit the model's context, where the checkpoint says it.
        eos_ids: Ids at which a generation ends by itself.
        chat_template: The template's source; None when the checkpoint has none.
        is_multimodal: Whether the model takes pictures or sound too.
    """

    def __init__(
        self,
        hf: Any,
        *,
        name: str,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any],
        chat_template: str | None,
        is_multimodal: bool = False,
    ) -> None:
        """`hf` is a fast tokenizer as `transformers` loads it; `load` is the way to get one."""
        # Encoding goes past the wrapper of `transformers`: in every call that one sets padding
        # and truncation on the shared backend, and two threads in it fail with "Already
        # borrowed". Set once here, the backend is only read from now on.
        backend: tokenizers.Tokenizer = hf.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        text_config = {**config, **(config.get("text_config") or {})}
        self.vocab_size: int = max(
            text_config.get("vocab_size") or 0, len(hf), max(added, default=0) + 1
        )
        self.context_len: int | None = text_config.get("max_position_embeddings")
        self.eos_ids: frozenset[int] = (
            _ids(generation_config.get("eos_token_id"))
            | _ids(text_config.get("eos_token_id"))
            | _ids(hf.eos_token_id)
        )
        self.chat_template = chat_template
        self.is_multimodal = is_multimodal
        self._name = name
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._controls = ControlTokens(added, has_normalizer=bool(components(backend.normalizer)))
        literals = {
            token_id: token.content.encode()
            for token_id, token in added.items()
            if token_id in self._special_ids or token_id in self._controls
        }
        self._bytes = TokenBytes(backend, literals)
        self._visible_bytes = TokenBytes(backend, literals | dict.fromkeys(self._special_ids, b""))
        self._renderer = None if chat_template is None else Renderer(hf, chat_template)
        self._encoder = Encoder(backend, self._controls, self._bytes)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    @classmethod
    def load(
        cls, path_or_id: str, *, trust_remote_code: bool = False, chat_template: str | None = None
    ) -> Tokenizer:
        """Load a checkpoint's tokenizer.

        Args:
            path_or_id: A directory, or a repository of the Hugging Face hub.
            trust_remote_code: Run the checkpoint's own Python code where it has some.
            chat_template: Used instead of the checkpoint's: a file's path, or the text itself.

        Raises:
            SetupError: One line that names the checkpoint or the template, and the reason.
        """
        own_template = _read_template(chat_template) if chat_template else None
        hf = _load_fast(path_or_id, trust_remote_code)
        config = _read_config(path_or_id, "config.json")
        processors = {
            **_read_config(path_or_id, "processor_config.json"),
            **_read_config(path_or_id, "preprocessor_config.json"),
        }
        tokenizer = cls(
            hf,
            name=path_or_id,
            config=config,
            generation_config=_read_config(path_or_id, "generation_config.json"),
            chat_template=own_template or _default_template(hf.chat_template),
            is_multimodal=is_multimodal(config, processors),
        )
        # Some releases of `transformers` build the wrong tokenizer for a checkpoint that has no
        # config.json; it loses all spaces.
        if " " not in tokenizer.decode(tokenizer.encode("Hello world"), skip_special_tokens=False):
            raise SetupError(f"{path_or_id}: the tokenizer loses spaces; is config.json missing?")
        if tokenizer._renderer is not None:
            tokenizer._renderer.check(chat_template or path_or_id)
        return tokenizer

    def __repr__(self) -> str:
        return (
            f"Tokenizer({self._name!r}, vocab_size={self.vocab_size}, "
            f"controls={len(self._controls)}, prefix_free={self._encoder.is_prefix_free})"
        )

    def close(self) -> None:
        """End the encoding thread. What needs no thread goes on working."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    # Text to ids.

    def encode(self, text: str, after: After = After.START) -> TokenIds:
        """What the model's tokenizer makes of `text`, special tokens not added.

        Returns:
            Read-only int32, shape `[tokens]`.

        Raises:
            BadRequest: The text is not valid Unicode.
        """
        return self._encoder.encode(text, after)

    def encode_pieces(self, text: str, after: After = After.START) -> tuple[Piece, ...]:
        """`text` cut at sound places, each piece with its ids.

        `concat(p.text) == text` and `concat(p.ids) == encode(text, after)`. Where a piece ends
        depends on the text before that place, and on nothing behind it but the control token or
        the space that begins there.
        """
        return self._encoder.encode_pieces(text, after)

    async def encode_pieces_async(self, text: str, held: TokenIds = NO_TOKENS) -> tuple[Piece, ...]:
        """`encode_pieces` of what follows the tokens `held`, as the whole text has it there.

        A long text is encoded in a thread while the event loop goes on.
        """
        last_id = int(held[-1]) if len(held) else None
        if len(text) < INLINE_TEXT_LEN:
            return self._encode_after(last_id, text)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._encode_after, last_id, text)

    def _encode_after(self, last_id: int | None, text: str) -> tuple[Piece, ...]:
        if last_id is None:
            return self._encoder.encode_pieces(text, After.START)
        if eater := self._controls.eater(last_id):
            return self._encoder.encode_pieces_behind(eater, text)
        after = After.CONTROL if last_id in self._controls else After.TEXT
        return self._encoder.encode_pieces(text, after)

    # Control tokens and anchors.

    def control_id_at(self, text: str, start: int) -> tuple[int, str] | None:
        """The anchor control token that begins at `text[start]`, as `(id, literal)`."""
        return self._controls.at(text, start)

    def find_controls(self, text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """All anchor control tokens from `start` on, left to right, as `(start, end, id)`."""
        return self._controls.find(text, start)

    def find_added(self, text: str) -> Iterator[tuple[int, int, int]]:
        """All added tokens in `text`, anchors or not, left to right, as `(start, end, id)`."""
        return self._controls.find_added(text)

    def eater(self, token_id: int) -> str:
        """The literal of an added token that may change what follows it; else ""."""
        return self._controls.eater(token_id)

    def is_control(self, token_id: int) -> bool:
        """Whether it is an anchor control token."""
        return token_id in self._controls

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` removes it from the text."""
        return token_id in self._special_ids

    def is_anchor(self, text: str, index: int) -> bool:
        """Whether unsampled `text` can be cut at `index` without changing any token.

        It can at its begin and where a control token starts; and, if the tokenizer puts nothing
        before a text, between a letter or digit and a space.
        """
        return self._encoder.is_anchor(text, index)

    # Ids to text.

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes in the middle of a text; `b""` for an id without a token."""
        return self._bytes[token_id]

    def decoder(self, *, skip_special_tokens: bool) -> Decoder:
        """A new incremental decoder, for output that stands behind a prompt."""
        return Decoder(self._visible_bytes if skip_special_tokens else self._bytes)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids` as they read behind a prompt."""
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
            options: Tools, and whatever else the template is told.
            date: What the template takes for now, where it asks; None is the present.

        Raises:
            BadRequest: There is no template, or it refused the messages; in its own words.
        """
        if self._renderer is None:
            raise BadRequest("This model has no chat template.", param="messages")
        return self._renderer.render(messages, options, date)


def _load_fast(path_or_id: str, trust_remote_code: bool) -> Any:
    """The checkpoint's tokenizer, which is one of the `tokenizers` library."""
    if path_or_id.startswith(("/", "./", "../")) and not Path(path_or_id).is_dir():
        raise SetupError(f"{path_or_id}: no such directory")
    with _without_torch_advice():
        from transformers import AutoTokenizer  # takes seconds: only who loads a tokenizer waits
    try:
        hf = AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=trust_remote_code)
    except Exception as exc:  # broken files, no network, or whatever the checkpoint's code raises
        raise SetupError(f"{path_or_id}: cannot load the tokenizer: {one_line(exc)}") from exc
    if not hf.is_fast:
        raise SetupError(f"{path_or_id}: has no fast tokenizer (tokenizer.json)")
    return hf


@contextmanager
def _without_torch_advice() -> Iterator[None]:
    """Without torch, `transformers` warns that there are no models. Nobody wants one here."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger = logging.getLogger("transformers")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def _read_config(path_or_id: str, filename: str) -> dict[str, Any]:
    """A JSON file of the checkpoint; empty where it has none."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(path_or_id, filename)
    except OSError:
        path = None
    if path is None:
        return {}
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as exc:
        raise SetupError(f"{path_or_id}: bad {filename}: {one_line(exc)}") from exc


def _read_template(path_or_text: str) -> str:
    if "{" in path_or_text:  # every template has a tag; a path has none
        return path_or_text
    try:
        return Path(path_or_text).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise SetupError(f"{path_or_text}: cannot read the chat template: {reason}") from exc


def _default_template(template: str | dict[str, str] | None) -> str | None:
    if isinstance(template, dict):
        return template.get("default") or template.get("tool_use")
    return template


def _ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
