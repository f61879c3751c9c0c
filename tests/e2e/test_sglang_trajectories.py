"""Against a real SGLang server: the rows of a session are what the worker sampled, bit for bit."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from openai import APIError, OpenAI

from slime_router.client import Client, Session
from tests.e2e.comparison import Generation, compare
from tests.sglang.recorder import RecordingProxy

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

PATIENCE_S = 60
EOS = 8191
FORCE_EOS: dict[str, Any] = {
    "logit_bias": {str(EOS): 100},
    "extra_body": {"min_tokens": 4, "ignore_eos": False},
}


@pytest.fixture
def session(router_url: str) -> Iterator[Session]:
    """What it samples by chance ends no turn."""
    client = Client(router_url)
    with client.open_session(group_id="group", sampling={"ignore_eos": True}) as session:
        yield session


@pytest.fixture
def agent(session: Session) -> Iterator[OpenAI]:
    with OpenAI(base_url=session.base_url, api_key="none", timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def witness(recording_proxy: RecordingProxy) -> RecordingProxy:
    recording_proxy.clear()
    return recording_proxy


def fetch(url: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return bytes(reply.read())


def ask(agent: OpenAI, messages: list[Any], *, stream: bool = False, **fields: Any) -> list[Any]:
    """One turn of the agent: the conversation with the (first) reply appended."""
    fields = {"model": "tiny", "messages": messages, "max_tokens": 12, **fields}
    if stream:
        with agent.chat.completions.create(**fields, stream=True) as chunks:
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    else:
        texts = [agent.chat.completions.create(**fields).choices[0].message.content or ""]
    return [*messages, {"role": "assistant", "content": "".join(texts)}]


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def go_on(session: Session, tokens: list[int]) -> bytes:
    """Eight more tokens after these, as a trainer asks for them."""
    body = {"input_ids": tokens, "sampling_params": {"max_new_tokens": 8}}
    return fetch(f"{session.url}/generate", body)


def talk(agent: OpenAI) -> Iterator[Any]:
    """A generation that runs for longer than anybody waits."""
    messages = [user("Talk on and on")]
    return iter(
        agent.chat.completions.create(model="tiny", messages=messages, max_tokens=1900, stream=True)
    )


def wait_until_running(sglang_url: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while running(sglang_url) != count:
        assert time.monotonic() < deadline, f"the worker runs {running(sglang_url)} requests"
        time.sleep(0.05)


def running(sglang_url: str) -> int:
    loads = json.loads(fetch(f"{sglang_url}/v1/loads"))["loads"]
    return sum(int(load["num_running_reqs"]) for load in loads)


def rows_of(session: Session) -> Any:
    return json.loads(fetch(f"{session.url}/rows"))


def test_all_that_the_worker_sampled_is_trained_once_as_it_was_sampled(
    session, agent, witness, router_url, update_weights
):
    system = {"role": "system", "content": "You are terse."}
    first = ask(agent, [system, user("What is a radix tree?")])
    second = ask(agent, [*first, user("Show me one.")], stream=True)
    stopped = ask(agent, [*second, user("And then?")], **FORCE_EOS)
    edited = [*first, user("Show me one."), {"role": "assistant", "content": "No."}]
    ask(agent, [*edited, user("Why not?")])  # a branch
    helper = ask(agent, [user("You are a sub-agent: search.")], stream=True)
    ask(agent, [*helper, user("Go on searching.")])
    choices = agent.chat.completions.create(
        model="tiny", messages=[*stopped, user("Four ways?")], max_tokens=12, n=4
    ).choices
    chosen = {"role": "assistant", "content": choices[2].message.content}
    retried = [*stopped, user("Four ways?"), chosen, user("Again?")]
    ask(agent, retried)
    lost = len(witness.exchanges) - 1
    again = ask(agent, retried)  # the same prompt, and the conversation goes on from here
    update_weights("v2")
    ask(agent, [*again, user("Under new weights?")], stream=True)
    aborted = _abort_and_go_on(session, router_url, witness)

    generations = [Generation.of(exchange) for exchange in witness.exchanges]
    export = rows_of(session)
    untrained = compare(export, generations)
    assert {g for g, _ in untrained} == {lost}
    assert export["stats"]["left_out"] == {
        "retry": {"turns": 1, "tokens": len(generations[lost].output)}
    }
    rows = export["rows"]
    assert len(rows) == 7  # three choices nobody took, the branch, the helper, main, the aborted
    assert len(max((row["turn_ids"] for row in rows), key=len)) == 6
    assert rows[-1]["tokens"][: len(aborted)] == aborted
    assert {row["status"] for row in rows} == {"truncated"}
    assert [v for row in rows for v in row["weight_versions"]].count("v2") == sum(
        each.versions.count("v2") for each in generations
    )
    summary = session.summary()
    assert summary.sampled_tokens == export["stats"]["sampled_tokens"]
    assert summary.recorded_turns == len(generations)
    _all_formats_tell_the_same(session, export)


def _abort_and_go_on(session: Session, router_url: str, witness: RecordingProxy) -> list[int]:
    """As a trainer does with a partial rollout; returns prompt and partial tokens."""
    prompt = list(range(1000, 1040))
    body = {"input_ids": prompt, "rid": "partial", "stream": True}
    body["sampling_params"] = {"max_new_tokens": 1500}
    request = urllib.request.Request(f"{session.url}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        reply.readline()
        fetch(f"{router_url}/abort_request", {"rid": "partial"})
        events = [line for line in reply.read().split(b"\n") if line.startswith(b"data: {")]
    last = json.loads(events[-1].removeprefix(b"data: "))
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    assert last["output_ids"] == Generation.of(witness.exchanges[-1]).output
    whole: list[int] = prompt + last["output_ids"]
    go_on(session, whole)
    return whole


def _all_formats_tell_the_same(session: Session, export: Any) -> None:
    rows, url = export["rows"], f"{session.url}/rows"
    *lines, last = [json.loads(line) for line in fetch(f"{url}?format=jsonl").splitlines()]
    assert lines == rows
    assert last == {"session_id": session.id, "stats": export["stats"]}

    with np.load(io.BytesIO(fetch(f"{url}?format=npz")), allow_pickle=False) as archive:
        columns = dict(archive)
    _same_columns(columns, json.loads(columns.pop("meta").tobytes()), export)
    tensors = fetch(f"{url}?format=safetensors")
    header = json.loads(tensors[8 : 8 + int.from_bytes(tensors[:8], "little")])
    _same_columns(
        safetensors.numpy.load(tensors), json.loads(header["__metadata__"]["meta"]), export
    )

    samples = json.loads(fetch(f"{url}?format=slime"))["samples"]
    for row, sample in zip(rows, samples, strict=True):
        start = len(row["tokens"]) - row["response_length"]
        assert sample["tokens"] == row["tokens"]
        assert sample["response_length"] == row["response_length"]
        assert sample["loss_mask"] == row["loss_mask"][start:]
        assert sample["rollout_log_probs"] == row["logprobs"][start:]
        assert sample["status"] == row["status"]
        assert len(sample["weight_versions"]) == len(row["turn_ids"])
        assert not any(row["loss_mask"][:start])
        assert row["loss_mask"][start]

    client = Client(session.url.partition("/sessions")[0])
    for read in (session.rows(), *client.rows(session_ids=[session.id])):
        assert read.stats.left_out.keys() == export["stats"]["left_out"].keys()
        for row, ours in zip(rows, read.rows, strict=True):
            assert ours.tokens.tolist() == row["tokens"]
            assert ours.loss_mask.tolist() == row["loss_mask"]
            assert ours.logprobs is not None
            assert ours.logprobs.tolist() == row["logprobs"]
            assert list(ours.weight_versions) == row["weight_versions"]
            assert (ours.row_id, ours.group_id) == (row["row_id"], "group")


def _same_columns(columns: Any, meta: Any, export: Any) -> None:
    """Arrays: all rows one after another."""
    rows = export["rows"]
    names = [*meta["versions"], None]
    assert meta["stats"] == export["stats"]
    assert columns["logprobs"].dtype == np.float32  # as the worker computed them
    for index, row in enumerate(rows):
        here = slice(*columns["offsets"][index : index + 2])
        assert columns["tokens"][here].tolist() == row["tokens"]
        assert columns["loss_mask"][here].tolist() == row["loss_mask"]
        assert columns["logprobs"][here].tolist() == row["logprobs"]
        versions = [names[version] for version in columns["weight_version"][here]]
        assert versions == row["weight_versions"]
        assert all(row[name] == value for name, value in meta["rows"][index].items())


def test_an_update_in_the_middle_of_a_turn_splits_its_versions(
    session, agent, witness, router_url, update_weights
):
    """Where the worker says that the new weights began, per token."""
    chunks = talk(agent)
    rid = next(chunks).id
    fetch(f"{router_url}/pause_generation", {"mode": "in_place"})
    try:
        update_weights("v2", flush=False)  # what is in flight goes on from its own cache
    finally:
        fetch(f"{router_url}/continue_generation", {})  # others share the worker
    while b'"v2"' not in witness.exchanges[-1].reply:
        next(chunks)
    fetch(f"{router_url}/abort_request", {"rid": rid})
    with pytest.raises(APIError, match="aborted"):
        list(chunks)

    first = Generation.of(witness.exchanges[-1])
    count, cut = len(first.output), first.versions.index("v2")
    assert 0 < cut < count
    assert rows_of(session)["rows"] == []  # nobody has this reply, until somebody goes on from it
    go_on(session, first.prompt + first.output)
    export = rows_of(session)
    assert compare(export, [first, Generation.of(witness.exchanges[-1])]) == set()
    (row,) = export["rows"]
    sampled = row["weight_versions"][len(first.prompt) :]
    assert sampled == ["default"] * cut + ["v2"] * (count - cut + 8)
    turn, _ = json.loads(fetch(session.url))["turn_list"]
    assert turn["weight_versions"] == [
        {"version": "default", "start": 0, "end": cut},
        {"version": "v2", "start": cut, "end": count},
    ]


@pytest.mark.parametrize("ending", ["delete", "close"])
def test_ending_a_session_frees_the_worker(session, agent, witness, sglang_url, ending):
    """What a closed session sampled until then is counted, and nobody trains on it."""
    chunks = talk(agent)
    next(chunks)
    wait_until_running(sglang_url, 1)
    if ending == "delete":
        session.delete()
    else:
        assert session.close(in_flight="cancel").state == "closed"
    with pytest.raises(APIError, match=f"was {ending}d"):
        list(chunks)
    wait_until_running(sglang_url, 0)
    if ending == "delete":
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            fetch(f"{session.url}/rows")
        caught.value.close()
        return
    (turn,) = json.loads(fetch(session.url))["turn_list"]
    assert (turn["finish_reason"], turn["is_delivered"]) == ("abort", False)
    assert 0 < turn["output_tokens"] <= len(Generation.of(witness.exchanges[-1]).output)
    export = rows_of(session)
    assert export["rows"] == []
    left_out = {"undelivered": {"turns": 1, "tokens": turn["output_tokens"]}}
    assert export["stats"]["left_out"] == left_out


def test_routed_experts_are_those_of_the_worker_and_no_client_sees_them(
    router_url, sglang_url, witness
):
    with (
        Client(router_url).open_session(return_routed_experts=True) as session,
        OpenAI(base_url=session.base_url, api_key="none", timeout=PATIENCE_S) as agent,
    ):
        messages = ask(agent, [user("Which experts?")], stream=True)
        url, fields = f"{session.base_url}/chat/completions", {"model": "tiny", "max_tokens": 12}
        messages.append(user("And now?"))
        seen = [fetch(url, {**fields, "messages": messages})]
        reply = json.loads(seen[0])["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": reply}, user("Once more.")]
        seen.append(fetch(url, {**fields, "messages": messages, "stream": True}))
        tokens = rows_of(session)["rows"][0]["tokens"]
        seen.append(go_on(session, tokens))
        assert not any(b"routed_experts" in each for each in seen)

        generations = [Generation.of(exchange) for exchange in witness.exchanges]
        export = rows_of(session)
        assert compare(export, generations) == set()
        (row,) = session.rows().rows
        (written,) = (each["routed_experts"] for each in export["rows"])
    tokens, experts = row.tokens.tolist(), row.routed_experts
    assert experts is not None
    body = {"input_ids": tokens, "sampling_params": {"max_new_tokens": 1}}
    asked = {**body, "return_routed_experts": True}
    told = json.loads(fetch(f"{sglang_url}/generate", asked))["meta_info"]["routed_experts"]
    used = np.frombuffer(b64decode(told), "<i4").reshape(-1, 4)  # two layers, two experts each
    assert np.array_equal(experts, used[: len(tokens) - 1])
    assert (written["dtype"], written["shape"]) == ("uint8", [len(tokens) - 1, 4])
    assert b64decode(written["data"]) == experts.tobytes()
    starts = [exchange.asked()["routed_experts_start_len"] for exchange in witness.exchanges]
    held = [len(each.prompt) + len(each.output) for each in generations]
    assert starts == [0, *(length - 1 for length in held[:-1])]  # only what the store lacks
