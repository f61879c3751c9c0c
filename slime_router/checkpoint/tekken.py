"""Mistral's own checkpoints: vocabularies in `tekken.json`, conversations by `mistral-common`.

Their format is defined as token ids. What is rendered here is the text that reads as exactly these
ids; a conversation for which there is no such text (a message spells a control token, which
`mistral-common` takes for ordinary letters) is refused.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from slime_router.checkpoint.byte_bpe import Special, build_backend, prove
from slime_router.errors import BadRequest, SetupError, one_line
from slime_router.types import Message, TemplateOptions

FILENAME = "tekken.json"
PACKAGE_HINT = "tekken.json needs the package mistral-common: pip install 'slime-router[mistral]'"

_REASONING = "reasoning_content"


class Tekken:
    """One `tekken.json`: its backend, its special tokens, and its renderer."""

    def __init__(self, path: Path) -> None:
        """SetupError, without the checkpoint's name, where it cannot be read or not exactly."""
        self._instruct = _load(path)
        self._reader = self._instruct.instruct_tokenizer.tokenizer
        self.backend = self._build(path)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The names that `transformers` has for special tokens, and their literals."""
        ids = {"bos_token": self._reader.bos_id, "eos_token": self._reader.eos_id}
        return {name: self._reader.id_to_piece(token_id) for name, token_id in ids.items()}

    @property
    def takes_media(self) -> bool:
        """Whether pictures or sound have tokens in it."""
        return self._reader.image is not None or self._reader.audio is not None

    def renderer(self) -> TekkenRenderer:
        """The format of its conversations."""
        return TekkenRenderer(self._instruct, self.backend)

    def _build(self, path: Path) -> tokenizers.Tokenizer:
        reader = self._reader
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            first_id = reader.num_special_tokens
            tokens = data["vocab"][: reader.n_words - first_id]
            ranks = {base64.b64decode(each["token_bytes"]): each["rank"] for each in tokens}
            pattern = data["config"]["pattern"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise SetupError(f"bad {path.name}: {one_line(exc)}") from exc
        specials = [Special(each, reader.id_to_piece(each)) for each in range(first_id)]
        backend = build_backend(ranks, pattern, specials, first_id)
        # The reader takes the literals of control tokens for ordinary text: ids alone make them.
        prove(backend, ranks, (), lambda text: reader.encode(text, bos=False, eos=False))
        return backend


class TekkenRenderer:
    """Conversations as `mistral-common` encodes them, read back to text. Never changes."""

    has_developer_role = False
    is_jinja = False

    def __init__(self, instruct: Any, backend: tokenizers.Tokenizer) -> None:
        """`instruct` is the `MistralTokenizer` to whose ids the text is held."""
        base = importlib.import_module("mistral_common.tokens.tokenizers.base")
        request = importlib.import_module("mistral_common.protocol.instruct.request")
        self._instruct, self._backend = instruct, backend
        self._request_of = request.ChatCompletionRequest.from_openai
        self._keep = base.SpecialTokenPolicy.KEEP
        version = importlib.import_module("mistral_common").__version__
        name = instruct.instruct_tokenizer.tokenizer.version.value
        self.source = f"mistral-common {version}, format {name}"

    def render(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        date: datetime | None,  # noqa: ARG002  (the port's; these formats print none)
    ) -> str:
        """The text whose ids are those of `mistral-common`; the format knows no date.

        Raises:
            BadRequest: It refused the messages, or no text stands for the ids.
        """
        ready = [message for message in messages if not _is_empty_reply(message)]
        try:
            ids = self._encode(ready, options)
        except Exception as exc:  # its checks raise many kinds
            reason = f"The chat format cannot render these messages: {one_line(exc)}"
            raise BadRequest(reason, param="messages") from exc
        text: str = self._instruct.decode(ids, special_token_policy=self._keep)
        if self._backend.encode(text, add_special_tokens=False).ids != ids:
            raise BadRequest(
                "A message spells a control token of this model, which has no exact form as text.",
                param="messages",
            )
        return text

    def _encode(self, messages: list[Message], options: TemplateOptions) -> list[int]:
        try:
            return self._ids(messages, options)
        except Exception:  # formats without reasoning refuse it; templates leave it out there
            plain = [_without_reasoning(message) for message in messages]
            if plain == messages:
                raise
            return self._ids(plain, options)

    def _ids(self, messages: list[Message], options: TemplateOptions) -> list[int]:
        effort = options.kwargs.get("reasoning_effort")
        request = self._request_of(
            messages=messages,
            tools=list(options.tools) or None,
            continue_final_message=options.continue_final_message,
            **({} if effort is None else {"reasoning_effort": effort}),
        )
        ids: list[int] = self._instruct.encode_chat_completion(request).tokens
        return ids


def _load(path: Path) -> Any:
    try:
        mistral = importlib.import_module("mistral_common.tokens.tokenizers.mistral")
        validator = importlib.import_module("mistral_common.protocol.instruct.validator")
    except ImportError as exc:
        raise SetupError(PACKAGE_HINT) from exc
    try:
        return mistral.MistralTokenizer.from_file(str(path), mode=validator.ValidationMode.test)
    except Exception as exc:  # broken files, and versions that it does not know
        raise SetupError(f"bad {path.name}: {one_line(exc)}") from exc


def _is_empty_reply(message: Message) -> bool:
    """A reply that says nothing, which the format has no form for; SGLang leaves it out too."""
    is_reply = message["role"] == "assistant" and not message.get("tool_calls")
    return is_reply and not str(message.get("content") or "").strip()


def _without_reasoning(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != _REASONING}
