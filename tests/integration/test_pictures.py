"""Conversations with pictures, held token by token."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from slime_router.cli.banner import banner
from slime_router.template.pictures import digest_of, mark_of
from slime_router.testing import FakeWorker
from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, Served, serving, until, user
from tests.seeing import PAD, build_seeing_checkpoint, picture, seeing_tokenizer, seeing_worker

RED, BLUE, GREEN = map(picture, ("red", "blue", "green"))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_seeing_checkpoint(tmp_path_factory.mktemp("seeing"))


def shown(*parts: str) -> list[dict[str, Any]]:
    """Parts of a chat's message: pictures and texts."""
    return [
        {"type": "image_url", "image_url": {"url": each}}
        if each.startswith("data:")
        else {"type": "text", "text": each}
        for each in parts
    ]


def names_of(*pictures: str) -> list[str]:
    return [digest_of(name) for name in map(_bytes_of, pictures)]


def _bytes_of(url: str) -> bytes:
    return {RED: b"red", BLUE: b"blue", GREEN: b"green"}[url]


def of_messages(*parts: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": each.partition(",")[2]},
        }
        if each.startswith("data:")
        else {"type": "text", "text": each}
        for each in parts
    ]


def of_responses(*parts: str) -> list[dict[str, Any]]:
    return [
        {"type": "input_image", "image_url": each, "detail": "auto"}
        if each.startswith("data:")
        else {"type": "input_text", "text": each}
        for each in parts
    ]


class Talk:
    """A conversation by one API; `say` sends a message and keeps what comes back."""

    def __init__(self, router: Served, path: str, *, stream: bool, session: str = "s") -> None:
        self._router, self._path, self._stream = router, path, stream
        self._session = session
        self.said: list[Any] = []

    async def say(self, *parts: str) -> dict[str, Any]:
        """One turn; returns its receipt."""
        form = {CHAT: shown, "/v1/messages": of_messages, "/v1/responses": of_responses}[self._path]
        self.said.append({"role": "user", "content": form(*parts)})
        field = "input" if self._path == "/v1/responses" else "messages"
        limit = "max_output_tokens" if field == "input" else "max_tokens"
        body = {"model": "m", field: self.said, limit: 6, "stream": self._stream}
        if field == "input":
            body["store"] = False
        path = f"/sessions/{self._session}{self._path}"
        async with self._router.http.post(path, json=body) as response:
            raw = await response.read()
            assert response.status == 200, raw
            receipt: dict[str, Any] = orjson.loads(response.headers["x-slime-receipt"])
        self.said += self._replies(raw)
        return receipt

    def _replies(self, raw: bytes) -> list[Any]:
        if self._path == "/v1/responses":
            if not self._stream:
                return list(orjson.loads(raw)["output"])
            return list(_data(raw)[-1]["response"]["output"])
        if self._path == "/v1/messages":
            if not self._stream:
                return [{"role": "assistant", "content": orjson.loads(raw)["content"]}]
            text = "".join(e["delta"].get("text", "") for e in _data(raw) if "delta" in e)
            return [{"role": "assistant", "content": text}]
        if not self._stream:
            return [orjson.loads(raw)["choices"][0]["message"]]
        deltas = [event["choices"][0]["delta"] for event in _data(raw) if event["choices"]]
        return [{"role": "assistant", "content": "".join(d.get("content") or "" for d in deltas)}]


def _data(raw: bytes) -> list[Any]:
    return [
        json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")
    ]


def prompts(worker: FakeWorker) -> list[list[int]]:
    return [request.body["input_ids"] for request in worker.requests]


