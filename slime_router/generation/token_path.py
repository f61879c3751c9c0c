"""The path of tokens: what makes a prompt, and reads and records the reply, wired together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.caching import Cacher
from slime_router.generation.context_limit import ContextLimit
from slime_router.generation.metrics import Counting
from slime_router.generation.middleware import Dispatch, Middleware
from slime_router.generation.pipeline import Pipeline
from slime_router.generation.prompt import PromptMaker
from slime_router.generation.recording import Recorder
from slime_router.generation.router import Router
from slime_router.generation.sessions import Sessions
from slime_router.generation.weight_versions import WeightVersions
from slime_router.replies.parser import ReplyParsers
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import MAX_SESSIONS, TrajectoryStore
from slime_router.types import Capture, History


class TokenPath:
    """The steps of a generation, wired up; a running router has one, a check-up several.

    `max_cached_tokens` and `max_stored_tokens` bound the tree and the store; without an
    `admission`, nobody waits.
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
        admission: AdmissionQueue | None = None,
    ) -> None:
        self.cache = PrefixCache(
            max_cached_tokens, is_anchor=tokenizer.is_anchor, is_control=tokenizer.is_control
        )
        self.store = TrajectoryStore(max_stored_tokens, max_sessions=max_sessions)
        self.weights = WeightVersions()
        self.maker = PromptMaker(tokenizer, template, self.cache, self.store, history=history)
        self.counting = Counting()
        self.admission = admission or AdmissionQueue.unlimited()
        self.sessions = Sessions(self.store)
        self.recording = Recorder(
            self.store,
            capture=capture,
            prints_call_ids=template.findings.prints_call_ids,
            epoch_of=self.weights.epoch_of,
        )
        self.caching = Cacher(
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
        relay: Dispatch,
        *,
        plugins: Sequence[Middleware] = (),
        context_len: Callable[[], int | None] = lambda: None,
    ) -> Router:
        """Generations along this path, down to `relay`, with `plugins` around each of them.

        `context_len()` is the shortest context of the workers, None until one has reported it.
        """
        pipeline = Pipeline(
            # Plug-ins may ask several times, or not at all, so counting goes outside them.
            counting=Counting() if plugins else self.counting,
            admission=self.admission,
            sessions=self.sessions,
            recording=self.recording,
            caching=self.caching,
            context_limit=ContextLimit(context_len),
            relay=relay,
        )
        outer = (self.counting.around, *plugins) if plugins else ()
        return Router(outer, pipeline.generate)
