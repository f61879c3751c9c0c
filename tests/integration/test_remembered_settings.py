"""What requests share of the settings that were read once is never written to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.gateway import CHAT, served, user

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SHARED: dict[str, Any] = {
    "tools": [TOOL],
    "stop": ["never"],
    "logit_bias": {"1": 1},
    "custom_params": {"a": {"b": [1]}},
    "custom_labels": {"of": "a test"},
    "session_params": {"id": "one"},
    "chat_template_kwargs": {"enable_thinking": False, "more": {"a": 1}},
    "metadata": {"session_id": "s"},
    "max_tokens": 4,
    "n": 2,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_nobody_writes_to_settings_that_requests_share(stream):
    async with served() as (router, worker):
        kept = router.gateway.context.chat_settings._kept
        sent = []
        for question in ("a", "b", "a"):
            body = {**SHARED, "messages": [user(question)], "stream": stream}
            async with router.http.post(CHAT, json=body) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()
            [settings] = kept.values()
            sent.append(repr(settings))
        assert sent[0] == sent[1] == sent[2]
        asked = [{**request.body, "input_ids": None, "rid": None} for request in worker.requests]
        assert asked == asked[:1] * 6
