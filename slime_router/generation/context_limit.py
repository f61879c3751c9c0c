"""The context limit: no worker is asked for more tokens than fit its context.

Agents send one number for every model (`max_tokens: 32000`), and a worker refuses what does not
fit. The rest of the context is all that such a client can get, so that is what it gets: as a number
if the workers have reported their context length, else as "to the end" after a refusal.

A prompt that no worker has room for is refused here: of several prompts, before one of them is
sampled, and of a long text, before it is encoded. A worker with `--allow-auto-truncate` would read
the end of it alone, and the turn would claim all of it. Until every worker has said how long its
context is, such a prompt is passed on, and the worker's refusal is the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from slime_router.errors import ContextLengthExceeded, WorkerRefused
from slime_router.types import GenerateCall
from slime_router.values import replace

# A worker's words for a prompt that fits, with more tokens requested after it than fit.
_TOO_MUCH = "Requested token count exceeds the model's maximum context length"


class ContextLimit:
    """Limits calls, once their prompts are made, to the tokens that fit.

    `context_lens()` are the contexts of the workers, None for those that are unknown.
    A native body is left as it is. `length(call, context_len)` is that of a call's prompt, in
    tokens; it may raise `ContextLengthExceeded` instead of a length that does not fit.
    """

    def __init__(
        self,
        context_lens: Callable[[], Sequence[int | None]],
        length: Callable[[GenerateCall, int], Awaitable[int]],
    ) -> None:
        self._context_lens = context_lens
        self._length = length

    def longest(self) -> int | None:
        """The longest context of the workers; None while one may be longer than those known."""
        known = self._context_lens()
        return None if None in known else max(filter(None, known), default=None)

    async def check(self, calls: Sequence[GenerateCall]) -> None:
        """Whether the prompts of one request all fit: nothing is sampled of it where one does not.

        A text of fewer bytes than the context has tokens fits, and need not be encoded for that.

        Raises:
            ContextLengthExceeded: one does not.
        """
        context_len = self.longest()
        if context_len is None:
            return
        prompts = {call.request_id: call for call in calls}  # samples of one prompt share it
        for call in prompts.values():
            length = 0
            if call.input_ids is not None:
                length = len(call.input_ids)
            elif call.text is not None and len(call.text.encode()) >= context_len:
                length = await self._length(call, context_len)
            if length >= context_len:
                raise ContextLengthExceeded.of(length, context_len)

    def fitted(self, call: GenerateCall) -> GenerateCall:
        """The call, with a limit if it asks for more than any worker has room for.

        Where it is sent to one with less room, `slime_router.engine.request` cuts it to that.

        Raises:
            ContextLengthExceeded: no worker has room for its prompt.
        """
        context_len = self.longest()
        if call.prompt is None or context_len is None:
            return call
        room = context_len - len(call.prompt.ids)
        if room < 1:
            raise ContextLengthExceeded.of(len(call.prompt.ids), context_len)
        if call.is_passed_on:
            return call
        limit = room if call.token_limit is None else min(call.token_limit, room)
        asked = call.sampling.max_tokens
        if asked is not None and asked <= limit:
            return call
        return replace(call, token_limit=limit)

    def after_refusal(self, call: GenerateCall, refusal: WorkerRefused) -> GenerateCall:
        """The call to try after a worker refused this one before any output.

        Raises:
            WorkerRefused: the same refusal, unless its cause is the number of tokens requested
                beyond the prompt.
        """
        was_tried = call.sampling.max_tokens is None and call.token_limit is None
        if was_tried or call.is_passed_on or _TOO_MUCH not in refusal.message:
            raise refusal
        return _to_the_end(call)


def _to_the_end(call: GenerateCall) -> GenerateCall:
    """The call limited only by the context; under a new rid, as the first is being aborted."""
    sampling = replace(call.sampling, max_tokens=None)
    return replace(
        call,
        sampling=sampling,
        token_limit=None,
        rid=f"again-{call.rid}",
        asked_as=call.asked_as or call.rid,
    )
