"""However a generation is cut into parts, what comes of it is what one worker would have said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.engine.chunks import ChunkReader
from slime_router.engine.request import generate_body, sampling_params
from slime_router.engine.top_logprobs import top_plan
from slime_router.failover.stitch import Stitch
from slime_router.testing.engine import Engine
from slime_router.testing.script import Script
from slime_router.tokens.decoder import FindBytes
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import (
    GenerateCall,
    GenerateChunk,
    NativeCall,
    Prompt,
    Receipt,
    Sampling,
    token_ids,
)
from tests.examples import examples

PIECES = ("a", "b", "ab", "ba", "aa", "ü", "🙂", "abc")
EOS = len(PIECES)
PROMPT = [1, 2, 3]
LONGEST = 12  # tokens


def decode(ids: Iterable[int]) -> str:
    return "".join("" if token == EOS else PIECES[token] for token in ids)


class Pieces:
    """The decoder of this vocabulary."""

    def push(self, ids: Iterable[int]) -> str:
        return decode(ids)

    def run_len(self, find: FindBytes, ids: Sequence[int]) -> int:
        return 0

    def flush(self) -> str:
        return ""


def open_text(rules: Sampling) -> VisibleText:
    return VisibleText(Pieces(), rules)


@dataclass(frozen=True)
class Part:
    """A worker has the generation until it has sent so many items; then it dies, or aborts it."""

    items: int
    is_abort: bool
    version: str


@dataclass(frozen=True)
class Case:
    ids: list[int]
    call: GenerateCall
    is_incremental: bool
    chunk_tokens: int
    top: int

    def logprob(self, index: int) -> float:
        return -(index + 1) / 8

    def engine(self, version: str) -> Engine:
        def reply(body: dict[str, Any]) -> Script:
            known = len(body["input_ids"]) - len(PROMPT)
            assert body["input_ids"] == PROMPT + self.ids[:known], "prompt and what was sampled"
            rest = range(known, len(self.ids))
            return Script(ids=self.ids[known:], logprobs=[self.logprob(index) for index in rest])

        return Engine(
            decode=decode,
            vocab_size=100,
            context_len=1000,
            eos_ids=(EOS,),
            incremental=self.is_incremental,
            chunk_tokens=self.chunk_tokens,
            echo_len=0,
            reply=reply,
            weight_version=version,
        )


async def chunks_of(case: Case, call: GenerateCall, part: Part) -> list[GenerateChunk]:
    """What the worker says until it is gone; an abort has a finish."""
    tops = top_plan(call, "full")
    raw = generate_body(call, sampling_params(call), tops.fields, rid=call.rid, with_logprobs=True)
    assert isinstance(raw, bytes)
    body = orjson.loads(raw)
    body["sampling_params"] = {**body["sampling_params"]}
    engine = case.engine(part.version)
    (run,) = engine.start(body, body["input_ids"])
    reader = ChunkReader(
        vocab_size=2**31,
        with_logprobs=True,
        tops=tops,
        is_native=call.is_passed_on,
        is_stream=call.stream,
    )
    chunks: list[GenerateChunk] = []
    if not call.stream:
        if part.is_abort:
            run.count = min(part.items, len(run.heard.ids) - 1)
            engine.abort(run.rid)
        elif part.items < LONGEST:
            return []  # it died: nothing of a whole reply was sent
        item = await engine.next_item(run, body, is_whole=True)
        return [*reader.feed([orjson.dumps(item)])]
    while len(chunks) < part.items:
        item = await engine.next_item(run, body)
        if item is None:
            return chunks
        chunks += reader.feed([orjson.dumps(item)])
    if part.is_abort:
        engine.abort(run.rid)
        item = await engine.next_item(run, body)
        chunks += reader.feed([orjson.dumps(item)]) if item is not None else ()
    return chunks


async def tell(
    case: Case, parts: Sequence[Part], expects: bool | None
) -> tuple[list[GenerateChunk], list[str]]:
    """What the client gets, and under which version each token was sampled."""
    stitch = Stitch(case.call, open_text, is_cumulative=expects)
    told: list[GenerateChunk] = []
    versions: list[str] = []
    rids = set()
    for part in (*parts, Part(LONGEST, False, "last")):
        call = stitch.next_call()
        assert call.rid not in rids, "every try has its own rid"
        rids.add(call.rid)
        for chunk in await chunks_of(case, call, part):
            before = len(stitch.output_ids)
            chunk = stitch.take(chunk)
            versions += [part.version] * (len(stitch.output_ids) - before)
            finish = chunk.finish
            told += stitch.emit(chunk, goes_on=finish is not None and finish.type == "abort")
            if stitch.is_over:
                return told, versions
    raise AssertionError("it comes to an end")


def native(case_stream: bool, params: dict[str, Any], top: int) -> dict[str, Any]:
    return {"sampling_params": params, "return_logprob": True, "top_logprobs_num": top}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
    stop = draw(st.lists(words, max_size=2))
    longest = draw(st.integers(1, LONGEST))
    least = draw(st.none() | st.integers(0, longest))
    stop_ids = draw(st.lists(st.integers(0, EOS - 1), max_size=1))
    keeps, ignores = draw(st.booleans()), draw(st.booleans())
    is_native, stream = draw(st.booleans()), draw(st.booleans())
    top = draw(st.integers(0, 2))
    prompt = Prompt(ids=token_ids(PROMPT), receipt=Receipt("fresh", 0, 3, "t", ""))
    fields: dict[str, Any] = {"rid": "r", "turn_id": "t", "prompt": prompt, "stream": stream}
    if is_native:
        params = {"max_new_tokens": longest, "stop": stop, "stop_token_ids": stop_ids,
                  "no_stop_trim": keeps, "ignore_eos": ignores}  # fmt: skip
        params |= {} if least is None else {"min_new_tokens": least}
        fields["body"] = native(stream, params, top)
    else:
        fields["sampling"] = Sampling(
            max_tokens=longest,
            min_tokens=least,
            stop=tuple(stop),
            stop_token_ids=tuple(stop_ids),
            keep_stop=keeps,
            ignore_eos=ignores,
        )
        fields["top_logprobs"] = top
    ids = draw(st.lists(st.integers(0, EOS), min_size=LONGEST, max_size=LONGEST))
    is_incremental = stream and draw(st.booleans())
    return Case(
        ids,
        (NativeCall if "body" in fields else GenerateCall)(**fields),
        is_incremental,
        draw(st.integers(1, 3)),
        top,
    )


parts = st.lists(
    st.builds(Part, st.integers(0, 5), st.booleans(), st.sampled_from(["v1", "v2"])), max_size=4
)


def whole_of(chunks: Sequence[GenerateChunk]) -> dict[str, Any]:
    return {
        "ids": [token for chunk in chunks for token in chunk.output_ids],
        "logprobs": [value for chunk in chunks for value in chunk.logprobs or ()],
        "top": [value for chunk in chunks for value in chunk.top_logprobs or ()],
        "finish": chunks[-1].finish,
        "prompt_tokens": chunks[-1].prompt_tokens,
    }


def item_of(chunks: Sequence[GenerateChunk], *, is_incremental: bool) -> dict[str, Any]:
    """All items as one; which weights and rids they name is another matter."""
    items = [chunk.item for chunk in chunks if chunk.item is not None]
    item = items[-1]
    for earlier in items[-2::-1] if is_incremental else ():
        item = {**item, "text": earlier["text"] + item["text"]}
        item["output_ids"] = earlier["output_ids"] + item["output_ids"]
        item["meta_info"] = dict(item["meta_info"])
        for name in ("output_token_logprobs", "output_top_logprobs"):
            if name in item["meta_info"]:
                joined = earlier["meta_info"][name] + item["meta_info"][name]
                item["meta_info"][name] = joined
    others = {"weight_version", "weight_versions", "cached_tokens", "id"}
    meta = {name: value for name, value in item["meta_info"].items() if name not in others}
    return {**item, "meta_info": meta}


@settings(max_examples=examples(400))
@given(cases(), parts, st.none() | st.booleans())
def test_parts_are_told_as_the_uncut_one(case, cuts, hint):
    """Tokens, logprobs, finish, versions; and for /generate each item to the letter."""
    expects = None if hint is None else not case.is_incremental
    uncut, _ = asyncio.run(tell(case, (), expects))
    told, versions = asyncio.run(tell(case, cuts, expects))
    assert whole_of(told) == whole_of(uncut)
    assert [chunk.finish for chunk in told[:-1]] == [None] * (len(told) - 1)
    spans = [span.version for span in told[-1].weight_versions for _ in range(span.start, span.end)]
    assert spans == versions
    if not case.call.is_passed_on:
        return
    # Where no part had two items, nothing tells; items that repeat are the rule then.
    lengths = [len((chunk.item or {})["output_ids"]) for chunk in told]
    is_incremental = sum(lengths) == len(whole_of(told)["ids"])
    if expects is not None and len(told) > 1 and any(len(c.output_ids) for c in told[1:]):
        assert is_incremental is case.is_incremental
    assert item_of(told, is_incremental=is_incremental) == item_of(
        uncut, is_incremental=case.is_incremental
    )
    seen = 0
    for chunk in told:
        seen += len(chunk.output_ids)
        assert chunk.item is not None
        assert chunk.item["meta_info"]["completion_tokens"] == seen
        done = chunk.finish is not None
        assert (chunk.item["meta_info"]["finish_reason"] is not None) is done
        assert ("weight_versions" in chunk.item["meta_info"]) is done