@pytest.mark.parametrize("history", ["held", "template"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
async def test_each_turn_begins_with_all_tokens_before_it(seeing, path, stream, history):
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing), history=history) as router,
    ):
        assert "pictures  captured" in banner(router.gateway)
        talk = Talk(router, path, stream=stream)
        receipts = [await talk.say(RED, "What is it?"), await talk.say("And", BLUE, "this?", GREEN)]
        receipts.append(await talk.say("Thanks."))
        assert [each["status"] for each in receipts] == ["fresh", "extended", "extended"]
        sources = [request.body["image_data"] for request in worker.requests]
        assert sources == [[RED], [RED, BLUE, GREEN], [RED, BLUE, GREEN]]
        store, pad = router.gateway.store, seeing_tokenizer(seeing).picture_id
        for before, receipt, sent in zip(
            receipts[:-1], receipts[1:], prompts(worker)[1:], strict=True
        ):
            held = store.held_ids(before["turn"]).tolist()
            assert sent[: len(held)] == held
            assert receipt["reused"] == len(held)
        places = [sum(token == pad for token in sent) for sent in prompts(worker)]
        assert places == [1, 3, 3]
        asked = [request.body["return_prompt_token_ids"] for request in worker.requests]
        assert asked == [not stream] * 3
        rows = (await router.get("/sessions/s/rows"))[1]["rows"]
        assert len(rows) == 1
        pictures = [each.get("pictures", []) for each in rows[0]["turns"]]
        found = [digest for own in pictures for _, digest in own]
        assert found == names_of(RED, BLUE, GREEN)
        places = [place for own in pictures for place, _ in own]
        assert [rows[0]["tokens"][place] for place in places] == [pad] * 3
        assert sum(rows[0]["loss_mask"]) == 18
        figures = (await router.get("/metrics"))[1]["router"]
        assert (figures["pictures_captured"], figures["media_passed"]) == (3, 0)


@pytest.mark.parametrize("history", ["held", "template"])
async def test_another_picture_makes_another_conversation(seeing, history):
    """The tokens are the same: a model that saw another picture said it after other ones."""
    async with (
        seeing_worker(seeing) as worker,  # equal prompts get equal answers
        serving(worker.url, hf_checkpoint=str(seeing), history=history) as router,
    ):
        red, blue = (Talk(router, CHAT, stream=False) for _ in range(2))
        await red.say(RED, "What is it?")
        first = await blue.say(BLUE, "What is it?")
        assert first["status"] == "fresh"
        again = await red.say("Really?")
        others = await blue.say("Really?")
        assert prompts(worker)[2] == prompts(worker)[3]
        turns = {
            each["turn_id"]: each for each in (await router.get("/sessions/s"))[1]["turn_list"]
        }
        assert turns[others["turn"]]["base"] == first["turn"]
        assert turns[again["turn"]]["base"] != first["turn"]
        _, made = await router.get("/sessions/s/rows")
        assert len(made["rows"]) == 2
        assert made["stats"]["left_out"] == {}
        _, tree = await router.get("/sessions/s/rows?format=tree")
        roots = [node for node in tree["nodes"] if node["parent"] == -1]
        assert [tree["tokens"][roots[0]["end"] - 1]] == [
            seeing_tokenizer(seeing).encode("<|vision_start|>")[0]
        ]


@pytest.mark.parametrize("history", ["held", "template"])
async def test_a_session_continues_its_own_turns_alone(seeing, history):
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing), history=history) as router,
    ):
        talks = [Talk(router, CHAT, stream=False, session=name) for name in "ab"]
        for parts in ((RED, "What is it?"), ("And now?",)):
            for talk in talks:
                await talk.say(*parts)
        for name in "ab":
            first, second = (await router.get(f"/sessions/{name}"))[1]["turn_list"]
            assert second["base"] == first["turn_id"]


async def test_a_picture_that_the_model_made_up_has_no_place_beside_others(seeing):
    pad = seeing_tokenizer(seeing).picture_id
    assert pad is not None
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
    ):
        worker.script([70, pad, 71])
        talk = Talk(router, CHAT, stream=False)
        await talk.say(RED, "What is it?")
        asked = [*talk.said, user("Where?")]
        path = f"/sessions/s{CHAT}"
        status, answer = await router.post(path, {"messages": asked, "max_tokens": 2})
        assert status == 400
        assert f"{PAD} 2 times for 1 pictures" in answer["error"]["message"]


async def test_a_result_of_a_tool_may_be_a_picture(seeing):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
    ):
        asked = [
            user("Take a look."),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": shown("Here:", RED)},
        ]
        await router.chat(asked, max_tokens=4)
        assert worker.requests[0].body["image_data"] == [RED]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["encodes_again", "tells"])
