"""An adapter's name alone as the model, as vLLM has it: SGLang would sample the base model."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from aiohttp import web

from slime_router.pool.adapters import MAX_NAMES, Adapters
from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, Words, serving, until, user
from tests.integration.siblings import family
from tests.integration.test_adapters import DOORS as TEXT_DOORS
from tests.integration.test_adapters import HELLO
from tests.stack import tiny_tokenizer

LOAD = "/load_lora_adapter"
DOORS = {**TEXT_DOORS, "/inference/v1/generate": {"token_ids": HELLO, "sampling_params": {}}}


class AdapterWorker(FakeWorker):
    """Loads adapters and lists them, as SGLang does."""

    def __init__(self, *adapters: str) -> None:
        tokenizer = tiny_tokenizer()
        super().__init__(
            vocab_size=tokenizer.vocab_size,
            eos_ids=sorted(tokenizer.eos_ids),
            tokenizer=Words(tokenizer),
        )
        self.adapters = dict.fromkeys(adapters)
        self.asked = 0

    def add_doors(self, app: web.Application) -> None:
        app.router.add_post("/{act:load|unload}_lora_adapter", self._act)
        app.router.add_get("/v1/models", self._models)

    async def _act(self, request: web.Request) -> web.Response:
        name = orjson.loads(await request.read())["lora_name"]
        is_load = request.match_info["act"] == "load"
        if is_load == (name in self.adapters):
            told = {"success": False, "error_message": f"{name} is loaded already, or not at all"}
            return web.json_response(told, status=400)
        if is_load:
            self.adapters[name] = None
        else:
            del self.adapters[name]
        return web.json_response({"success": True})

    async def _models(self, _: web.Request) -> web.Response:
        self.asked += 1
        adapters = [{"id": name, "parent": "tiny"} for name in self.adapters]
        return web.json_response({"data": [{"id": "listed", "parent": None}, *adapters]})


class CredulousWorker(FakeWorker):
    """Loads whatever it is given."""

    def add_doors(self, app: web.Application) -> None:
        app.router.add_post(LOAD, self._load)

    async def _load(self, _: web.Request) -> web.Response:
        return web.json_response({"success": True})


def sampled_by(worker: FakeWorker) -> list[str | None]:
    return [request.body.get("lora_path") for request in worker.requests]


async def load(router: Any, name: str) -> int:
    status: int = (await router.post(LOAD, {"lora_name": name, "lora_path": f"/{name}"}))[0]
    return status


@pytest.mark.parametrize("path", DOORS)
async def test_a_name_that_was_loaded_is_the_adapter_at_every_door(path):
    async with AdapterWorker() as worker, serving(worker.url) as router:
        other = {"model": "sql", "lora_path": "other"}
        names: list[dict[str, str]] = [{"model": "sql"}, other, {"model": "unknown"}, {}]
        await router.post(path, {**DOORS[path], "model": "sql"})
        assert await load(router, "sql") == 200
        for said in names:
            assert (await router.post(path, {**DOORS[path], **said}))[0] == 200
    assert sampled_by(worker) == [None, "sql", "sql", None, None]


@pytest.mark.parametrize("health_checks", [True, False])
async def test_a_worker_lists_the_adapters_that_it_has(health_checks):
    async with (
        AdapterWorker("sql") as worker,
        serving(worker.url, enable_health_check=health_checks) as router,
    ):
        await until(lambda: router.gateway.pool.can_serve())
        await until(lambda: "sql" in router.gateway.pool.adapters)
        for model in ("sql", "listed"):
            await router.chat([user("Hi")], model=model)
    assert sampled_by(worker) == ["sql", None]


async def test_one_that_was_loaded_behind_the_router_is_known_with_the_next_probe():
    async with (
        AdapterWorker() as worker,
        serving(worker.url, health_check_interval_s=0.01) as router,
    ):
        await until(lambda: worker.asked > 0)
        worker.adapters["sql"] = None
        await until(lambda: "sql" in router.gateway.pool.adapters)


async def test_the_name_and_base_adapter_continue_each_other_but_not_the_base_model():
    turns = [user("Hi"), {"role": "assistant", "content": "Hello"}, user("More")]
    async with AdapterWorker() as worker, serving(worker.url) as router:
        await load(router, "sql")
        worker.script([*HELLO, max(tiny_tokenizer().eos_ids)])
        await router.chat(turns[:1], model="sql")
        _, by_pair = await router.chat(turns, model="tiny:sql")
        _, by_base = await router.chat(turns, model="tiny")
    assert (by_pair["status"], by_base["status"]) == ("extended", "fresh")


async def test_a_name_outlives_its_adapter_so_the_worker_can_refuse_it():
    async with AdapterWorker() as worker, serving(worker.url) as router:
        await load(router, "sql")
        assert (await router.post("/unload_lora_adapter", {"lora_name": "sql"}))[0] == 200
        await router.chat([user("Hi")], model="sql")
    assert sampled_by(worker) == ["sql"]


async def test_a_name_that_no_worker_took_is_no_adapter():
    async with AdapterWorker() as worker, serving(worker.url) as router:
        await until(lambda: worker.asked > 0)
        worker.adapters["sql"] = None
        assert await load(router, "sql") == 400
        await router.chat([user("Hi")], model="sql")
    assert sampled_by(worker) == [None]


async def test_the_model_s_own_name_is_never_an_adapter():
    async with AdapterWorker() as worker, serving(worker.url, served_model_name="tiny") as router:
        await load(router, "tiny")
        await router.chat([user("Hi")], model="tiny")
    assert sampled_by(worker) == [None]


async def test_a_strict_router_serves_adapters_by_their_names():
    settings: dict[str, Any] = {"strict_model": True, "served_model_name": "tiny"}
    async with AdapterWorker() as worker, serving(worker.url, **settings) as router:
        await load(router, "sql")
        body = {"messages": [user("Hi")]}
        said = [(await router.post(CHAT, {**body, "model": name}))[0] for name in ("sql", "other")]
    assert said == [200, 404]


async def test_models_lists_the_adapters_that_a_worker_has():
    settings: dict[str, Any] = {"served_model_name": "tiny", "health_check_interval_s": 0.01}
    async with AdapterWorker("first") as worker, serving(worker.url, **settings) as router:
        await until(lambda: "first" in router.gateway.pool.adapters)
        await load(router, "sql")
        _, listed = await router.get("/v1/models")
        model, *adapters = listed["data"]
        assert [(card["id"], card["parent"]) for card in (model, *adapters)] == [
            ("tiny", None), ("first", "tiny"), ("sql", "tiny")
        ]  # fmt: skip
        assert (listed["first_id"], listed["last_id"]) == ("tiny", "sql")
        assert adapters[1].keys() == model.keys()
        assert await router.get("/v1/models/sql") == (200, adapters[1])
        await router.post("/unload_lora_adapter", {"lora_name": "sql"})
        known = router.gateway.pool.adapters
        await until(lambda: known.at(router.gateway.pool.list()) == ["first"])
        assert (await router.get("/v1/models/sql"))[0] == 404
        assert "sql" in known
        await router.post(f"/remove_worker?url={worker.url}")
        _, listed = await router.get("/v1/models")
        assert [card["id"] for card in listed["data"]] == ["tiny"]


async def test_rows_and_turns_say_which_adapter_sampled():
    eos = max(tiny_tokenizer().eos_ids)
    async with AdapterWorker("sql") as worker, serving(worker.url) as router:
        await until(lambda: "sql" in router.gateway.pool.adapters)
        for session, fields in (
            ("a", {"model": "sql"}),
            ("b", {"model": "tiny:sql"}),
            ("c", {"lora_path": "sql"}),
            ("d", {"model": "tiny"}),
        ):
            worker.script([*HELLO, eos])
            _, receipt = await router.chat([user("Hi")], session_id=session, **fields)
            adapter = None if session == "d" else "sql"
            assert (await router.get(f"/turns/{receipt['turn']}"))[1]["adapter"] == adapter
            _, told = await router.get(f"/sessions/{session}/rows")
            assert [turn["adapter"] for row in told["rows"] for turn in row["turns"]] == [adapter]
        await router.post("/sessions", {"session_id": "e", "lora_path": "own"})
        worker.script([*HELLO, eos])
        await router.chat([user("Hi")], session_id="e", model="sql")
        _, told = await router.get("/sessions/e")
        assert [turn["adapter"] for turn in told["turn_list"]] == ["own"]


async def test_every_process_knows_a_name_before_the_answer():
    async with AdapterWorker() as worker, family(worker.url) as (one, other):
        assert await load(one, "sql") == 200
        assert "sql" in other.gateway.pool.adapters


async def test_a_process_that_missed_the_load_takes_over_what_another_knows():
    async with AdapterWorker() as worker, family(worker.url) as (one, other):
        one.gateway.pool.adapters.add("sql")
        assert "sql" not in other.gateway.pool.adapters
        await other.gateway.together.registry.take_over()
        assert "sql" in other.gateway.pool.adapters


@pytest.mark.parametrize("body", [{}, {"lora_name": 7}, {"lora_name": "base:sql"}, []])
async def test_what_is_no_name_is_left_to_the_workers(body):
    async with CredulousWorker() as worker, serving(worker.url) as router:
        assert (await router.post(LOAD, body))[0] == 200
        assert router.gateway.pool.adapters.names == ()


def test_the_latest_names_are_kept_and_the_log_says_which_one_is_not(caplog):
    adapters = Adapters()
    for k in range(MAX_NAMES):
        adapters.add(str(k))
    adapters.add("0")
    adapters.add("new")
    assert len(adapters.names) == MAX_NAMES
    assert "0" in adapters
    assert "1" not in adapters
    assert [record.args[0] for record in caplog.records] == ["1"]
    assert adapters.forgotten == 1


@pytest.mark.parametrize("name", ["sql", "tiny:sql"])
async def test_those_who_only_read_find_what_the_adapter_sampled_by_its_name(name):
    talk = [user("Hi"), {"role": "assistant", "content": "Hello"}]
    async with AdapterWorker() as worker, serving(worker.url) as router:
        await load(router, "sql")
        worker.script([*HELLO, max(tiny_tokenizer().eos_ids)])
        await router.chat(talk[:1], model=name)
        sampled = {}
        for model in (name, "tiny", "other"):
            door = "/retrieve_from_messages_template"
            _, by_messages = await router.post(door, {"messages": talk, "model": model})
            body = {"text": by_messages["response"], "model": model}
            _, by_text = await router.post("/retrieve_from_text", body)
            sampled[model] = sum(by_messages["loss_mask"]), sum(by_text["loss_mask"])
    held = len(HELLO) + 1
    assert sampled == {name: (held, held), "tiny": (0, 0), "other": (0, 0)}


async def test_a_turn_of_an_adapter_is_diagnosed_by_the_adapters_name():
    async with AdapterWorker() as worker, serving(worker.url) as router:
        await load(router, "sql")
        talk = [user("Hi"), {"role": "assistant", "content": "Hello"}]
        for model in ("sql", "tiny"):
            worker.script([*HELLO, max(tiny_tokenizer().eos_ids)])
            await router.chat(talk[:1], model=model, session_id="s")
        found = {}
        for model in ("sql", "tiny"):
            body = {"messages": talk, "session_id": "s", "model": model}
            found[model] = (await router.post("/diagnose", body))[1]["turn_id"]
    assert found["sql"] != found["tiny"]
