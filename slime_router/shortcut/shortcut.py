"""The way of a stream's plain chunks past the coroutines that would pass them on.

A token in the middle of a stream takes the same steps as any other: it is added to what its worker
has sampled, read, recorded, and written. Taken by generators in layers, they cost the event loop a
wake-up, and ten frames that are resumed one by one. So each layer also names its step as a plain
function, and while all of them wait for the worker, what comes is taken through these at once, in
the callback that brought it.

Tokens that come like those before, which took this way, are not even made a chunk of: what the
steps would look at in it is as it was, so each layer names a smaller step for the tokens alone.

The layers stay in charge: whatever is not plain (the first chunk, the last one, new weights, an
error), and whatever has to wait (for a client that does not read), goes the long way, in order.
Plug-ins see every chunk, so with them everything goes the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

C = TypeVar("C")


class ShortcutFailed(Exception):
    """A step of the short way failed; its cause is what it would have raised on the long one."""


class Shortcut(Generic[C]):
    """The steps of one generation's chunks, `C`, as far as its layers have named them.

    Attributes:
        takes: adds a chunk to what its worker has sampled; or does nothing and returns False, if
            the chunk is not plain. The relay's.
        read: reads and records a chunk; returns what the client sees of it. The pipeline's.
        is_clear: whether something can be written at once. The delivery's, as the next one.
        write: writes a chunk.

    Of tokens that differ from the chunk before, which was taken, in nothing else:
        adds: adds them to what their worker has sampled. The relay's.
        made: the chunk of such tokens. The engine's.
        said: reads and records them; returns their text. Returns None, and records nothing, where
            only a chunk of them can be read, which has to come next. The pipeline's.
        has_texts: whether such tokens can be written without a chunk. The delivery's, as the next
            one.
        write_text: writes the text of so many tokens.
    """

    # What nobody has named, which leaves everything to the long way: it costs a generation nothing.
    takes: Callable[[C], bool] = staticmethod(lambda _: False)
    read: Callable[[C], Sequence[C]] = staticmethod(lambda chunk: (chunk,))
    is_clear: Callable[[], bool] = staticmethod(lambda: False)
    write: Callable[[C], None] = staticmethod(lambda _: None)
    adds: Callable[[list[int]], None] = staticmethod(lambda _: None)
    made: Callable[[list[int], list[float] | None], C]
    said: Callable[[list[int], list[float] | None], str | None] = staticmethod(lambda *_: None)
    has_texts = False
    write_text: Callable[[str, int], None] = staticmethod(lambda *_: None)

    def close(self) -> None:
        """Forgets all steps: nothing goes the short way, and nothing is kept for it."""
        vars(self).clear()

    def take(self, chunk: C) -> bool:
        """Takes a chunk all the way; or does nothing and returns False, where it has to wait.

        Raises:
            ShortcutFailed: a step failed.
        """
        if not (self.is_clear() and self.takes(chunk)):
            return False
        try:
            for shown in self.read(chunk):
                self.write(shown)
        except Exception as exc:  # whatever it is, the layers are to raise it
            raise ShortcutFailed from exc
        return True

    def take_tokens(self, ids: list[int], logprobs: list[float] | None) -> bool:
        """The same for tokens that differ from the chunk before, which was taken, in nothing else.

        Raises:
            ShortcutFailed: a step failed.
        """
        if not self.is_clear():
            return False
        try:
            self.adds(ids)
            text = self.said(ids, logprobs)
            if text is not None:
                self.write_text(text, len(ids))
                return True
            for shown in self.read(self.made(ids, logprobs)):
                self.write(shown)
        except Exception as exc:  # whatever it is, the layers are to raise it
            raise ShortcutFailed from exc
        return True
