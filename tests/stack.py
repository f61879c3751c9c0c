"""The path of one generation without HTTP: recording, caching and a worker with a script."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from slime_router.archive.shared import SharedArchive
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.choices import Capture, History
from slime_router.config import Config
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.middleware import Dispatch, Middleware
from slime_router.generation.plugins import PluginContext
from slime_router.generation.retrieval import Retriever
from slime_router.generation.token_path import TokenPath
from slime_router.journal.fetching import AllIsHere
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.rows.rows import RowOptions, RowSet, build_rows
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, GenerateCall, GenerateChunk, WeightVersion
from tests.tiny import build_tiny_checkpoint

NO_PARSERS = ReplyParsers(load_parsers, tools=None, reasoning=None)


@cache
def tiny_tokenizer() -> Tokenizer:
    """The tokenizer of the tiny checkpoint, made once."""
    with tempfile.TemporaryDirectory() as directory:
        return load_tokenizer(str(build_tiny_checkpoint(Path(directory))))


@lru_cache(maxsize=4)  # each keeps its tokenizer
def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a tokenizer, whose self-test is not run for each test."""
    return ChatTemplate(tokenizer)


@dataclass(frozen=True)
class Sample:
    """What the worker samples next, `chunk_len` tokens at a time."""

    ids: Sequence[int]
    finish: Finish = field(default_factory=lambda: Finish("length"))
    logprobs: Sequence[float | None] | None = None
    version: WeightVersion | None = "default"
    chunk_len: int = 1


class Stack:
    """Everything between a door and a worker; `samples` is what the worker says, in order."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None = None,
        capture: Capture = "full",
        history: History = "held",
        budget_tokens: int = 1_000_000,
        plugins: Sequence[Middleware] = (),
        dispatch: Dispatch | None = None,
        parsers: ReplyParsers | None = None,
        admission: AdmissionQueue | None = None,
        store: TrajectoryStore | None = None,
        journal: SharedArchive | None = None,
    ) -> None:
        self.tokenizer = tokenizer or tiny_tokenizer()
        self.template = chat_template(self.tokenizer)
        path = TokenPath(
            self.tokenizer,
            self.template,
            parsers or NO_PARSERS,
            history=history,
            capture=capture,
            max_cached_tokens=budget_tokens,
            max_stored_tokens=budget_tokens,
            store=store,
            journal=journal,
            admission=admission,
        )
        self.cache, self.store, self.weights = path.cache, path.store, path.weights
        self.maker, self.sessions, self.recording = path.maker, path.sessions, path.recording
        self.counting, self.admission = path.counting, path.admission
        self.caching = path.caching
        self.retriever = Retriever(self.maker, self.cache, self.store, self.tokenizer, AllIsHere())
        self.dispatch = dispatch or self._play  # a test may put another one here
        self.router = path.router(lambda call: self.dispatch(call), plugins=plugins)
        self.samples: deque[Sample] = deque()
        self.sent: list[list[int]] = []  # the prompts that the worker got
        self._numbers = count()

    def call(self, said: str | Sequence[str] = "", **fields: Any) -> GenerateCall:
        """A call with a text, or with messages where several are given: user, assistant, ..."""
        number = next(self._numbers)
        given: dict[str, Any] = {"rid": f"r{number}", "turn_id": f"turn{number}"}
        if isinstance(said, str):
            given["text"] = said
        else:
            roles = ("user", "assistant")
            given["messages"] = tuple(
                {"role": roles[index % 2], "content": text} for index, text in enumerate(said)
            )
        return GenerateCall(**{**given, **fields})

    async def generate(self, call: GenerateCall, sample: Sample | None = None) -> str:
        """Reads one generation to its end; returns the visible text."""
        if sample is not None:
            self.samples.append(sample)
        async with self.router.generate(call) as chunks:
            return "".join([chunk.text async for chunk in chunks])

    async def turn(self, call: GenerateCall, sample: Sample) -> Turn:
        """The recorded turn of one generation."""
        await self.generate(call, sample)
        turn = self.store.get(call.turn_id)
        assert turn is not None
        return turn

    def plugin_context(self) -> PluginContext:
        """What a plug-in class would be given."""
        return PluginContext(Config(hf_checkpoint=""), self.tokenizer, self.template, self.store)

    def rows(self, session_id: str, **options: Any) -> RowSet:
        """The training rows of a session."""
        turn_ids = tuple(self.store.sessions.get(session_id).turns)
        return build_rows(self.store, turn_ids, RowOptions(**options))

    async def _play(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        assert call.prompt is not None
        self.sent.append(call.prompt.ids.tolist())
        sample = self.samples.popleft()
        for start in range(0, len(sample.ids), sample.chunk_len):
            end = min(start + sample.chunk_len, len(sample.ids))
            logprobs = sample.logprobs
            yield GenerateChunk(
                output_ids=list(sample.ids[start:end]),
                logprobs=None if logprobs is None else list(logprobs[start:end]),
                finish=sample.finish if end == len(sample.ids) else None,
                weight_version=sample.version,
            )


def pins(cache: PrefixCache) -> int:
    """How many pins the tree's nodes hold in all, the roots' too."""
    tree = cache._tree
    return sum(node.pins for node in (*tree.nodes(), *tree._roots.values()))


def is_free(cache: PrefixCache) -> bool:
    """Whether nobody holds the cache's lock."""
    return not (cache._lock.reader.locked or cache._lock.writer.locked)
