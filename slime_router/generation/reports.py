"""What is reported of a generation once it is over: its turn's account, and its log line."""

from __future__ import annotations

from slime_router.auth.caller import shown
from slime_router.replies.reply import Reply
from slime_router.telemetry.request_record import Course, Outcome
from slime_router.trajectory.turn import Account, packed_words
from slime_router.types import GenerateCall, Message, Prompt


def account_of(
    call: GenerateCall,
    reply: Reply,
    prompt: Prompt,
    course: Course,
    said: Message,
    *,
    goes_on: bool,
) -> Account:
    """How a turn came about.

    `said` is the reply as a message, without its reasoning; `goes_on`: the turn that its prompt
    begins with is still held.
    """
    asker = course.request
    new = prompt.new_messages if goes_on else None
    rid, adapter = call.asked_as or call.rid, call.asked.get("lora_path")
    return Account(
        started=course.started,
        duration_s=course.elapsed_s(),
        queued_s=course.admitted_s or 0.0,
        prompt_s=course.prompt_s,
        first_token_s=course.first_token_s,
        workers=course.workers,
        door="" if asker is None else asker.door,
        key="" if asker is None else asker.key,
        request_id="" if asker is None else asker.id,
        rid=rid if asker is None else rid.removeprefix(asker.tag),
        adapter=adapter if isinstance(adapter, str) else "",
        words=None if call.messages is None else _words(call.messages, new, said, reply),
        goes_on=new is not None,
    )


def _words(messages: tuple[Message, ...], new: int | None, said: Message, reply: Reply) -> bytes:
    """The `new` messages at the end (None: all of them) and the reply, as JSON."""
    if reasoning := reply.reasoning:
        said = {**said, "reasoning_content": reasoning}
    start = 0 if new is None else len(messages) - new
    return packed_words(messages[start:], said)  # a plain tuple, as orjson writes no others


def outcome_of(call: GenerateCall, reply: Reply, course: Course) -> Outcome:
    """How a generation ended, as far as it came, for the line that the log has of its request."""
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
