"""What is sent to each path: its fields, and those that must be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from slime_router.api.known.names import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    MESSAGES_FIELDS,
    RESPONSES_FIELDS,
    TOKEN_FIELDS,
)
from slime_router.api.sessions.request import SPEC_FIELDS
from slime_router.api.sessions.rows import ROW_OPTIONS, SELECTORS

CHAT_PATH = "/v1/chat/completions"

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_TEXT = {"type": "string", "minLength": 1}
_SHAPES: dict[str, Mapping[str, Any]] = {  # of fields that are not scalars, where it is simple
    "messages": {"type": "array", "items": ANY_OBJECT},
    "tools": {"type": ["array", "null"], "items": ANY_OBJECT},
    "sampling_params": {"type": ["object", "null"]},
    "response_format": {"type": ["object", "null"]},
    "token_ids": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
    "input_ids": {"type": ["array", "null"]},
    "tokens": {"type": "array"},
    "instructions": {"type": ["string", "null"]},
    "group_id": {"type": ["string", "integer", "null"]},
    "url": _TEXT,
    "worker_group": {"type": "string"},
    "revision": {"type": "string"},
    "reward": {"type": ["number", "object"]},
    "tags": {"type": "array", "maxItems": 32, "items": {"type": "string", "minLength": 1}},
    "in_flight": {"enum": ["wait", "cancel"]},
    "timeout_secs": {"type": "number", "minimum": 0, "maximum": 86_400},
}


class Body(NamedTuple):
    """What is sent to a path.

    Attributes:
        about: what the path does; "" where its handler says it.
        fields: those that are read. Others are ignored, or refused where it `is_closed`.
        required: those that must be there.
        any_of: of these, one must be there.
        one_of: of these, one and no other.
        may_lack: no body is an empty one.
        shapes: of fields that are different here.
    """

    about: str
    fields: frozenset[str]
    required: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    is_closed: bool = False
    may_lack: bool = False
    shapes: Mapping[str, Mapping[str, Any]] = {}

    def schema(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON Schema of a body; `scalars` has those of the chat fields."""
        shapes = {**scalars, **_SHAPES, **self.shapes}
        made: dict[str, Any] = {
            "type": "object",
            "required": list(self.required),
            "properties": {name: _untitled(shapes.get(name, {})) for name in sorted(self.fields)},
        }
        for rule, names in (("anyOf", self.any_of), ("oneOf", self.one_of)):
            if names:
                made[rule] = [{"required": [name]} for name in names]
        if self.is_closed:
            made["additionalProperties"] = False
        return made


def _untitled(shape: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shape.items() if key != "title"}


def _closed(*required: str, optional: tuple[str, ...] = (), may_lack: bool = False) -> Body:
    fields = frozenset((*required, *optional))
    return Body("", fields, required, is_closed=True, may_lack=may_lack)


_WORKER = ("worker_type", "bootstrap_port", "api_key", "priority", "cost", "labels")
_CONTINUED = ("input", "previous_response_id")
_OF_BATCHES: Mapping[str, Mapping[str, Any]] = {
    "rid": {},
    "return_logprob": {},
    "sampling_params": {},
}  # or one for each prompt
_TEMPLATE = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")

BODIES: Mapping[str, Body] = {
    CHAT_PATH: Body(
        "OpenAI's chat completions, streamed or not",
        CHAT_FIELDS,
        any_of=("messages", "input_ids", "prompt_token_ids"),
    ),
    "/v1/completions": Body(
        "OpenAI's completions, streamed or not", COMPLETION_FIELDS, ("prompt",)
    ),
    "/v1/responses": Body(
        "OpenAI's Responses, streamed or not", RESPONSES_FIELDS, any_of=_CONTINUED
    ),
    "/v1/responses/input_tokens": Body(
        "How many tokens a prompt has", RESPONSES_FIELDS, any_of=_CONTINUED
    ),
    "/v1/messages": Body(
        "Anthropic's Messages, streamed or not", MESSAGES_FIELDS, ("messages", "max_tokens")
    ),
    "/v1/messages/count_tokens": Body(
        "How many tokens a prompt has", MESSAGES_FIELDS, ("messages",)
    ),
    "/inference/v1/generate": Body(
        "vLLM's token API: ids in, ids out",
        TOKEN_FIELDS,
        ("token_ids",),
        shapes={"stream_options": {"type": ["object", "null"]}},
    ),
    "/generate": Body(
        "SGLang's own API; its fields are the worker's",
        frozenset(("text", "input_ids", "sampling_params", "return_logprob", "stream", "rid")),
        any_of=("text", "input_ids"),
        shapes=_OF_BATCHES,
    ),
    "/sessions": Body(
        "Opens a session",
        frozenset(SPEC_FIELDS),
        is_closed=True,
        may_lack=True,
        shapes={
            "metadata": {"type": ["object", "null"]},
            "top_logprobs": {"type": ["integer", "null"], "minimum": 0},
            "max_turns": {"type": ["integer", "null"], "minimum": 1},
            "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        },
    ),
    "/sessions/{session}/close": _closed(optional=("in_flight", "timeout_secs"), may_lack=True),
    "/sessions/{session}/exported": _closed("revision"),
    "/sessions/{session}/reward": _closed("reward"),
    "/sessions/{session}/samples": _closed(optional=("max_seq_len", "metadata"), may_lack=True),
    "/sessions/{session}/score": _closed("worker_group", optional=("top_logprobs", *ROW_OPTIONS)),
    "/turns/{turn}/reward": _closed("reward")._replace(
        shapes={"reward": {"type": ["number", "null"]}}
    ),
    "/turns/{turn}/tags": _closed("tags"),
    "/rows": Body("", frozenset((*SELECTORS, *ROW_OPTIONS)), one_of=SELECTORS, is_closed=True),
    "/retrieve_from_text": Body(
        "", frozenset(("text", "session_id")), ("text",), shapes={"text": _TEXT}
    ),
    "/retrieve_from_messages_template": Body(
        "", frozenset(("messages", "session_id", *_TEMPLATE)), ("messages",)
    ),
    "/diagnose": Body(
        "",
        frozenset(("tokens", "messages", "text", "session_id", *_TEMPLATE)),
        one_of=("messages", "text"),
    ),
    "/tokenize": Body(
        "",
        frozenset(("prompt", "messages", "add_special_tokens", "return_token_strs", *_TEMPLATE)),
        one_of=("prompt", "messages"),
    ),
    "/detokenize": Body("", frozenset(("tokens", "skip_special_tokens")), ("tokens",)),
    "/workers": Body("Registers a worker", frozenset(("url", *_WORKER)), ("url",)),
    "/workers/{worker}": Body("", frozenset(_WORKER)),
}
BODIES = {
    **BODIES,
    "/invocations": BODIES[CHAT_PATH],
    "/v1/tokenize": BODIES["/tokenize"],
    "/v1/detokenize": BODIES["/detokenize"],
}
