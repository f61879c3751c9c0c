"""The account of a turn: how it came about, and what was said."""

from __future__ import annotations

from slime_router.replies.reply import Reply
from slime_router.telemetry.course import Course
from slime_router.trajectory.account import Account, packed_words
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
    rid = call.asked_as or call.rid
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
        words=None if call.messages is None else _words(call.messages, new, said, reply),
        goes_on=new is not None,
    )


def _words(messages: tuple[Message, ...], new: int | None, said: Message, reply: Reply) -> bytes:
    """The `new` messages at the end (None: all of them) and the reply, as JSON."""
    if reasoning := reply.reasoning:
        said = {**said, "reasoning_content": reasoning}
    return packed_words(messages if new is None else messages[len(messages) - new :], said)