async def test_a_worker_that_changes_a_prompt_is_found_out(seeing, caplog, stream, fault):
    """The client has its reply, which is not held; pictures go to workers as they are from then."""
    if fault == "tells" and not stream:
        return  # the ids themselves say it
    async with (
        any_worker() as other,
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
    ):
        assert worker._engine.sight is not None
        setattr(worker._engine.sight, fault, fault == "encodes_again")
        talk = Talk(router, CHAT, stream=stream)
        receipt = await talk.say(RED, "What is it?")
        assert receipt["status"] == "fresh"
        assert receipt["turn"] not in router.gateway.store
        assert router.gateway.cache.size.tokens == 0
        figures = (await router.get("/metrics"))[1]["router"]
        assert (figures["pictures_captured"], figures["pictures_changed"]) == (0, 1)
        assert "pictures go to workers uncaptured from now on" in caplog.text
        await router.post("/add_worker", {"url": other.url})
        await router.post("/remove_worker", {"url": worker.url})
        await until(lambda: [each.url for each in router.gateway.pool.list()] == [other.url])
        body = {"model": "m", "messages": [user(shown(RED, "Hi"))]}
        async with router.http.post(CHAT, json=body) as response:
            assert orjson.loads(response.headers["x-slime-receipt"])["status"] == "passed"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user([{"type": "image_url", "image_url": {"url": RED, "detail": "low"}}])]},
        {"messages": [user([{"type": "image_url", "image_url": {"url": RED}, "uuid": "x"}])]},
        {"messages": [user([{"type": "image_url"}])]},
        {"messages": [user([*shown(RED), {"type": "input_audio", "input_audio": {}}])]},
        {"messages": [{"role": "system", "content": shown(RED)}, user("Hi")]},
        {"messages": [user(shown(RED))], "chat_template_kwargs": {"add_vision_id": True}},
    ],
)
async def test_what_cannot_be_captured_goes_to_a_worker_as_it_is(seeing, body):
    async with (
        any_worker() as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
        router.http.post(CHAT, json={"model": "m", **body}) as response,
    ):
        assert orjson.loads(response.headers["x-slime-receipt"])["status"] == "passed"


