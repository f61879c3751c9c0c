"""The path of tokens: what makes a prompt, and reads and records the reply, wired together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slime_router.archive.shared import SharedArchive
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.choices import Capture, History
from slime_router.engine.rules import SamplingRules
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.caching import Cacher
from slime_router.generation.context_limit import ContextLimit
from slime_router.generation.counting import Counting
from slime_router.generation.middleware import Dispatch, Middleware
from slime_router.generation.pipeline import Pipeline
from slime_router.generation.prompts.prompt_maker import PromptMaker
from slime_router.generation.recording import Recorder
from slime_router.generation.router import Router
from slime_router.generation.sessions import Sessions, in_session
from slime_router.generation.weight_versions import WeightVersions
from slime_router.journal.fetching import AllIsHere, Fetch
from slime_router.replies.parsers import ReplyParsers
from slime_router.telemetry.meters import Meters
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall


class TokenPath:
    """The steps of a generation, wired up; a running router has one, a check-up several.

    `max_cached_tokens` bounds the tree, `max_stored_tokens` its own store where none is given;
    `journal` is the store's, if it has one; `fetch` fills the store. Without an `admission`, nobody
    waits. `rules` are those for the sampling of all calls.
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
        max_stored_tokens: int = 0,
        store: TrajectoryStore | None = None,
        journal: SharedArchive | None = None,
        fetch: Fetch | None = None,
        admission: AdmissionQueue | None = None,
        rules: SamplingRules | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.meters = Meters() if meters is None else meters
        self.cache = PrefixCache(
            max_cached_tokens,
            is_anchor=tokenizer.is_anchor,
            is_control=tokenizer.control_ids.__contains__,
        )
        self.store = TrajectoryStore(max_stored_tokens) if store is None else store
        self.weights = WeightVersions()
        self.maker = PromptMaker(tokenizer, template, self.cache, self.store, history=history)
        self.counting = Counting()
        self.admission = admission or AdmissionQueue.unlimited()
        self.fetch = AllIsHere() if fetch is None else fetch
        self.sessions = Sessions(self.store, self.fetch, rules)
        self.recording = Recorder(
            self.store,
            capture=capture,
            prints_call_ids=template.findings.prints_call_ids,
            epoch_of=self.weights.epoch_of,
            journal=journal,
            meters=self.meters,
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

    async def length(self, call: GenerateCall, context_len: int | None = None) -> int:
        """How many tokens a call's prompt has; none of it is kept.

        Raises:
            BadRequest: as where the prompt is made to be sent.
        """
        with await self.fetch.of_call(call):
            prompt = await self.maker.make(in_session(call, self.store), context_len)
            try:
                return len(prompt.ids)
            finally:
                self.maker.release(prompt)

    def router(
        self,
        relay: Dispatch,
        *,
        plugins: Sequence[Middleware] = (),
        context_lens: Callable[[], Sequence[int | None]] = tuple,
    ) -> Router:
        """Generations along this path, down to `relay`, with `plugins` around each of them.

        `context_lens()` are the contexts of the workers, None for those that are unknown.
        """
        limit = ContextLimit(context_lens, self.length)
        pipeline = Pipeline(
            # Plug-ins may ask several times, or not at all, so counting goes outside them.
            counting=Counting() if plugins else self.counting,
            admission=self.admission,
            sessions=self.sessions,
            fetch=self.fetch,
            recording=self.recording,
            caching=self.caching,
            context_limit=limit,
            relay=relay,
            meters=self.meters,
        )
        outer = (self.counting.around, *plugins) if plugins else ()
        return Router(outer, pipeline.generate, check=limit.check)
