"""Chats through the router, each checked token by token against the model that was to speak."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

import aiohttp
import orjson
from openai import AsyncOpenAI

from tests.chaos.oracle import Oracle, Prefix

CHAT_TIMEOUT = aiohttp.ClientTimeout(total=60.0)
SYSTEM = "You are one of many agents. Answer in a few words."
WORDS = [
    "weather",
    "search",
    "city",
    "count",
    "index",
    "name",
    "fox",
    "dog",
    "paris",
    "berlin",
    "first",
    "then",
    "question",
]
MAX_TOKENS = 10  # where a chat asks for less than the model would say
SDK_EVERY = 10  # so many chats have one that is held by OpenAI's own client


@dataclass(slots=True)
class Chat:
    """One conversation. `texts` are the replies as the client read them, in order."""

    session_id: str
    random: Random
    turns: int
    is_opened: bool  # the session is one that was opened, else one that a header names
    has_sdk: bool
    texts: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)  # the last request's messages
    is_cut: list[bool] = field(default_factory=list)  # by max_tokens


def new_chats(name: str, count: int, turns: int) -> list[Chat]:
    """Chats with sessions and questions of their own; equal for equal names."""
    return [
        Chat(
            f"{name}-{number}".replace(" ", "-"),
            Random(f"{name}-{number}"),
            turns,
            is_opened=number % 2 == 0,
            has_sdk=number % SDK_EVERY == 0,
        )
        for number in range(count)
    ]


class Unready(aiohttp.ClientError):
    """The router cannot serve at present."""


class Agents:
    """Hold chats with the router at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = aiohttp.ClientSession(
            timeout=CHAT_TIMEOUT, connector=aiohttp.TCPConnector(limit=0)
        )
        self._sdk = AsyncOpenAI(
            base_url=url,
            api_key="none",
            max_retries=0,  # the router's own tries must do
            timeout=CHAT_TIMEOUT.total,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()
        await self._sdk.close()

    async def hold_all(self, chats: Iterable[Chat]) -> None:
        """All at once, each to its end.

        Raises:
            ExceptionGroup: of the turns that failed.
        """
        async with asyncio.TaskGroup() as group:
            for chat in chats:
                group.create_task(self._hold(chat))

    async def _hold(self, chat: Chat) -> None:
        if chat.is_opened:
            await self._open(chat)
        messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
        for turn in range(chat.turns):
            words = " ".join(chat.random.choices(WORDS, k=6))
            messages.append({"role": "user", "content": f"{chat.session_id} {turn}: {words}?"})
            is_cut = chat.random.random() < 0.25
            fields: dict[str, Any] = {"model": "tiny", "messages": messages}
            if is_cut:
                fields["max_tokens"] = MAX_TOKENS
            is_streamed = chat.random.random() < 0.6
            say = self._ask_sdk if chat.has_sdk else self._ask
            text, finish = await say(chat, fields, is_streamed)
            assert finish == ("length" if is_cut else "stop"), (chat.session_id, turn, finish)
            chat.texts.append(text)
            chat.is_cut.append(is_cut)
            messages.append({"role": "assistant", "content": text})
        chat.asked = messages

    async def _open(self, chat: Chat) -> None:
        async with self._http.post(
            f"{self._url}/sessions", json={"session_id": chat.session_id}
        ) as answer:
            assert answer.status == 201, await answer.text()

    async def _ask(self, chat: Chat, fields: dict[str, Any], is_streamed: bool) -> tuple[str, str]:
        base, headers = f"{self._url}/v1", {"X-Session-ID": chat.session_id}
        if chat.is_opened:
            base, headers = f"{self._url}/sessions/{chat.session_id}/v1", {}
        body = {**fields, "stream": is_streamed}
        url = f"{base}/chat/completions"
        async with self._http.post(url, json=body, headers=headers) as answer:
            raw = await answer.read()
        if answer.status == 503:
            raise Unready(raw.decode())
        assert answer.status == 200, (chat.session_id, answer.status, raw)
        if not is_streamed:
            choice = orjson.loads(raw)["choices"][0]
            return choice["message"]["content"], choice["finish_reason"]
        *blocks, done, rest = raw.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b""), raw[-500:]
        chunks = [orjson.loads(block.removeprefix(b"data: ")) for block in blocks]
        assert not any("error" in chunk for chunk in chunks), chunks[-1]
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return text, choices[-1]["finish_reason"]

    async def _ask_sdk(
        self, chat: Chat, fields: dict[str, Any], is_streamed: bool
    ) -> tuple[str, str]:
        path = f"/sessions/{chat.session_id}" if chat.is_opened else ""
        sdk = self._sdk.with_options(base_url=f"{self._url}{path}/v1")
        if not chat.is_opened:
            fields["extra_headers"] = {"X-Session-ID": chat.session_id}
        if not is_streamed:
            whole = await sdk.chat.completions.create(**fields)
            return whole.choices[0].message.content or "", whole.choices[0].finish_reason
        pieces, finish = [], ""
        async for chunk in await sdk.chat.completions.create(**fields, stream=True):
            pieces.append(chunk.choices[0].delta.content or "")
            finish = chunk.choices[0].finish_reason or finish
        return "".join(pieces), finish

    async def rows(self, chat: Chat) -> dict[str, Any]:
        """The training rows of a chat's session."""
        async with self._http.get(f"{self._url}/sessions/{chat.session_id}/rows") as answer:
            assert answer.status == 200, await answer.text()
            rows: dict[str, Any] = await answer.json()
            return rows


