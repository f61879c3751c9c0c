"""The model's own tokenizer: text to ids, ids to text, messages to text.

`checkpoint.py` loads what it is made of; encoder, decoder and renderer do the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import tokenizers

from slime_router.chat.checkpoint import Checkpoint, load_checkpoint
from slime_router.chat.control import ControlTokens
from slime_router.chat.decoder import Decoder, TokenBytes, components
from slime_router.chat.encoder import After, Encoder
from slime_router.chat.renderer import JinjaRenderer
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
        chat_template: The template's source, or the name of the format where Python code renders
            it; None when the checkpoint has no chat format.
        jinja_template: The template's source where Jinja renders it; else None.
        has_developer_role: Whether messages of the role `developer` have a form of their own.
        architectures: Names of the model's classes, as the checkpoint says them.
        model_type: The model's family, as the checkpoint says it; "" where it does not.
        is_multimodal: Whether the model takes pictures or sound too.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """`load` is the way to get one."""
        hf, config = checkpoint.hf, checkpoint.config
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
            _ids(checkpoint.generation_config.get("eos_token_id"))
            | _ids(text_config.get("eos_token_id"))
            | _ids(hf.eos_token_id)
        )
        self._renderer = checkpoint.renderer
        self.chat_template = None if self._renderer is None else self._renderer.source
        is_jinja = isinstance(self._renderer, JinjaRenderer)
        self.jinja_template = self.chat_template if is_jinja else None
        self.has_developer_role = self._renderer is not None and self._renderer.has_developer_role
        self.is_multimodal = checkpoint.is_multimodal
        self._name = checkpoint.name
        self.architectures = tuple(config.get("architectures") or ())
        self.model_type = str(config.get("model_type") or "")
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._controls = ControlTokens(added, has_normalizer=bool(components(backend.normalizer)))
        literals = {
            token_id: token.content.encode()
            for token_id, token in added.items()
            if token_id in self._special_ids or token_id in self._controls
        }
        self._bytes = TokenBytes(backend, literals)
        self._visible_bytes = TokenBytes(backend, literals | dict.fromkeys(self._special_ids, b""))
        self._backend = backend
        self._encoder = Encoder(backend, self._controls, self._bytes)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    @classmethod
    def load(
        cls,
        path_or_id: str,
        *,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        tool_call_parser: str | None = None,
    ) -> Tokenizer:
        """Load a checkpoint's tokenizer.

        Args:
            path_or_id: A directory, or a repository of the Hugging Face hub.
            trust_remote_code: Run the checkpoint's own Python code where it has some.
            chat_template: Used instead of the checkpoint's: a file's path, the text itself, or
                the name of a format that is Python code (`glm-5.3`).
            tool_call_parser: The parser that replies are read with: as in SGLang, some come with
                the Python format of their model.

        Raises:
            SetupError: One line that names the checkpoint or the template, and the reason.
        """
        tokenizer = cls(
            load_checkpoint(
                path_or_id,
                trust_remote_code=trust_remote_code,
                chat_template=chat_template,
                tool_call_parser=tool_call_parser,
            )
        )
        # Some releases of `transformers` build the wrong tokenizer for a checkpoint that has no
        # config.json; it loses all spaces.
        if " " not in tokenizer.decode(tokenizer.encode("Hello world"), skip_special_tokens=False):
            raise SetupError(f"{path_or_id}: the tokenizer loses spaces; is config.json missing?")
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

    def token_names(self) -> Collection[str]:
        """The names of all tokens, as the vocabulary spells them."""
        return self._backend.get_vocab(with_added_tokens=True).keys()

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


def _ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
