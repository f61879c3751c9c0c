"""One generation out of parts from several workers, or from one worker before and after a pause.

A part ends where its worker died or aborted it. The next part's prompt is the original prompt plus
all that was sampled; the client gets the chunks as those of one generation. Nothing is repeated or
lost: `concat(chunk.output_ids)` is what was sampled, part by part. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from slime_router.engine.request import is_constrained, length_limit, stop_ids, text_rules
from slime_router.failover.native_items import Items, OpenText, TextReader, finish_reason
from slime_router.replies.reply import Versions
from slime_router.types import Finish, GenerateCall, GenerateChunk, Sampling, Speculation, token_ids
from slime_router.values import replace

IN_QUEUE = "Abort in waiting queue"  # SGLang's message for a request that has sampled nothing
_ALL_TEXT = Sampling(keep_stop=True, skip_special_tokens=False)


class Stitch:
    """The parts of one generation so far, and the call for the next.

    Every chunk goes through `take`, which may cut it short, and then through `emit`.
    `is_cumulative`: whether a native stream's items are likely to repeat earlier output; the first
    items that show it decide.
    """

    def __init__(
        self,
        call: GenerateCall,
        open_text: OpenText,
        *,
        eos_ids: Collection[int] = (),
        is_cumulative: bool | None = None,
    ) -> None:
        self.output_ids: list[int] = []  # everything sampled so far
        self.is_over = False  # the last chunk was emitted
        self._call = call
        self._open_text = open_text
        self._eos_ids = eos_ids
        self._parts = 0
        self._begin = 0  # of the current part
        self._versions = Versions()
        self._cached_tokens: int | None = None  # of the prompt, as the first worker reported it
        self._speculation: Speculation | None = None  # of the parts before
        self._newest: Speculation | None = None  # of the current part, as reported last
        self._seam: _Seam | None = None  # while a stop string may span the cut
        # Of a generation whose client sees what its workers wrote.
        shows_items = call.is_passed_on or call.shows_items
        self._items = Items(call, open_text, is_cumulative) if shows_items else None

    def __repr__(self) -> str:
        return f"<Stitch {self._parts} parts, {len(self.output_ids)} tokens>"

    @property
    def is_cumulative(self) -> bool | None:
        """Whether native items repeat earlier output; None if that is not known yet."""
        return None if self._items is None else self._items.is_cumulative

    @property
    def can_go_on(self) -> bool:
        """Whether another worker can sample the rest: a grammar cannot start in the middle."""
        return not self.output_ids or not is_constrained(self._call)

    def give_up_masks(self) -> bool:
        """Asks for the next part without what it is sampled from; whether that changes anything."""
        can = self.can_go_on and not self._call.masks_refused
        self._call = replace(self._call, masks_refused=True)
        return can

    def next_call(self) -> GenerateCall:
        """The call for the next part; each has its own rid, the first one the client's.

        No rid begins with another's: SGLang aborts all rids that begin with the one it is given.
        """
        self._begin = len(self.output_ids)
        self._parts += 1
        if self._parts == 1:
            return self._call
        self._versions.begin_part(self._begin)
        if self._newest is not None:
            self._speculation, self._newest = self._newest.plus(self._speculation), None
        if self._begin:
            self._seam = _Seam.open(text_rules(self._call).stop, self.output_ids, self._open_text)
        return replace(
            self._call,
            rid=f"{self._parts}~{self._call.rid}",
            asked_as=self._call.asked_as or self._call.rid,
            sampled=token_ids(self.output_ids),
        )

    def passes(self, chunk: GenerateChunk) -> bool:
        """Whether a chunk goes on just as it came, once it was added: most of a stream do.

        Of a chat's first part in the middle, that is; all others need `take` and `emit`.
        """
        is_usual = self._items is None and self._parts == 1
        if not is_usual or chunk.finish is not None or chunk.speculation:
            return False
        if chunk.weight_version != self._versions.last or chunk.weight_versions:
            return False
        if self._cached_tokens is None:
            return False
        self.output_ids += chunk.output_ids
        return True

    def take(self, chunk: GenerateChunk) -> GenerateChunk:
        """Adds a chunk of the current part, and returns it.

        The chunk may be cut short and get a finish: a stop string can start in one part and end in
        another, which no worker sees.
        """
        came_len = len(chunk.output_ids)
        self._newest = chunk.speculation or self._newest
        if self._seam is not None:
            chunk, is_open = self._seam.cross(chunk)
            if not is_open:
                self._seam = None
        if self._items is not None and chunk.item is not None and not self._is_whole(chunk):
            self._items.note(chunk, came_len, len(self.output_ids), self._begin)
        if chunk.weight_version != self._versions.last or chunk.weight_versions:
            self._versions.add(chunk, len(self.output_ids))
        self.output_ids += chunk.output_ids
        if self._cached_tokens is None and came_len:
            self._cached_tokens = chunk.cached_tokens
        return chunk

    def _is_whole(self, chunk: GenerateChunk) -> bool:
        """Whether a chunk is a whole reply, which nothing goes on from: an abort may be resumed."""
        if self._call.stream or self._parts > 1 or chunk.finish is None:
            return False
        return chunk.finish.type != "abort"

    def emit(self, chunk: GenerateChunk, *, goes_on: bool = False) -> Sequence[GenerateChunk]:
        """The taken chunk as part of the whole generation: what the client gets now.

        `goes_on`: it was the last of its part, and another part will follow. If that cannot start
        in the middle, the generation starts over.
        """
        if goes_on:
            chunk = chunk._replace(finish=None, weight_versions=())
            if not self.can_go_on:
                self._start_over()
            if not chunk.output_ids or not self.output_ids:
                return ()
        else:
            self.is_over = chunk.finish is not None
        if self._parts == 1 and not goes_on:
            if self._items is not None and not self.is_over:
                self._items.emit_unchanged(chunk)
            return (chunk,)
        return self._emitted(self._as_one(chunk) if self._begin else chunk)

    def _emitted(self, chunk: GenerateChunk) -> Sequence[GenerateChunk]:
        if self._items is not None and chunk.item is not None:
            return self._items.emit(chunk, self.output_ids)
        return (chunk,)

    def _start_over(self) -> None:
        """Forgets what was sampled; of a whole reply, the client has seen nothing yet."""
        self.output_ids.clear()
        self._versions = Versions()
        self._cached_tokens = self._speculation = self._newest = None
        if self._items is not None:
            self._items = Items(self._call, self._open_text, None)

    def ending(self) -> Finish | None:
        """How the generation has ended, if its last token was sampled, whatever the worker said.

        A worker that is asked to abort reports an abort, even if that token was the last anyway.
        """
        if not self.output_ids:
            return None
        last, stops = self.output_ids[-1], text_rules(self._call).stop
        if last in stop_ids(self._call, self._eos_ids):
            return Finish("stop", last)
        reach = max((len(stop.encode()) for stop in stops), default=0)
        text = self._open_text(_ALL_TEXT).push(self.output_ids[-reach:], None) if reach else ""
        found = next((stop for stop in stops if stop in text), None)
        if found is not None:
            return Finish("stop", found)
        limit = length_limit(self._call)
        return Finish("length") if limit is not None and len(self.output_ids) >= limit else None

    def settled(self, chunk: GenerateChunk, ending: Finish) -> GenerateChunk:
        """The last chunk, already taken, as if there had been no abort."""
        item = chunk.item
        if self._items is not None and item is not None:
            reason = finish_reason(None, ending, len(self.output_ids))
            item = {**item, "meta_info": {**item["meta_info"], "finish_reason": reason}}
        return chunk._replace(finish=ending, item=item)

    def ended(self) -> Sequence[GenerateChunk]:
        """The end that no worker reported: `ending`, or else an abort as a worker reports it."""
        words = "Aborted" if self.output_ids else IN_QUEUE
        finish = self.ending() or Finish("abort", message=words)
        self.is_over = True
        item = None if self._items is None else self._items.last
        chunk = GenerateChunk(output_ids=[], finish=finish, prompt=self._call.prompt, item=item)
        return self._emitted(self._as_one(chunk))

    def _as_one(self, chunk: GenerateChunk) -> GenerateChunk:
        """The chunk with what holds of all parts together."""
        assert self._call.prompt is not None
        versions, speculation = chunk.weight_versions, self._speculation
        if self._newest is not None:
            speculation = self._newest.plus(speculation)
        if chunk.finish is not None:
            versions = self._versions.spans(len(self.output_ids))
        return chunk._replace(
            prompt_tokens=len(self._call.prompt.ids),
            cached_tokens=self._cached_tokens or 0,
            weight_versions=versions,
            speculation=speculation,
        )


class _Seam:
    """Looks for stop strings that start before the cut and end after it."""

    def __init__(self, stops: Sequence[str], reader: TextReader, text: str, reach: int) -> None:
        self._stops = stops
        self._reader = reader
        self._text = text
        self._left = reach  # tokens, each at least one byte

    @classmethod
    def open(
        cls, stops: Sequence[str], output_ids: Sequence[int], open_text: OpenText
    ) -> _Seam | None:
        reach = max((len(stop.encode()) for stop in stops), default=0)
        if not reach:
            return None
        reader = open_text(_ALL_TEXT)
        return cls(stops, reader, reader.push(output_ids[-reach:], None), reach)

    def cross(self, chunk: GenerateChunk) -> tuple[GenerateChunk, bool]:
        """The chunk up to where a stop string ends, and whether to check the next one, too."""
        for count, token_id in enumerate(chunk.output_ids, 1):
            self._text += self._reader.push([token_id], None)
            found = next((stop for stop in self._stops if stop in self._text), None)
            if found is not None:
                return self._ended(chunk, count, found), False
            self._left -= 1
            if not self._left:
                return chunk, False
        return chunk, chunk.finish is None

    @staticmethod
    def _ended(chunk: GenerateChunk, count: int, stop: str) -> GenerateChunk:
        finish = chunk.finish
        is_last = count == len(chunk.output_ids)
        if is_last and finish is not None and isinstance(finish.matched, int):
            return chunk  # a stop token takes precedence over a stop string
        return chunk.cut(0, count)._replace(finish=Finish("stop", stop))
