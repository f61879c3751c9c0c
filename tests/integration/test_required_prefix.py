"""`required_prefix_token_ids` of NeMo-RL's server: the tokens that a prompt must begin with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.gateway import CHAT, served, user

FIELD = "required_prefix_token_ids"


def asked(**fields: Any) -> dict[str, Any]:
    return {"messages": [user("hi")], "max_tokens": 3, "return_token_ids": True, **fields}


async def test_the_next_turn_begins_with_the_last_one():
    """NeMo Gym sends its prompt and its reply, as it got them."""
    async with served() as (router, worker):
        _, first = await router.post(CHAT, asked())
        [choice] = first["choices"]
        known = first["prompt_token_ids"] + choice["token_ids"]
        messages = [user("hi"), choice["message"], user("go on")]
        status, second = await router.post(CHAT, asked(messages=messages, **{FIELD: known}))
        assert (status, second["prompt_token_ids"][: len(known)]) == (200, known)
        assert FIELD not in worker.requests[-1].body


@pytest.mark.parametrize("stream", [False, True])
async def test_another_prompt_is_refused_where_it_departs(stream):
    async with served() as (router, worker):
        _, first = await router.post(CHAT, asked())
        ids = first["prompt_token_ids"]
        known = [*ids[:2], ids[2] + 1, *ids[3:]]
        before = router.footprint()
        for prefix, where in ((known, 2), ([*ids, 1], len(ids)), ([*known, 1], 2)):
            status, reply = await router.post(CHAT, asked(stream=stream, **{FIELD: prefix}))
            assert (status, reply["error"]["param"]) == (400, FIELD)
            assert f"at token {where} of {len(prefix)}" in reply["error"]["message"]
        assert router.footprint() == before
        assert len(worker.requests) == 1


@pytest.mark.parametrize("value", ["x", [], [1.5], [-1], [10**9], {}])
async def test_a_bad_one_is_named(value):
    async with served() as (router, _):
        status, reply = await router.post(CHAT, asked(**{FIELD: value}))
        assert (status, reply["error"]["param"]) == (400, FIELD)


async def test_null_is_none():
    async with served() as (router, _):
        assert (await router.post(CHAT, asked(**{FIELD: None})))[0] == 200
