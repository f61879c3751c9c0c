"""The retrieval doors: the tokens of a text or of messages, as they were sent and sampled.

They only read: a text that was never sampled is encoded, with a loss mask of 0, and none of it
enters the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from slime_router.api.chat.messages import read_messages
from slime_router.api.chat.tools import read_tools
from slime_router.api.model_names import ModelNames
from slime_router.api.request import new_turn_id, read_object, require, scope, session_id
from slime_router.aside import Aside
from slime_router.engine.rules import parting_fields
from slime_router.generation.retrieval import Retriever
from slime_router.trajectory.turn import Trace
from slime_router.types import GenerateCall, Message, TemplateOptions


class RetrieveDoor:
    """Serves `/retrieve_from_text` and `/retrieve_from_messages_template`."""

    def __init__(self, retriever: Retriever, names: ModelNames) -> None:
        self._retriever = retriever
        self._names = names
        self._aside = Aside()

    async def from_text(self, request: web.Request) -> web.Response:
        """`{"text"}` to tokens; `paths` says how many token paths read so.

        A request that names a session gets that session's own, others the newest.
        """
        body = self._names.spelled_out(await read_object(request))
        text = body.get("text")
        require(isinstance(text, str) and bool(text), "text", "a string that is not empty")
        call = GenerateCall(
            rid="",
            turn_id="",
            text=text,
            session_id=session_id(request, body),
            scope=scope(request, body),
            worker_fields=parting_fields(body),
        )
        trace, paths = await self._retriever.by_text(call)
        return await self._reply(trace, str(text), paths=paths)

    async def from_messages(self, request: web.Request) -> web.Response:
        """`{"messages", "tools", "add_generation_prompt", "chat_template_kwargs"}` to tokens.

        A request that names a session gets the tokens of that session's own turns.
        """
        body = self._names.spelled_out(await read_object(request))
        messages = read_messages(body)
        call = GenerateCall(
            rid="",
            turn_id=new_turn_id(),
            messages=messages,
            template=read_template_options(body, messages),
            session_id=session_id(request, body),
            scope=scope(request, body),
            worker_fields=parting_fields(body),
        )
        trace, text = await self._retriever.by_messages(call)
        return await self._reply(trace, text)

    async def _reply(self, trace: Trace, text: str, **more: int) -> web.Response:
        def written() -> bytes:
            return orjson.dumps({**trace_body(trace, text), **more})

        body = await self._aside.run(len(trace.ids), written)
        return web.Response(body=body, content_type="application/json")


def read_template_options(
    body: Mapping[str, Any], messages: tuple[Message, ...], *, continues: bool = False
) -> TemplateOptions:
    """The options to render messages with when no reply is asked for.

    Unless the body says otherwise, a reply's header is added if the last message is not a reply.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    asked = body.get("add_generation_prompt")
    require(asked is None or type(asked) is bool, "add_generation_prompt", "true or false")
    kwargs = body.get("chat_template_kwargs")
    require(kwargs is None or isinstance(kwargs, dict), "chat_template_kwargs", "an object")
    is_reply_last = messages[-1]["role"] == "assistant"
    return TemplateOptions(
        tools=read_tools(body),
        add_generation_prompt=not is_reply_last if asked is None else asked,
        continue_final_message=continues,
        kwargs=kwargs or {},
    )


def trace_body(trace: Trace, text: str) -> dict[str, Any]:
    """The reply of both doors.

    A log-probability is 0.0 for a token that was not sampled, and null for a sampled one whose
    log-probability is unknown: 0.0 would look like certainty.
    """
    known = np.isfinite(trace.logprobs)
    logprobs = [
        float(value) if is_known else (None if is_sampled else 0.0)
        for value, is_known, is_sampled in zip(trace.logprobs, known, trace.loss_mask, strict=True)
    ]
    return {
        "tokens": trace.ids.tolist(),
        "response": text,
        "loss_mask": trace.loss_mask.tolist(),
        "token_length": len(trace.ids),
        "loss_mask_length": len(trace.loss_mask),
        "rollout_logp": logprobs,
        "generation_versions": list(trace.weight_versions),
    }
