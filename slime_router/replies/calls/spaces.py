"""White space of content that follows calls."""

from __future__ import annotations


class Spaces:
    """Leaves out line ends between calls; other white space waits for what comes next."""

    def __init__(self) -> None:
        self._waiting: str | None = None

    @property
    def follow_text(self) -> bool:
        """Whether content has come since the last call."""
        return self._waiting is not None

    def without(self, content: str, *, has_calls: bool) -> str:
        """The content that is given now, where parts of calls came with it or not."""
        if has_calls and not content.strip():
            self._waiting = None
            return ""
        if not content.strip():
            if self._waiting is not None:
                self._waiting += content
            return ""
        content = content.lstrip() if self._waiting is None else self._waiting + content
        kept = content.rstrip()
        self._waiting = content[len(kept) :]
        return kept
