"""Where a turn attaches in the tree of its session: edits, retries, siblings, sub-agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from slime_router.errors import WorkerFailed
from slime_router.trajectory.turn import Turn as Recorded
from slime_router.types import GenerateCall, GenerateChunk, Message, TokenIds, token_ids
from tests.stack import Sample
from tests.talk import LENGTH, Talk, Turn, real_tokenizer, stop, user

pytestmark = pytest.mark.tokenizers

IM_END = 151645
SYSTEM = {"role": "system", "content": "You are an agent."}
HAV_ING, H_AVING = [72239, 1718], [39, 83722]  # both read HAVING


@pytest.fixture
def talk() -> Talk:
    return Talk(real_tokenizer("qwen3"))


def said(text: str) -> list[int]:
    """A reply as the vocabulary's own encoding has it, and the stop token."""
    return [*real_tokenizer("qwen3").encode(text).tolist(), IM_END]


def ids(*values: int) -> TokenIds:
    return token_ids(values)


def reply(text: str) -> Message:
    return {"role": "assistant", "content": text}


async def say(talk: Talk, messages: list[Message], ids: list[int], **fields: Any) -> Turn:
    given = {"session_id": "s", **fields}
    finish = stop(IM_END) if ids[-1] == IM_END else LENGTH
    return await talk.say(messages, ids, finish, **given)


def recorded(talk: Talk, turn: Turn) -> Recorded:
    found = talk.store.get(turn.call.turn_id)
    assert found is not None
    return found


async def test_the_attach_point_table(talk):
    """Case by case: extension, resend, edited tool result, other question, rewritten reply."""
    u1, t1, t2 = user("Solve it"), user("result one"), user("result two")
    path: list[Message] = [SYSTEM, u1, reply("first"), t1, reply("second"), t2, reply("third")]
    n0 = await say(talk, path[:2], said("first"))
    n1 = await say(talk, path[:4], said("second"))
    n2 = await say(talk, path[:6], said("third"))
    assert n2.ids[: len(n1.held)] == n1.held
    assert n1.ids[: len(n0.held)] == n0.held
    table: list[tuple[str, list[Message], Turn | None]] = [
        ("extension", [*path, user("and on")], n2),
        ("exact resend", path, n2),
        ("the second result differs", [*path[:5], user("other")], n1),
        ("the first result differs", [*path[:3], user("other"), *path[4:6]], n0),
        ("another question", [SYSTEM, user("Another")], None),
        ("the beginning again", path[:2], None),
        ("the second reply is rewritten", [*path[:4], reply("edited"), t2], n0),
        ("a sub-agent's system prompt", [reply("x") | {"role": "system"}, *path[1:]], None),
    ]
    for name, messages, wanted in table:
        turn = await say(talk, messages, said("and so on"))
        found = recorded(talk, turn)
        assert found.base == (wanted.call.turn_id if wanted else None), name
        if wanted is not None:
            assert turn.ids[: len(wanted.held)] == wanted.held, name
    talk.store.check_integrity()


async def test_twins_with_other_tokens_are_each_continued_exactly_in_their_own_session(talk):
    """Equal text is not equal tokens: the session says which of the twins goes on."""
    question = [user("Say it")]
    one = await say(talk, question, [*HAV_ING, IM_END], session_id="one")
    two = await say(talk, question, [*H_AVING, IM_END], session_id="two")
    assert one.reply == two.reply
    for turn, name in ((one, "one"), (two, "two")):
        then = await say(talk, [*question, turn.reply, user("on")], [9707], session_id=name)
        assert then.ids[: len(turn.held)] == turn.held


async def test_of_twins_in_one_session_the_newest_goes_on_and_the_receipt_says_so(talk):
    question = [user("Say it")]
    await say(talk, question, [*HAV_ING, IM_END])
    newest = await say(talk, question, [*H_AVING, IM_END])
    then = await say(talk, [*question, newest.reply, user("on")], [9707])
    assert then.ids[: len(newest.held)] == newest.held
    assert "the newest of 2 that read the same" in then.prompt.receipt.reason


async def test_the_sibling_that_the_client_quotes_goes_on(talk):
    question = [user("Say it")]
    older = await say(talk, question, said("OLDER"))
    newer = await say(talk, question, said("NEWER"))
    for turn in (older, newer):
        then = await say(talk, [*question, turn.reply, user("on")], [9707])
        assert recorded(talk, then).base == turn.call.turn_id


