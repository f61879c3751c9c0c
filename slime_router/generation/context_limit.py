"""The context limit: no worker is asked for more tokens than fit its context.

Agents send one number for every model (`max_tokens: 32000`), and a worker refuses what does not
fit. The rest of the context is all that such a client can get, so that is what it gets: as a number
if the workers have reported their context length, else as "to the end" after a refusal. A prompt
that does not fit itself is passed on, and the worker's refusal is the answer.
"""

from __future__ import annotations

from collections.abc import Callable

from slime_router.engine.request import is_too_much
from slime_router.errors import WorkerRefused
from slime_router.types import GenerateCall
from slime_router.values import replace


class ContextLimit:
    """Limits calls, once their prompts are made, to the tokens that fit.

    `context_len()` is the shortest context of the workers, None until one has reported it.
    A native body is left as it is.
    """

    def __init__(self, context_len: Callable[[], int | None]) -> None:
        self._context_len = context_len

    def fitted(self, call: GenerateCall) -> GenerateCall:
        """The call, with a limit if it asks for more than there is room for."""
        context_len = self._context_len()
        if call.is_passed_on or call.prompt is None or context_len is None:
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
        """The call to try after a worker refused this one before any output.

        Raises:
            WorkerRefused: the same refusal, unless its cause is the number of tokens requested
                beyond the prompt.
        """
        was_tried = call.sampling.max_tokens is None and call.token_limit is None
        if was_tried or call.is_passed_on or not is_too_much(refusal):
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
