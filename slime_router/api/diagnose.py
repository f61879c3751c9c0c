"""The drift doctor's door: `POST /diagnose` shows where held and rendered tokens part, and why.

It only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from slime_router.api.chat.messages import read_messages
from slime_router.api.model_names import ModelNames
from slime_router.api.request import (
    checked_session_id,
    new_turn_id,
    read_object,
    require,
    session_id,
)
from slime_router.api.retrieve import read_template_options
from slime_router.api.token_ids import checked_ids
from slime_router.auth.caller import ANYBODY, Caller, caller
from slime_router.doctor.doctor import Diagnosis, Doctor
from slime_router.doctor.drift import Glimpse, Parting, Region
from slime_router.engine.rules import parting, parting_fields
from slime_router.errors import BadRequest
from slime_router.types import GenerateCall, TemplateOptions, TokenIds


@dataclass(frozen=True, slots=True)
class Question:
    """What to compare: `held`, or without it a turn of the session that `call` names."""

    call: GenerateCall
    held: TokenIds | None

    async def ask(self, doctor: Doctor) -> Diagnosis:
        """The doctor's answer."""
        if self.held is not None:
            return await doctor.of_tokens(self.held, self.call)
        assert self.call.session_id is not None
        return await doctor.of_session(self.call.session_id, self.call)


class DiagnoseDoor:
    """Serves `/diagnose`."""

    def __init__(
        self,
        doctor: Doctor,
        names: ModelNames,
        on_answer: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._doctor = doctor
        self._names = names
        self._on_answer = on_answer  # with the class of drift

    async def handle(self, request: web.Request) -> web.Response:
        """`{"session_id" | "tokens", "messages" | "text", ...}` to a diagnosis."""
        body = self._names.spelled_out(await read_object(request))
        named, by = session_id(request, body), caller(request)
        question = read_question(body, self._doctor.vocab_size, session_id=named, by=by)
        diagnosis = await question.ask(self._doctor)
        self._on_answer(diagnosis.drift.cause.value)
        return web.json_response(diagnosis_body(diagnosis))


def read_question(
    body: Mapping[str, Any],
    vocab_size: int,
    *,
    session_id: str | None = None,
    by: Caller = ANYBODY,
) -> Question:
    """What a body asks for; `session_id` is the session that the request names elsewhere.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    has_tokens = _is_given_one(body, "tokens", "session_id", is_needed=session_id is None)
    held = checked_ids(body["tokens"], vocab_size, "tokens") if has_tokens else None
    if body.get("session_id") is not None:
        session_id = by.own(checked_session_id(body["session_id"]))
    messages, text, options = None, None, TemplateOptions()
    if _is_given_one(body, "messages", "text"):
        messages = read_messages(body)
        options = read_template_options(body, messages)
    else:
        text = body["text"]
        require(isinstance(text, str) and bool(text), "text", "a string that is not empty")
    call = GenerateCall(
        rid="",
        turn_id=new_turn_id(),
        messages=messages,
        text=text,
        template=options,
        session_id=None if has_tokens else session_id,
        scope=by.own(parting(body)),
        worker_fields=parting_fields(body),
    )
    return Question(call, held)


def diagnosis_body(diagnosis: Diagnosis) -> dict[str, Any]:
    """The reply. Spans are half-open; a side that has ended has no token there and is null."""
    drift = diagnosis.drift
    body: dict[str, Any] = {
        "is_same": drift.is_same,
        "common_tokens": drift.common,
        "held_tokens": drift.held_len,
        "rendered_tokens": drift.rendered_len,
        "class": drift.cause.value,
        "explanation": drift.explanation,
        "first_difference": None,
        "differences": [_region(region) for region in drift.regions[1:]],
        "has_more_differences": drift.has_more,
    }
    if drift.parting is not None:
        body["first_difference"] = _parting(drift.parting, drift.regions[0])
    if diagnosis.turn_id is not None:
        body["turn_id"] = diagnosis.turn_id
    return body


def _is_given_one(
    body: Mapping[str, Any], name: str, other: str, *, is_needed: bool = True
) -> bool:
    """Whether the body has `name`; it must not have both, and one of them if that `is_needed`."""
    has_name, has_other = body.get(name) is not None, body.get(other) is not None
    if has_name and has_other:
        raise BadRequest(f"Give '{name}' or '{other}', not both.", param=name)
    if is_needed and not has_name and not has_other:
        raise BadRequest(
            f"'{name}' or '{other}' is required.", param=name, code="missing_required_parameter"
        )
    return has_name


def _parting(parting: Parting, region: Region) -> dict[str, Any]:
    return {
        "index": parting.index,
        "held": _glimpse(parting.held, region.held[1]),
        "rendered": _glimpse(parting.rendered, region.rendered[1]),
        "text_before": parting.text_before,
    }


def _glimpse(glimpse: Glimpse | None, end: int) -> dict[str, Any] | None:
    if glimpse is None:
        return None
    return {
        "id": glimpse.id,
        "token": glimpse.token,
        "text_after": glimpse.text_after,
        "end": end,
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "held": {"start": region.held[0], "end": region.held[1]},
        "rendered": {"start": region.rendered[0], "end": region.rendered[1]},
        "class": region.cause.value,
    }
