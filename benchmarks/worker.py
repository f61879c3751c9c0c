"""A worker that costs next to nothing: fixed answers, made beforehand, on a bare protocol.

Below `/incremental`, or everywhere with `--incremental`, a stream's items hold what is new;
elsewhere each repeats all before it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import cast

import orjson
import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Answers:
    """Every answer there is, for the output `ids`; the last of them is the stop token."""

    def __init__(self, ids: Sequence[int]) -> None:
        count = len(ids)
        whole = _item(ids, 0, count)
        self.generate = _HEAD % (len(whole), whole)
        chat = orjson.dumps(_chat_completion(count))
        self.chat = _HEAD % (len(chat), chat)
        self.cumulative = [_event(_item(ids, 0, end)) for end in range(1, count + 1)]
        self.incremental = [_event(_item(ids, end - 1, end)) for end in range(1, count + 1)]
        for stream in (self.cumulative, self.incremental):
            stream[-1] += _chunk(b"data: [DONE]\n\n") + _LAST_CHUNK


def _item(ids: Sequence[int], start: int, end: int) -> bytes:
    """SGLang's item after `end` tokens, telling those from `start` on."""
    is_last = end == len(ids)
    logprobs = [[-0.0625 - (index % 977) / 1024, ids[index], None] for index in range(start, end)]
    item = {
        "text": "word " * (end - start),
        "output_ids": ids[start:end],
        "meta_info": {
            "id": "0123456789abcdef0123456789abcdef",
            "finish_reason": {"type": "stop", "matched": ids[-1]} if is_last else None,
            "prompt_tokens": 100,
            "weight_version": "default",
            "num_retractions": 0,
            "output_token_logprobs": logprobs,
            "output_token_logprobs_length": end,
            "completion_tokens": end,
            "cached_tokens": 0,
            "e2e_latency": 0.25 if is_last else None,
        },
    }
    return orjson.dumps(item)


def _chat_completion(completion_tokens: int) -> dict[str, object]:
    message = {"role": "assistant", "content": "word " * completion_tokens}
    return {
        "id": "0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "default",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": completion_tokens,
            "total_tokens": 100 + completion_tokens,
        },
    }


def _event(payload: bytes) -> bytes:
    return _chunk(b"data: %b\n\n" % payload)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Connection(asyncio.Protocol):
    """Answers one request after the other."""

    def __init__(self, answers: Answers, pause_s: float, *, is_incremental: bool) -> None:
        self._answers = answers
        self._is_incremental = is_incremental
        self._pause_s = pause_s
        self._bytes = bytearray()
        self._transport: asyncio.Transport
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        head_len = self._bytes.find(b"\r\n\r\n") + 4
        if head_len < 4:
            return
        head = bytes(self._bytes[:head_len])
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(self._bytes) < head_len + length:
            return
        body = bytes(self._bytes[head_len:])
        self._bytes.clear()
        self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"/v1/chat/completions":
            self._transport.write(self._answers.chat)
        elif not path.endswith(b"/generate"):
            self._transport.write(_NOT_FOUND)
        elif b'"stream":true' not in body:
            self._transport.write(self._answers.generate)
        else:
            self._transport.write(_STREAM_HEAD)
            is_new_only = self._is_incremental or path.startswith(b"/incremental/")
            items = self._answers.incremental if is_new_only else self._answers.cumulative
            self._stream(items, 0)

    def _stream(self, items: Sequence[bytes], index: int) -> None:
        """One item, one write; a pause, so that each is read by itself."""
        self._transport.write(items[index])
        if index + 1 < len(items):
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(self._pause_s, self._stream, items, index + 1)


async def _serve(port: int, answers: Answers, pause_s: float, *, is_incremental: bool) -> None:
    def connect() -> _Connection:
        return _Connection(answers, pause_s, is_incremental=is_incremental)

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ids", required=True, help="the output, as 1,2,3")
    parser.add_argument("--pause-ms", type=float, default=2.0)
    parser.add_argument("--incremental", action="store_true")
    args = parser.parse_args()
    answers = Answers([int(each) for each in args.ids.split(",")])
    pause_s = args.pause_ms / 1000
    uvloop.run(_serve(args.port, answers, pause_s, is_incremental=args.incremental))


if __name__ == "__main__":
    main()