async def test_pictures_are_passed_on_where_they_are_not_to_be_captured(seeing):
    async with (
        any_worker() as worker,
        serving(worker.url, hf_checkpoint=str(seeing), capture_pictures=False) as router,
    ):
        assert "pictures  passed on to a worker, not captured" in banner(router.gateway)
        body = {"model": "m", "messages": [user(shown(RED, "Hi"))]}
        async with router.http.post(CHAT, json=body) as response:
            assert orjson.loads(response.headers["x-slime-receipt"])["status"] == "passed"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": ["image_url"], "image_url": {"url": RED}}],
        mark_of(digest_of(b"red")),  # as if the picture were there
        shown(RED, mark_of(digest_of(b"red"))),
        shown(RED, f"an {PAD} of mine"),
    ],
)
async def test_no_text_passes_for_a_picture(seeing, content):
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
    ):
        await router.chat([user(shown(RED, "Hi"))], max_tokens=2)
        status, answer = await router.post(CHAT, {"messages": [user(content)], "max_tokens": 2})
        assert status == 400
        assert answer["error"]["param"].startswith("messages")
        assert len(worker.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_another_worker_goes_on_with_the_pictures(seeing, stream):
    async with (
        seeing_worker(seeing) as dying,
        seeing_worker(seeing) as other,
        serving(dying.url, other.url, hf_checkpoint=str(seeing), policy="round_robin") as router,
    ):
        dying.die_next(after_tokens=2)
        receipts = [await Talk(router, CHAT, stream=stream).say(RED, "Hi") for _ in range(2)]
        assert [request.body["image_data"] for request in dying.requests] == [[RED]]
        assert [request.body["image_data"] for request in other.requests] == [[RED]] * 2
        store = router.gateway.store
        held = [store.held_ids(each["turn"]).tolist() for each in receipts]
        longest = max(prompts(other), key=len)
        assert longest in [each[: len(longest)] for each in held]
        assert len(longest) == len(prompts(dying)[0]) + 2 * stream


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_stored_response_is_continued_with_its_pictures(seeing, tmp_path, stream, restarts):
    settings: dict[str, Any] = {"hf_checkpoint": str(seeing), "journal": str(tmp_path / "journal")}
    path = "/sessions/s/v1/responses"

    async def respond(router: Served, given: Any, previous: str | None) -> tuple[str, Any]:
        body = {"model": "m", "input": given, "previous_response_id": previous, "stream": stream}
        async with router.http.post(path, json={**body, "max_output_tokens": 6}) as answer:
            raw = await answer.read()
            assert answer.status == 200, raw
            made = _data(raw)[-1]["response"] if stream else orjson.loads(raw)
            return made["id"], orjson.loads(answer.headers["x-slime-receipt"])

    async with seeing_worker(seeing) as worker:
        async with serving(worker.url, **settings) as router:
            asked = [{"role": "user", "content": of_responses(RED, "What is it?")}]
            first, _ = await respond(router, asked, None)
            listed = (await router.get(f"/v1/responses/{first}/input_items"))[1]["data"]
            assert [part["type"] for part in listed[0]["content"]] == ["input_image", "input_text"]
            if not restarts:
                second, receipt = await respond(router, "And now?", first)
        if restarts:
            async with serving(worker.url, **settings) as router:
                second, receipt = await respond(router, "And now?", first)
        assert second != first
        assert receipt["status"] == "extended"
        assert worker.requests[1].body["image_data"] == [RED]


async def test_what_was_aborted_before_it_began_proves_nothing(seeing):
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
    ):
        worker.hold()
        task = asyncio.create_task(Talk(router, CHAT, stream=True).say(RED, "Hi"))
        await worker.wait_running(1)
        assert (await router.http.post("/abort_request", json={"abort_all": True})).status == 200
        with suppress(AssertionError):  # an error, or a reply without a token
            await task
        worker.release()
        receipt = await Talk(router, CHAT, stream=True).say(RED, "Hi")
        assert receipt["turn"] in router.gateway.store
        assert (await router.get("/metrics"))[1]["router"]["pictures_changed"] == 0


async def test_a_row_with_pictures_is_not_scored_without_them(seeing):
    async with (
        seeing_worker(seeing) as worker,
        serving(
            worker.url, hf_checkpoint=str(seeing), worker_group=(("teacher", worker.url),)
        ) as router,
    ):
        await Talk(router, CHAT, stream=False).say(RED, "Hi")
        status, answer = await router.post("/sessions/s/score", {"worker_group": "teacher"})
        assert (status, "pictures" in answer["error"]["message"]) == (409, True)


async def test_pictures_outlive_the_router(seeing, tmp_path):
    settings: dict[str, Any] = {"hf_checkpoint": str(seeing), "journal": str(tmp_path / "journal")}
    async with seeing_worker(seeing) as worker:
        async with serving(worker.url, **settings) as router:
            talk = Talk(router, CHAT, stream=False)
            await talk.say(RED, "What is it?")
        async with serving(worker.url, **settings) as router:
            talk._router = router
            receipt = await talk.say("And", BLUE)
            assert receipt["status"] == "extended"
            [row] = (await router.get("/sessions/s/rows"))[1]["rows"]
            own = [each["pictures"] for each in row["turns"]]
            assert [digest for each in own for _, digest in each] == names_of(RED, BLUE)


@pytest.mark.parametrize("size", [50_000, 500_000])  # in the loop's thread, and in another one
async def test_long_pictures_are_read_each_time(seeing, size):
    """Bodies of 16 KB and more are compared with earlier ones: those with pictures are not."""
    large = picture("x" * size)
    async with (
        seeing_worker(seeing) as worker,
        serving(worker.url, hf_checkpoint=str(seeing)) as router,
    ):
        talk = Talk(router, CHAT, stream=False)
        receipts = [await talk.say(large, "What is it?"), await talk.say("And now?")]
        assert [each["status"] for each in receipts] == ["fresh", "extended"]
        assert worker.requests[1].body["image_data"] == [large]
