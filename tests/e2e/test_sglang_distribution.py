"""Against a real SGLang server: masks and teachers' scores equal what the worker says when asked
directly, and with the masks an unchanged policy has the importance ratio 1.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import routing
from tests.sglang.recorder import RecordingProxy

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

PATIENCE_S = 60
TOP_P, TOP_K = 0.5, 300
NUCLEUS = {"temperature": 1.0, "top_p": TOP_P, "top_k": TOP_K, "ignore_eos": True}
NOISE = 2e-3  # a prompt's log-probabilities are computed in other steps than a reply's
EDGE = 0.02  # of a log-probability: a token so near to the cut may be on either side of it


@pytest.fixture(scope="module")
def router_url(
    recording_proxy: RecordingProxy, checkpoint_dir: Path, sglang_url: str
) -> Iterator[str]:
    """The worker is its own teacher."""
    with routing(recording_proxy, checkpoint_dir, "--worker-group", "teacher", sglang_url) as url:
        yield url


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        raw = reply.read()
    return json.loads(raw) if raw.startswith((b"{", b"[")) else raw


def talk(url: str, messages: list[Any], **fields: Any) -> list[Any]:
    body = {"model": "tiny", "messages": messages, "max_tokens": 16, **fields}
    reply = ask(f"{url}/v1/chat/completions", body)
    return [*messages, {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}]


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def thoughts(sglang_url: str, tokens: list[int], top: int) -> Any:
    """What the worker thinks of each token after the first, asked without the router."""
    body = {
        "input_ids": tokens,
        "sampling_params": {"max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top,
    }
    return ask(f"{sglang_url}/generate", body)["meta_info"]


def nucleus(tops: list[Any]) -> tuple[dict[int, float], set[int]]:
    """The renormalised log-probabilities of the tokens left, and those too near to the cut."""
    logprobs = np.array([logprob for logprob, *_ in tops])
    probs = np.exp(logprobs)
    kept = (np.cumsum(probs) - probs <= TOP_P) & (np.arange(len(tops)) < TOP_K)
    left = {tops[i][1]: float(np.log(probs[i] / probs[kept].sum())) for i in np.flatnonzero(kept)}
    is_near = np.abs(logprobs - logprobs[kept].min()) < EDGE
    return left, {tops[i][1] for i in np.flatnonzero(is_near)}


def check(row: Any, sglang_url: str) -> int:
    """Each trained token's mask and log-probability; returns how many there are."""
    tops = thoughts(sglang_url, row["tokens"], 2 * TOP_K)["input_top_logprobs"]
    offsets, checked, exact = row["mask_offsets"], 0, 0
    for position, token in enumerate(row["tokens"]):
        mask = row["mask_ids"][offsets[position] : offsets[position + 1]]
        if not row["loss_mask"][position]:
            continue
        left, edge = nucleus(tops[position])
        assert token in mask
        assert set(mask) ^ left.keys() <= edge, position
        if set(mask) == left.keys():
            exact += 1
            assert row["sampling_logprobs"][position] == pytest.approx(left[token], abs=NOISE)
        checked += 1
    assert exact > checked / 2
    return checked


