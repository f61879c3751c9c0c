"""A conversation that only the archive has is found, however its replies were changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from slime_router.archive.fetching.filling import Filler
from slime_router.archive.store import ArchivedStore
from slime_router.template.conversation_key import next_link, reply_links, root_key
from slime_router.template.parts import Parts
from slime_router.trajectory.recognition import Recogniser
from slime_router.types import GenerateCall, Message, TemplateOptions
from tests.archives.archives import Straight
from tests.archives.memory import MemoryArchive
from tests.turns import bare_turn

TURNS = 30  # fewer than `filling.MAX_LEADS`
FIELDS = {"city": {"type": "string"}, "unit": {"type": "string", "default": "C"}}
PARAMETERS = {"type": "object", "properties": FIELDS}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
OPTIONS = TemplateOptions(tools=(TOOL,))


def called(call_id: str, **arguments: str) -> Message:
    function = {"name": "weather", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def result(call_id: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": "warm"}


def recorded(store: ArchivedStore, *, with_ids: bool, goes_on: bool) -> list[Message]:
    """A long conversation in the store, and how an agent tells it: no id is what it was, and
    arguments have their defaults. Without `goes_on` no prompt begins with the turn before.
    """
    asked: Message = {"role": "user", "content": "the weather?"}
    key, spelling = root_key("", OPTIONS), b""
    told = [asked]
    for number in range(TURNS):
        call_id, city = f"call_{number}", f"city {number}"
        key, spelling = next_link(key, spelling, asked, with_call_ids=with_ids)
        reply = called(call_id, city=city)
        keys, spelled = reply_links(key, spelling, reply, with_call_ids=with_ids)
        store.add(
            bare_turn(
                f"turn{number}",
                base=f"turn{number - 1}" if goes_on and number else None,
                keys=keys,
                spelling=spelled,
                asked=key,
                calls=((call_id, "weather"),),
                handles=() if with_ids else (call_id,),
            )
        )
        key, spelling, asked = keys[0], spelled, result(call_id)
        told += [called(f"new_{number}", city=city, unit="C"), result(f"new_{number}")]
    return told


async def written() -> None:
    """`Straight` writes at once."""


@pytest.mark.parametrize("with_ids", [False, True], ids=["ids are not printed", "ids are printed"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["many homes", "one home"])
async def test_the_last_of_many_changed_replies_is_found(with_ids, goes_on):
    archive = MemoryArchive()
    one, other = (ArchivedStore(Straight(archive), 10_000) for _ in range(2))
    told = recorded(one, with_ids=with_ids, goes_on=goes_on)
    findings = SimpleNamespace(prints_call_ids=with_ids, results_by="id")
    template = cast("Any", SimpleNamespace(findings=findings, parts=Parts(), prints_names=False))
    call = GenerateCall(rid="r", turn_id="new", messages=tuple(told), template=OPTIONS)
    with await Filler(archive, other, template, written).of_call(call):
        talk = Recogniser(template, other).recognise(call)
    assert talk.turn is not None
    assert talk.turn.id == f"turn{TURNS - 1}"


async def test_names_that_lead_nowhere_are_looked_up_once():
    archive = MemoryArchive()
    store = ArchivedStore(Straight(archive), 10_000)
    template = cast(
        "Any",
        SimpleNamespace(
            findings=SimpleNamespace(prints_call_ids=True, results_by="id"),
            parts=Parts(),
            prints_names=False,
        ),
    )
    told: tuple[Message, ...] = ({"role": "user", "content": "Hi"}, called("id", city="Rome"))
    call = GenerateCall(rid="r", turn_id="new", messages=(*told, result("id")), template=OPTIONS)
    filler = Filler(archive, store, template, written)
    with await filler.of_call(call):
        assert filler.counts.lookups == 1