class Diaries:
    """What all workers said, in all their lives: for each prefix the versions of what follows."""

    def __init__(self, oracle: Oracle, paths: Iterable[Path]) -> None:
        self.versions: dict[tuple[int, int], set[str]] = defaultdict(set)
        self._oracle = oracle
        self._prefixes: dict[Path, dict[str, tuple[Prefix, int]]] = {path: {} for path in paths}
        self._read_bytes = dict.fromkeys(self._prefixes, 0)

    def read(self) -> None:
        """What has been written since the last time."""
        for path, prefixes in self._prefixes.items():
            with path.open("rb") as diary:
                diary.seek(self._read_bytes[path])
                lines = diary.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read_bytes[path] += len(whole)
            for line in whole.splitlines():
                self._note(prefixes, orjson.loads(line))

    def _note(self, prefixes: dict[str, tuple[Prefix, int]], entry: dict[str, Any]) -> None:
        oracle, rid = self._oracle, entry["rid"]
        if "prompt" in entry:
            assert rid not in prefixes, f"{rid} ran twice on one worker"
            prefixes[rid] = oracle.read(entry["prompt"]), len(entry["prompt"])
            return
        prefix, length = prefixes[rid]
        for token_id in entry["ids"]:
            assert token_id == oracle.next(prefix).token_id, "the worker is not sound"
            self.versions[prefix.crc, length].add(entry["version"])
            prefix, length = oracle.extend(prefix, token_id), length + 1
        prefixes[rid] = prefix, length


def check(chat: Chat, found: dict[str, Any], oracle: Oracle, diaries: Diaries) -> None:
    """Every token once, none missing, with its logprob and a version it was said under."""
    name = chat.session_id
    assert len(chat.texts) == chat.turns, name
    stats = found["stats"]
    spare = [stats["left_out"].get(why) for why in ("retry", "undelivered")]  # was said again
    spare_turns, spare_tokens = (
        sum(left[what] for left in spare if left) for what in ("turns", "tokens")
    )
    turns = stats["turns"] - spare_turns
    assert (stats["rows"], turns, stats["running"]) == (1, chat.turns, 0), (name, stats)
    [row] = found["rows"]
    assert len(row["tokens"]) == len(row["loss_mask"]) == len(row["logprobs"])
    assert stats["trained_tokens"] == sum(row["loss_mask"]), name
    assert stats["trained_tokens"] + spare_tokens == stats["sampled_tokens"], name
    prefix = oracle.read(())
    replies: list[list[int]] = []
    was_sampled = False
    columns = (row["tokens"], row["loss_mask"], row["logprobs"], row["weight_versions"])
    for index, (token_id, mask, logprob, version) in enumerate(zip(*columns, strict=True)):
        if mask:
            said = oracle.next(prefix)
            assert (token_id, logprob) == (said.token_id, said.logprob), (name, index)
            heard = diaries.versions.get((prefix.crc, index), set())
            assert version in heard, (name, index, version, heard)
            if not was_sampled:
                replies.append([])
            replies[-1].append(token_id)
        else:
            assert version is None, (name, index)
        was_sampled = bool(mask)
        prefix = oracle.extend(prefix, token_id)
    assert [len(reply) == MAX_TOKENS for reply in replies] == chat.is_cut, name
    assert [reply[-1] == oracle.im_end for reply in replies] == [not c for c in chat.is_cut], name
    assert [oracle.decode(reply) for reply in replies] == chat.texts, name
    # The last reply's turn is not closed by the template.
    held = oracle.decode(row["tokens"], skip_special_tokens=False)
    shown = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat.asked]
    assert "".join(shown).startswith(held.removesuffix("\n")), (name, held, shown)
    assert len("".join(shown)) - len(held) <= len("<|im_end|>\n"), (name, held, shown)
