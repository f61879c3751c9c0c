"""The kinds of gateways: how each opens a session, and how its tokens come back."""

from __future__ import annotations

from secrets import token_hex
from typing import Any

import orjson
import safetensors.numpy

from slime_router.conformance.adapter import Chat, GatewayError, HandedRow, Http, reading
from slime_router.tokens.encoder import After
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import TemplateOptions


class SlimeRouter:
    """slime_router: a session is opened, and its rows are read."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`POST /sessions`, which says where to chat."""
        name, opened = await self._http.opened()
        with reading("new session"):
            return Chat(opened["base_url"], name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """`GET /sessions/{id}/rows`."""
        url = f"{self._http.url}/sessions/{chat.name}/rows"
        export = await self._http.json("GET", url)
        with reading("rows"):
            return [
                HandedRow.of_answer(row["tokens"], row["loss_mask"], row["logprobs"])
                for row in export["rows"]
            ]


class Miles:
    """miles' session server, and whatever serves its tracer: samples come as safetensors."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`POST /sessions`; chat is below it."""
        name, _ = await self._http.opened()
        return Chat(f"{self._http.url}/sessions/{name}/v1", name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """`POST /sessions/{id}/samples`; masks and log-probabilities cover the response."""
        url = f"{self._http.url}/sessions/{chat.name}/samples"
        raw = await self._http.send("POST", url, json={})
        with reading("samples"):
            try:
                arrays = {name: a.tolist() for name, a in safetensors.numpy.load(raw).items()}
            except safetensors.SafetensorError as exc:
                raise GatewayError(f"the samples are not safetensors: {exc}") from exc
            samples = orjson.loads(bytes(arrays["_samples_meta"]))["samples"]
            return [
                HandedRow.of_answer(
                    arrays[f"tokens.{index}"],
                    arrays[f"loss_mask.{index}"],
                    arrays.get(f"rollout_log_probs.{index}"),
                )
                for index in range(len(samples))
            ]


class Rllm:
    """rLLM's model gateway: a trace of each reply, written later, with the ids of its worker."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`POST /sessions`; chat is below it."""
        name, _ = await self._http.opened()
        return Chat(f"{self._http.url}/sessions/{name}/v1", name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """A sample for each of `/sessions/{id}/traces`."""
        await self._http.json("POST", f"{self._http.url}/admin/flush")
        url = f"{self._http.url}/sessions/{chat.name}/traces"
        traces = await self._http.json("GET", url)
        with reading("traces"):
            return [
                _reply_row(each["prompt_token_ids"], each["completion_token_ids"], each["logprobs"])
                for each in traces
            ]


class Agentcore:
    """agentcore-rl-toolkit's rollout gateway: the key of a request names its session.

    It is a library inside a trainer: `create_session` and `finish_session` are calls there. The
    page on conformance has the program that puts two routes before them.
    """

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`create_session`."""
        name = token_hex(8)
        await self._http.send("POST", f"{self._http.url}/sessions/{name}")
        return Chat(f"{self._http.url}/v1", {"Authorization": f"Bearer {name}"}, name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """`finish_session`: masks and log-probabilities cover the response."""
        url = f"{self._http.url}/sessions/{chat.name}/finish"
        records = await self._http.json("POST", url)
        with reading("records"):
            return [
                HandedRow.of_answer(each["tokens"], each["loss_mask"], each["rollout_log_probs"])
                for each in records
            ]


class OpenAI:
    """Any gateway with OpenAI's chat: the trainer has only the replies.

    Where a reply names token ids (`return_token_ids`, as SGLang and vLLM have it), each is a
    sample. Elsewhere its text is encoded again, which is all that a trainer could do.
    """

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
        with reading("replies"):
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
        return _reply_row(before, ids, [entry["logprob"] for entry in content])


def _reply_row(prompt: list[Any], ids: list[Any], logprobs: list[Any] | None) -> HandedRow:
    return HandedRow.of_answer([*prompt, *ids], [1] * len(ids), logprobs)
