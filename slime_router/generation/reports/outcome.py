"""The outcome of a generation, for the line that the log has of its request."""

from __future__ import annotations

from slime_router.auth.owners import shown
from slime_router.replies.reply import Reply
from slime_router.telemetry.course import Course
from slime_router.telemetry.request_record import Outcome
from slime_router.types import GenerateCall


def outcome_of(call: GenerateCall, reply: Reply, course: Course) -> Outcome:
    """How a generation ended, as far as it came."""
    prompt = reply.prompt
    receipt = None if prompt is None else prompt.receipt
    return Outcome(
        turn=call.turn_id,
        session=None if call.session_id is None else shown(call.session_id),
        receipt=None if receipt is None else receipt.status,
        prompt_tokens=0 if prompt is None else len(prompt.ids),
        reused_tokens=0 if receipt is None else receipt.reused,
        output_tokens=len(reply.output_ids),
        finish=None if reply.finish is None else reply.finish.type,
        worker=course.workers[-1] if course.workers else "",
        first_token_s=course.first_token_s,
    )