def test_masks_are_what_the_worker_sampled_from_over_a_branch_and_an_abort(router_url, sglang_url):
    session = ask(f"{router_url}/sessions", {"session_id": "masks", "sampling_pins": NUCLEUS})
    first = talk(session["url"], [user("What is a radix tree?")])
    talk(session["url"], [*first, user("Show me one.")], temperature=0.2)
    talk(session["url"], [*first, user("Why not?")])
    replies: list[Any] = []
    thread = threading.Thread(
        target=lambda: replies.append(talk(session["url"], [user("On and on")], max_tokens=400))
    )
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not any(load["num_running_reqs"] for load in ask(f"{sglang_url}/v1/loads")["loads"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    ask(f"{router_url}/pause_generation", {"mode": "abort"})
    ask(f"{router_url}/continue_generation", {})
    thread.join(PATIENCE_S)
    assert len(replies) == 1
    body = ask(f"{session['url']}/rows")
    assert len(body["rows"]) == 3
    assert [row["truncated_sampling"] for row in body["rows"]] == [False] * 3
    checked = sum(check(row, sglang_url) for row in body["rows"])
    assert checked == body["stats"]["trained_tokens"] == 16 * 3 + 400
    assert ask(f"{router_url}/metrics")["fleet"]["resumed"] >= 1


def test_an_unchanged_policy_has_the_ratio_one_with_its_masks_and_not_without(
    router_url, sglang_url
):
    session = ask(f"{router_url}/sessions", {"session_id": "ratio", "sampling": NUCLEUS})
    talk(session["url"], [user("Count.")], max_tokens=48)
    [row] = ask(f"{session['url']}/rows")["rows"]
    meta = thoughts(sglang_url, row["tokens"], 2 * TOP_K)  # the last may change places
    within, whole = [], []
    offsets = row["mask_offsets"]
    for position in np.flatnonzero(row["loss_mask"]).tolist():
        mask = set(row["mask_ids"][offsets[position] : offsets[position + 1]])
        tops = [logprob for logprob, id_, *_ in meta["input_top_logprobs"][position] if id_ in mask]
        assert len(tops) == len(mask)
        now = meta["input_token_logprobs"][position][0]
        was = row["sampling_logprobs"][position]
        within.append(np.exp(now - np.log(np.exp(tops).sum()) - was))
        whole.append(np.exp(now - was))
    assert np.abs(np.array(within) - 1).max() < NOISE
    assert np.mean(whole) < 0.9


def test_a_nucleus_without_a_top_k_is_said_to_be_truncated(router_url):
    session = ask(f"{router_url}/sessions", {"session_id": "plain"})
    talk(session["url"], [user("Hi")], temperature=1.0, top_p=0.5)
    talk(session["url"], [user("Hello")], temperature=1.0, top_k=5000)
    body = ask(f"{session['url']}/rows")
    assert [row["truncated_sampling"] for row in body["rows"]] == [True, True]
    assert body["stats"]["truncated_sampling"] == {"no_top_k": 1, "refused": 1}


def test_a_teachers_scores_are_those_that_it_gives_when_it_is_asked_directly(
    router_url, sglang_url
):
    session = ask(f"{router_url}/sessions", {"session_id": "taught"})
    first = talk(session["url"], [user("What is a radix tree?")])
    talk(session["url"], [*first, user("Show me one.")])
    scored = ask(f"{session['url']}/score", {"worker_group": "teacher", "top_logprobs": 4})
    [row] = ask(f"{session['url']}/rows")["rows"]
    assert (scored["rows"], scored["tokens"]) == (1, row["response_length"])
    meta = thoughts(sglang_url, row["tokens"], 4)
    start = len(row["tokens"]) - row["response_length"]
    found = row["teacher_logprobs"]["teacher"]
    assert found[:start] == [None] * start
    wanted = [logprob for logprob, *_ in meta["input_token_logprobs"][start:]]
    assert found[start:] == pytest.approx(wanted, abs=NOISE)
    for position in range(start, len(row["tokens"])):
        tops = {id_: logprob for logprob, id_, *_ in meta["input_top_logprobs"][position]}
        ids = row["teacher_top_ids"]["teacher"][position]
        values = row["teacher_top_logprobs"]["teacher"][position]
        assert values == sorted(values, reverse=True)
        for id_, value in zip(ids, values, strict=True):
            if id_ in tops:  # near ties may be told apart by noise
                assert value == pytest.approx(tops[id_], abs=NOISE)
        assert len(set(ids) & tops.keys()) >= 3


@pytest.mark.parametrize("stream", [False, True])
def test_the_likeliest_tokens_are_those_that_the_worker_gave(
    router_url: str, recording_proxy: RecordingProxy, sglang_url: str, stream: bool
):
    """A whole reply brings them in flat arrays, a stream nested; a direct question agrees."""
    name = f"likeliest-{stream}"
    session = ask(f"{router_url}/sessions", {"session_id": name, "top_logprobs": 4})
    recording_proxy.clear()
    body = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 12, "temperature": 1.0}
    ask(f"{session['base_url']}/chat/completions", {**body, "stream": stream})
    [exchange] = recording_proxy.exchanges
    given = exchange.items()[-1]["meta_info"]
    assert ("output_top_logprobs_shape" in given) is not stream
    [row] = ask(f"{router_url}/sessions/{name}/rows")["rows"]
    offsets, start = row["top_offsets"], len(row["tokens"]) - row["response_length"]
    direct = thoughts(sglang_url, row["tokens"], 4)["input_top_logprobs"]
    for place in range(start, len(row["tokens"])):
        part = slice(offsets[place], offsets[place + 1])
        logprobs, ids = row["top_logprobs"][part], row["top_ids"][part]
        assert len(ids) == 4
        assert logprobs == sorted(logprobs, reverse=True)
        assert np.allclose(logprobs, [each[0] for each in direct[place]], atol=NOISE)
        if stream:
            nested = given["output_top_logprobs"][place - start]
            given_logprobs = np.array([each[0] for each in nested], np.float32)
            assert np.array_equal(given_logprobs, np.array(logprobs, np.float32))
            assert [each[1] for each in nested] == ids
