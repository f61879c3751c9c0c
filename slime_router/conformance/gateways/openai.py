"""Any gateway with OpenAI's chat: the trainer has only the replies.

Where a reply names token ids (`return_token_ids`, as SGLang and vLLM have it), each is a sample.
Elsewhere its text is encoded again, which is all that a trainer could do.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Any

from slime_router.conformance.adapter import Chat, HandedRow, Http
from slime_router.tokens.encoder import After
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import TemplateOptions


class OpenAI:
    """Chat at `/v1`; a header names the session."""

    def __init__(self, http: Http, tokenizer: Tokenizer) -> None:
        self._http = http
        self._tokenizer = tokenizer

    async def open(self) -> Chat:
        """A chat with nothing to open; the header is for gateways that route by it."""
        extra = {"logprobs": True, "return_token_ids": True, "return_prompt_token_ids": True}
        name = token_hex(8)
        return Chat(f"{self._http.url}/v1", {"X-Session-ID": name}, extra, name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """A sample for each reply."""
        return [
            self._row(list(prompt), reply["choices"][0], reply)
            for prompt, reply in zip(chat.prompts, chat.replies, strict=True)
        ]

    def _row(self, prompt: list[Any], choice: Any, reply: Any) -> HandedRow:
        tokenizer = self._tokenizer
        ids, before = choice.get("token_ids"), choice.get("prompt_token_ids")
        before = before or reply.get("prompt_token_ids")
        if before is None:
            before = tokenizer.encode(tokenizer.render(prompt, TemplateOptions())).tolist()
        if ids is None:
            text = choice["message"]["content"] or ""
            ids = tokenizer.encode(text, After.CONTROL).tolist()
            if choice.get("finish_reason") == "stop":  # templates end a reply with this, too
                ids.append(min(tokenizer.eos_ids))
        content = (choice.get("logprobs") or {}).get("content") or []
        known = [float(entry["logprob"]) for entry in content]
        logprobs = [0.0] * len(before) + known if len(known) == len(ids) else None
        return HandedRow([*before, *ids], [0] * len(before) + [1] * len(ids), logprobs)