async def test_the_same_prompt_three_times_and_the_last_is_extended(talk):
    question = [user("Say it")]
    turns = [await say(talk, question, said("SAME")) for _ in range(3)]
    then = await say(talk, [*question, turns[0].reply, user("on")], [9707])
    assert recorded(talk, then).base == turns[-1].call.turn_id
    assert [recorded(talk, each).base for each in turns] == [None] * 3


async def test_order_is_the_sequence_of_recording_and_no_clock(talk):
    question = [user("Say it")]
    turns = [await say(talk, question, said("SAME")) for _ in range(3)]
    assert [recorded(talk, turn).seq for turn in turns] == [1, 2, 3]


class Held:
    """A worker that answers when a test says so."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.fails = False
        self.prompts: list[list[int]] = []

    async def dispatch(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        assert call.prompt is not None
        self.prompts.append(call.prompt.ids.tolist())
        await self.go.wait()
        if self.fails:
            raise WorkerFailed("it broke")
        yield GenerateChunk(output_ids=[9707], logprobs=[-0.5], finish=LENGTH)


async def siblings(talk: Talk) -> tuple[list[Turn], list[Message]]:
    question = [user("Say it")]
    turns = [await say(talk, question, said("SAME")) for _ in range(3)]
    return turns, [*question, turns[0].reply, user("on")]


async def test_four_at_once_continue_three_siblings_newest_first_and_share_the_newest(talk):
    """Reservation: nobody re-encodes what was sampled, so the fourth shares a turn and says so."""
    turns, messages = await siblings(talk)
    worker = Held()
    talk.dispatch = worker.dispatch
    calls = [talk.ask(messages, session_id="s") for _ in range(4)]
    running = [asyncio.create_task(talk.generate(call)) for call in calls]
    while len(worker.prompts) < 4:  # noqa: ASYNC110 - a poll needs nothing of the worker
        await asyncio.sleep(0)
    worker.go.set()
    await asyncio.gather(*running)
    bases = [talk.store.get(call.turn_id).base for call in calls]
    names = [turn.call.turn_id for turn in turns]
    assert bases == [names[2], names[1], names[0], names[2]]
    receipts = [talk.store.get(call.turn_id).receipt for call in calls]
    assert ["another running" in receipt.reason for receipt in receipts] == [False] * 3 + [True]
    assert not talk.maker._continued


@pytest.mark.parametrize("how", ["failure", "cancel", "template"])
async def test_a_turn_is_free_again_when_its_continuation_ends_badly(talk, how, monkeypatch):
    turns, messages = await siblings(talk)
    worker = Held()
    talk.dispatch = worker.dispatch
    call = talk.ask(messages, session_id="s")
    if how == "template":
        error = WorkerFailed("the encoder broke")

        async def breaks(*_: Any) -> None:
            raise error

        monkeypatch.setattr(talk.tokenizer, "encode_pieces_async", breaks)
        with pytest.raises(WorkerFailed):
            await talk.generate(call)
        monkeypatch.undo()
    else:
        task = asyncio.create_task(talk.generate(call))
        while not worker.prompts:  # noqa: ASYNC110 - a poll needs nothing of the worker
            await asyncio.sleep(0)
        assert talk.maker._continued[turns[-1].call.turn_id] == 1
        if how == "cancel":
            task.cancel()
        else:
            worker.fails = True
            worker.go.set()
        with pytest.raises(asyncio.CancelledError if how == "cancel" else WorkerFailed):
            await task
    assert not talk.maker._continued
    assert len(talk.store.sessions.get("s").turns) == 3, "the chain is untouched"


async def test_a_client_that_never_got_its_reply_asks_again_from_the_turn_before(talk):
    """A time-out retry: the shorter history attaches where it belongs; nothing is rolled back."""
    first = await say(talk, [user("one")], said("first"))
    history = [user("one"), first.reply, user("two")]
    lost = await say(talk, history, said("lost"))
    again = await say(talk, history, said("again"))
    assert recorded(talk, again).base == recorded(talk, lost).base == first.call.turn_id
    then = await say(talk, [*history, again.reply, user("three")], said("on"))
    assert recorded(talk, then).base == again.call.turn_id
    assert lost.call.turn_id in talk.store


async def test_a_request_that_is_refused_leaves_the_last_turn_where_it_is(talk):
    first = await say(talk, [user("one")], said("first"))
    before = talk.store.tokens, len(talk.store), talk.cache.size
    bad = talk.ask([user("one"), first.reply, {"role": "tool", "content": object()}])
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, it changes nothing
        await talk.generate(bad, Sample([1]))
    assert (talk.store.tokens, len(talk.store), talk.cache.size) == before
    assert not talk.maker._continued
    talk.samples.clear()
    then = await say(talk, [user("one"), first.reply, user("two")], said("on"))
    assert recorded(talk, then).base == first.call.turn_id


async def test_compaction_begins_a_path_of_its_own_and_both_are_kept(talk):
    first = await say(talk, [SYSTEM, user("one")], said("first"))
    second = await say(talk, [SYSTEM, user("one"), first.reply, user("two")], said("second"))
    compacted = await say(talk, [SYSTEM, user("Summary of all")], said("third"))
    assert recorded(talk, compacted).base is None
    rows = talk.rows("s")
    assert {row.row_id for row in rows.rows} == {second.call.turn_id, compacted.call.turn_id}
    assert rows.stats.trained_tokens == 2 + 2 + 2


async def test_an_assistant_carried_over_by_compaction_is_context(talk):
    """Its text stands after other tokens now: nobody sampled it there, so nothing trains on it."""
    first = await say(talk, [SYSTEM, user("one")], said("first"))
    carried = [SYSTEM, user("Summary"), first.reply, user("two")]
    then = await say(talk, carried, said("second"))
    assert recorded(talk, then).base is None
    row = next(row for row in talk.rows("s").rows if row.row_id == then.call.turn_id)
    assert row.tokens.tolist() == then.held
    assert row.loss_mask.tolist() == [0] * len(then.ids) + [1] * len(then.output_ids)


async def test_few_shot_assistants_are_prompt_and_no_turns(talk):
    shots = [SYSTEM, user("2+2"), reply("4"), user("3+3")]
    first = await say(talk, shots, said("6"))
    again = await say(talk, [SYSTEM, user("2+2"), reply("4"), user("5+5")], said("ten"))
    assert recorded(talk, first).base is recorded(talk, again).base is None
    rows = talk.rows("s").rows
    assert [int(row.loss_mask.sum()) for row in rows] == [2, 2]


async def test_a_sub_agent_and_back_to_the_main_agent(talk):
    main = await say(talk, [SYSTEM, user("one")], said("first"))
    sub = await say(talk, [{"role": "system", "content": "Sub"}, user("do")], said("done"))
    back = await say(talk, [SYSTEM, user("one"), main.reply, user("sub says done")], said("end"))
    assert recorded(talk, sub).base is None
    assert back.ids[: len(main.held)] == main.held
    rows = talk.rows("s").rows
    assert [row.row_id for row in rows] == [sub.call.turn_id, back.call.turn_id]


async def test_a_first_turn_that_fails_records_nothing_and_another_may_follow(talk):
    worker = Held()
    worker.fails = True
    worker.go.set()
    dispatch, talk.dispatch = talk.dispatch, worker.dispatch
    with pytest.raises(WorkerFailed):
        await talk.generate(talk.ask([user("one")], session_id="s"))
    assert talk.store.sessions.find("s") is None, "not even the name is left"
    talk.dispatch = dispatch
    turn = await say(talk, [user("quite another")], said("fine"))
    assert list(talk.store.sessions.get("s").turns) == [turn.call.turn_id]


async def test_token_ids_in_a_session_extend_the_turn_that_they_begin_with(talk):
    """RL pipelines send ids: each prompt begins with the last one and what it gave."""
    first = await talk.turn(
        talk.call("", text=None, input_ids=ids(1, 2, 3), session_id="s"), Sample([4, 5])
    )
    call = talk.call("", text=None, input_ids=ids(1, 2, 3, 4, 5, 6), session_id="s")
    second = await talk.turn(call, Sample([7, 8]))
    assert (second.base, second.base_len) == (first.id, 5)
    assert second.receipt.status == "extended"
    assert (second.receipt.reused, second.receipt.encoded) == (5, 1)
    broken = talk.call("", text=None, input_ids=ids(1, 2, 3, 9, 5, 6), session_id="s")
    third = await talk.turn(broken, Sample([7]))
    assert (third.base, third.receipt.status) == (None, "fresh")
    [one, two] = talk.rows("s").rows
    assert one.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert one.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 1, 1]
    assert two.loss_mask.tolist() == [0, 0, 0, 0, 0, 0, 1]


async def test_samples_of_one_request_are_siblings_and_all_are_kept(talk):
    shared = {"request_id": "r", "samples": 4}
    turns = [await say(talk, [user("one")], said(w), **shared) for w in ("a", "b", "a", "c")]
    rows = talk.rows("s")
    assert {row.row_id for row in rows.rows} == {turn.call.turn_id for turn in turns}
    assert rows.stats.trained_tokens == sum(len(turn.output_ids) for turn in turns)
