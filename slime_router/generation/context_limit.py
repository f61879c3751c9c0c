"""The context limit: nobody asks a worker for more than its context has room for.

Agents name one number for every model (`max_tokens: 32000`), and a worker refuses what does not
fit. What is left of the context is all that such a client can get, so that is what it gets: a
number where the workers have said how long their context is, else "to the end" after a refusal.
A prompt that has no room itself goes on, and the worker's refusal is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from slime_router.engine.request import is_too_much
from slime_router.errors import WorkerRefused
from slime_router.types import GenerateCall


class ContextLimit:
    """Limits calls, whose prompts are made, to the tokens that fit.

    `context_len()` is the shortest context of the workers, None while none has said.
    A body in the worker's own words is not touched.
    """

    def __init__(self, context_len: Callable[[], int | None]) -> None:
        self._context_len = context_len

    def fitted(self, call: GenerateCall) -> GenerateCall:
        """The call with a limit where it asks for more than there is room for."""
        context_len = self._context_len()
        if call.native is not None or call.prompt is None or context_len is None:
            return call
        room = context_len - len(call.prompt.ids)
        if room < 1:
            return call
        limit = room if call.token_limit is None else min(call.token_limit, room)
        asked = call.sampling.max_tokens
        if asked is not None and asked <= limit:
            return call
        return replace(call, token_limit=limit)

    def after_refusal(self, call: GenerateCall, refusal: WorkerRefused) -> GenerateCall:
        """The call to try after a worker refused this one, of which nothing came.

        Raises:
            WorkerRefused: the refusal, where it is not for what was asked for beyond the prompt.
        """
        was_tried = bool(call.asked_as)
        if was_tried or call.native is not None or not is_too_much(refusal):
            raise refusal
        return _to_the_end(call)


def _to_the_end(call: GenerateCall) -> GenerateCall:
    """The same with no limit but the context; under another id, as the first is being aborted."""
    sampling = replace(call.sampling, max_tokens=None)
    return replace(
        call, sampling=sampling, token_limit=None, rid=f"{call.rid}-again", asked_as=call.rid
    )
