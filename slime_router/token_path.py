"""The path of tokens: what makes a prompt, reads and records the reply, and what these share."""

from __future__ import annotations

from collections.abc import Sequence

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.chat.parse import ReplyParsers
from slime_router.chat.template import ChatTemplate
from slime_router.chat.tokenizer import Tokenizer
from slime_router.middleware.base import Dispatch, Middleware
from slime_router.middleware.caching import RadixTreeMiddleware
from slime_router.middleware.recording import RecordingMiddleware
from slime_router.middleware.sessions import SessionMiddleware
from slime_router.prompt import PromptMaker
from slime_router.router import Router
from slime_router.trajectory.store import MAX_SESSIONS, TrajectoryStore
from slime_router.types import Capture, History
from slime_router.weights import WeightVersions


class TokenPath:
    """The layers next to the worker, wired; each running router has one, and each check-up some.

    `max_cached_tokens` and `max_stored_tokens` bound the tree and the store.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        parsers: ReplyParsers,
        *,
        history: History,
        capture: Capture,
        max_cached_tokens: int,
        max_stored_tokens: int,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.cache = PrefixCache(
            max_cached_tokens, is_anchor=tokenizer.is_anchor, is_control=tokenizer.is_control
        )
        self.store = TrajectoryStore(max_stored_tokens, max_sessions=max_sessions)
        self.weights = WeightVersions()
        self.maker = PromptMaker(tokenizer, template, self.cache, self.store, history=history)
        self.sessions = SessionMiddleware(self.store)
        self.recording = RecordingMiddleware(
            self.store,
            capture=capture,
            prints_call_ids=template.findings.prints_call_ids,
            epoch_of=self.weights.epoch_of,
        )
        self.caching = RadixTreeMiddleware(
            self.maker,
            self.cache,
            tokenizer,
            capture=capture,
            weights=self.weights,
            parsers=parsers,
        )

    def __repr__(self) -> str:
        return f"<TokenPath {self.store!r}>"

    def router(
        self,
        dispatch: Dispatch,
        *,
        outer: Sequence[Middleware] = (),
        inner: Sequence[Middleware] = (),
    ) -> Router:
        """Generations along this path, with `outer` layers before it and `inner` ones after it."""
        layers: tuple[Middleware, ...] = (
            *outer,
            self.sessions,
            self.recording,
            self.caching,
            *inner,
        )
        return Router(layers, dispatch)
