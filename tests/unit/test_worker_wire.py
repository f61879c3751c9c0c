"""What is written to a worker and read from one, without a network."""

from __future__ import annotations

from functools import partial

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.engine import answer
from slime_router.engine.chunks import ChunkReader
from slime_router.engine.request import (
    LongBody,
    experts_start,
    generate_body,
    has_finite_top_k,
    read_error,
    sampling_params,
    truncates,
    wants_logprobs,
)
from slime_router.engine.sse import EventSplitter
from slime_router.engine.top_logprobs import TopPlan, top_plan
from slime_router.engine.wire.rids import name_at_worker
from slime_router.errors import BadRequest, RouterError, WorkerFailed, WorkerRefused
from slime_router.types import (
    Finish,
    GenerateCall,
    Grammar,
    NativeCall,
    Prompt,
    Receipt,
    Sampling,
    Speculation,
    VersionSpan,
    token_ids,
)
from slime_router.values import replace


def asked(*, native=None, **fields):
    """A call with this body for /generate, or one of the other APIs."""
    if native is not None:
        return NativeCall(rid="r", turn_id="t", body=native, **fields)
    fields.pop("defaults", None)
    return GenerateCall(rid="r", turn_id="t", **fields)


def call(ids=(1, 2, 3), **fields):
    receipt = Receipt("fresh", 0, len(ids), "t", "")
    return asked(prompt=Prompt(token_ids(ids), receipt), **fields)


def made(given_call, capture="full"):
    """What is sent of a call."""
    return generate_body(
        given_call,
        sampling_params(given_call),
        top_plan(given_call, capture).fields,
        rid=name_at_worker(given_call),
        with_logprobs=wants_logprobs(given_call, capture),
    )


def body(given_call, capture="full"):
    raw = made(given_call, capture)
    return orjson.loads(raw if isinstance(raw, bytes) else b"".join(raw.take()))


# The body


def test_a_worker_is_told_only_what_the_client_said():
    """Older workers refuse keys that they do not know; but they must never stop at their 128."""
    assert body(call()) == {
        "input_ids": [1, 2, 3],
        "rid": "#1:r",
        "return_logprob": True,
        "stream": False,
        "sampling_params": {"max_new_tokens": None, "skip_special_tokens": True},
    }


def test_every_sampling_word_has_its_spelling():
    sampling = Sampling(
        max_tokens=5, min_tokens=1, temperature=0.0, top_p=0.9, top_k=4, min_p=0.1,
        presence_penalty=0.2, frequency_penalty=0.3, repetition_penalty=1.1, stop=("a", "b"),
        stop_token_ids=(7,), stop_regex=("x+",), ignore_eos=False, seed=0, logit_bias={"5": 1.0},
        skip_special_tokens=False, keep_stop=True, grammar=Grammar("regex", "a*"),
        custom_params={"k": 1},
    )  # fmt: skip
    assert body(call(sampling=sampling))["sampling_params"] == {
        "max_new_tokens": 5, "min_new_tokens": 1, "temperature": 0.0, "top_p": 0.9, "top_k": 4,
        "min_p": 0.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "repetition_penalty": 1.1,
        "stop": ["a", "b"], "stop_token_ids": [7], "stop_regex": ["x+"], "ignore_eos": False,
        "sampling_seed": 0, "logit_bias": {"5": 1.0}, "skip_special_tokens": False,
        "no_stop_trim": True, "regex": "a*", "custom_params": {"k": 1},
    }  # fmt: skip


def test_worker_fields_stand_at_top_level_and_cannot_replace_ours():
    sent = body(
        call(worker_fields={"lora_path": "x", "rid": "theirs"}, stream=True, top_logprobs=2)
    )
    assert sent["lora_path"] == "x"
    assert sent["rid"] == "#1:r"
    assert sent["stream"] is True
    assert sent["top_logprobs_num"] == 2


def test_a_native_body_goes_on_untouched_and_in_order():
    native = {
        "sampling_params": {"n": 1, "unknown": {"z": 1, "a": 2}},
        "text": "hi",
        "return_routed_experts": True,
        "rid": "mine",
        "image_data": None,
    }
    raw = made(call(native=native), capture="off")
    assert raw == (
        b'{"sampling_params":{"n":1,"unknown":{"z":1,"a":2}},"return_routed_experts":true,'
        b'"rid":"#1:r","image_data":null,"input_ids":[1,2,3],"return_logprob":false,"stream":false}'
    )


def written_call(count, **fields):
    """A call whose ids came as text, spaces and all."""
    ids = token_ids(range(count))
    text = memoryview(b"[ %b ]" % b", ".join(b"%d" % each for each in ids))
    receipt = Receipt("fresh", 0, count, "t", "")
    return asked(
        input_ids=ids,
        ids_text=text,
        prompt=Prompt(ids, receipt),
        native={"input_ids": ids, "sampling_params": {"n": 1}, "text": "of no interest"},
        **fields,
    )


@pytest.mark.parametrize("count", [3, 20_000])
def test_ids_go_on_as_the_text_that_they_came_as(count):
    given = written_call(count)
    sent = made(given)
    assert isinstance(sent, LongBody) == (count > 3)
    raw = bytes(sent) if isinstance(sent, bytes) else b""
    if isinstance(sent, LongBody):
        pieces = sent.take()
        assert pieces[1] is given.ids_text, "nothing long is copied"
        assert sent.take() == [], "it is kept by nobody"
        raw = b"".join(pieces)
    assert len(raw) == len(sent)
    assert bytes(given.ids_text) in raw
    assert (
        orjson.loads(raw)
        == body(written_call(count))
        == {
            "input_ids": list(range(count)),
            "sampling_params": {"n": 1},
            "rid": "#1:r",
            "return_logprob": True,
            "stream": False,
        }
    )


def test_ids_that_another_worker_went_on_from_are_written_anew():
    sent = body(replace(written_call(3), sampled=token_ids([7, 8])))
    assert sent["input_ids"] == [0, 1, 2, 7, 8]


@pytest.mark.parametrize(
    ("capture", "fields", "expected"),
    [
        ("full", {}, True),
        ("tokens", {}, False),
        ("off", {"top_logprobs": 1}, True),
        ("off", {"native": {"return_logprob": True}}, True),
        ("tokens", {"native": {"return_logprob": False}}, False),
        ("full", {"native": {"return_logprob": False}}, True),
        ("off", {"worker_fields": {"return_logprob": True}}, True),
    ],
)
def test_logprobs_are_asked_for_when_trainer_or_client_reads_them(capture, fields, expected):
    given_call = call(**fields)
    assert wants_logprobs(given_call, capture) is expected
    assert body(given_call, capture)["return_logprob"] is expected


# A session's defaults under a native body

DEFAULTS = Sampling(
    max_tokens=9, temperature=0.5, stop=("END",), skip_special_tokens=False, keep_stop=True,
    grammar=Grammar("regex", "a*"),
)  # fmt: skip


def params_over(defaults, native):
    return body(call(native=native, defaults=defaults))["sampling_params"]


def test_the_sessions_defaults_lie_beneath_what_a_native_body_says():
    """A key that the client set wins, a null too; the others are spelled for the worker."""
    said = {"temperature": 0.0, "stop": None, "unknown": [1]}
    assert params_over(DEFAULTS, {"sampling_params": said}) == {
        "max_new_tokens": 9, "temperature": 0.0, "stop": None, "skip_special_tokens": False,
        "no_stop_trim": True, "regex": "a*", "unknown": [1],
    }  # fmt: skip


@pytest.mark.parametrize("native", [{}, {"sampling_params": None}, {"sampling_params": {}}])
def test_a_native_body_that_says_nothing_has_the_sessions_defaults(native):
    """And only those: a length that nobody set is the worker's own."""
    assert params_over(Sampling(top_p=0.9, seed=0), native) == {"top_p": 0.9, "sampling_seed": 0}


@pytest.mark.parametrize("grammar", ["json_schema", "ebnf", "regex", "structural_tag"])
def test_a_constraint_of_the_client_is_the_only_one(grammar):
    """A worker refuses two."""
    params = params_over(DEFAULTS, {"sampling_params": {grammar: "x"}})
    assert {key: params[key] for key in ("json_schema", "regex", "ebnf") if key in params} == (
        {grammar: "x"} if grammar != "structural_tag" else {}
    )
    assert params[grammar] == "x"
    assert params["temperature"] == 0.5


@pytest.mark.parametrize("defaults", [None, Sampling()])
@pytest.mark.parametrize("native", [{"a": 1}, {"sampling_params": None}])
def test_without_defaults_a_native_body_is_untouched(defaults, native):
    sent = body(call(native=native, defaults=defaults))
    assert {key: sent[key] for key in native} == native
    assert ("sampling_params" in sent) == ("sampling_params" in native)


def test_a_clients_own_object_is_not_changed_by_defaults():
    native = {"sampling_params": {"top_k": 1}}
    params_over(DEFAULTS, native)
    assert native == {"sampling_params": {"top_k": 1}}


# What a session allows and wants


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ({"max_new_tokens": 50}, {"max_new_tokens": 10}),
        ({"max_new_tokens": 10}, {"max_new_tokens": 10}),
        ({"max_new_tokens": 0}, {"max_new_tokens": 0}),
        ({"max_new_tokens": None}, {"max_new_tokens": 10}),
        ({}, {"max_new_tokens": 10}),
        (
            {"max_new_tokens": 50, "min_new_tokens": 20},
            {"max_new_tokens": 10, "min_new_tokens": 10},
        ),
        ({"min_new_tokens": 5}, {"max_new_tokens": 10, "min_new_tokens": 5}),
    ],
)
def test_a_session_gets_no_more_tokens_than_it_has_left(wanted, sent):
    """A worker that gets no number takes 128; null, and chat without a limit, know no end."""
    native = {"sampling_params": wanted}
    assert body(call(native=native, token_limit=10))["sampling_params"] == sent
    sampling = Sampling(
        max_tokens=wanted.get("max_new_tokens"), min_tokens=wanted.get("min_new_tokens")
    )
    asked = body(call(sampling=sampling, token_limit=10))["sampling_params"]
    assert asked == {**sent, "skip_special_tokens": True}


def test_a_limit_above_what_is_wanted_changes_nothing():
    native = {"sampling_params": {"top_k": 1}}
    assert body(call(native=native, token_limit=128))["sampling_params"] == {"top_k": 1}
    assert "sampling_params" not in body(call(native={"a": 1}, token_limit=128))


def test_a_default_length_is_limited_too():
    sent = body(call(native={}, defaults=Sampling(max_tokens=50), token_limit=10))
    assert sent["sampling_params"] == {"max_new_tokens": 10}


def continuing(base_len, **fields):
    prompt = Prompt(token_ids(range(9)), Receipt("extended", 0, 9, "t", ""), "b", base_len)
    return asked(prompt=prompt, **fields)


@pytest.mark.parametrize("native", [None, {"return_routed_experts": False}])
@pytest.mark.parametrize(("base_len", "start"), [(0, 0), (1, 0), (6, 5)])
def test_a_trainer_is_given_the_experts_that_its_store_lacks(native, base_len, start):
    """The last held token was never a model's input: its experts come with the next turn's."""
    given_call = continuing(base_len, native=native, wants_routed_experts=True)
    sent = body(given_call)
    assert sent["return_routed_experts"] is True
    assert sent["routed_experts_start_len"] == experts_start(given_call) == start


@pytest.mark.parametrize("door", ["native", "worker_fields"])
@pytest.mark.parametrize(("said", "start"), [({}, 0), ({"routed_experts_start_len": 3}, 3)])
def test_a_client_is_given_the_experts_that_it_asks_for(door, said, start):
    fields = {"return_routed_experts": True, **said}
    given_call = continuing(6, **{door: fields}, wants_routed_experts=True)
    sent = body(given_call)
    assert {name: sent[name] for name in sent if "experts" in name} == fields
    assert experts_start(given_call) == start


def test_experts_that_nobody_wants_are_not_asked_for():
    assert not any("experts" in name for name in body(continuing(6)))


def test_ids_in_strides_are_written_right():
    """A slice with steps is not a plain run of memory."""
    receipt = Receipt("fresh", 0, 2, "t", "")
    prompt = Prompt(token_ids(range(8))[::4], receipt)
    assert body(GenerateCall(rid="r", turn_id="t", prompt=prompt))["input_ids"] == [0, 4]


def test_what_is_no_json_is_the_clients_mistake():
    with pytest.raises(BadRequest):
        made(call(native={"x": 2**70}))


# Events


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.translate(None, b"\r\n").strip())), st.data()
)
def test_payloads_do_not_depend_on_the_networks_cuts(payloads, data):
    ending = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    stream = b": ping" + ending
    for payload in payloads:
        stream += b"data: " + payload + ending + ending
    splitter = EventSplitter()
    found = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:cut])
        stream = stream[cut:]
    assert found == payloads


def test_comments_names_and_missing_spaces_are_read():
    splitter = EventSplitter()
    assert splitter.feed(b":x\nevent: y\nid: 1\ndata:a\r\n\r\ndata: [DONE]\n\nda") == [
        b"a",
        b"[DONE]",
    ]
    assert splitter.feed(b"ta: end") == []
    assert splitter.end() == [b"end"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_lines_end_as_the_format_allows(end, size):
    text = end.join(
        [b"data: one", b"", b": a comment", b"", b"data: two", b"", b"data: [DONE]", b"", b""]
    )
    splitter = EventSplitter()
    read = [
        each for at in range(0, len(text), size) for each in splitter.feed(text[at : at + size])
    ]
    assert read == [b"one", b"two", b"[DONE]"]


def test_a_line_that_never_ends_is_cut_off():
    splitter = EventSplitter(max_len=10)
    splitter.feed(b"data: 1234")
    with pytest.raises(WorkerFailed):
        splitter.feed(b"5")


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("begin", [b":", b"event: ", b"dat", b"datum: ", b"x"])
def test_of_a_line_that_is_no_data_nothing_is_kept(begin, size):
    splitter = EventSplitter(max_len=20)
    line = begin + b"data: 1" * 100
    for at in range(0, len(line), size):
        assert splitter.feed(line[at : at + size]) == []
        assert sum(map(len, splitter._rest)) <= len(b"data:")
    assert splitter.feed(b"data: 2\ndata: 3\n") == [b"3"]


# Chunks

VOCAB_SIZE = 100


def item(ids, total=None, *, finish=None, logprobs=None, **meta):
    meta = {"finish_reason": finish, **meta}
    if total is not None:
        meta["completion_tokens"] = total
    if logprobs is not None:
        meta["output_token_logprobs"] = logprobs
    return {"text": "", "output_ids": ids, "meta_info": meta}


def pairs(ids):
    return [[-float(token), token, None] for token in ids]


LENGTH = {"type": "length", "length": 0}


def read(items, **options):
    options = {"vocab_size": VOCAB_SIZE, "with_logprobs": False, **options}
    reader = ChunkReader(**options)
    return [chunk for one in items for chunk in reader.feed([orjson.dumps(one)])]


@given(st.data())
def test_both_kinds_of_stream_give_the_same_tokens(data):
    """However the output is cut: the concatenation of the chunks is what was sampled."""
    ids = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    cuts = [*sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8))), len(ids)]
    is_cumulative = data.draw(st.booleans())
    group = data.draw(st.integers(1, 4))  # events that lie in the buffer at once
    items, begin = [], 0
    for index, end in enumerate(cuts):
        new = ids[0 if is_cumulative else begin : end]
        finish = LENGTH if index == len(cuts) - 1 else None
        items.append(orjson.dumps(item(new, end, finish=finish, logprobs=pairs(new))))
        begin = end
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=True)
    groups = [items[i : i + group] for i in range(0, len(items), group)]
    chunks = [chunk for payloads in groups for chunk in reader.feed([*payloads, b"[DONE]"])]
    assert [token for chunk in chunks for token in chunk.output_ids] == ids
    assert [lp for chunk in chunks for lp in chunk.logprobs or ()] == [
        -float(token) for token in ids
    ]
    assert chunks[-1].finish == Finish("length")
    assert reader.is_finished


def test_a_backlog_of_cumulative_items_is_parsed_once():
    """Only the newest is needed; those between would cost their parse for nothing."""
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    list(reader.feed([orjson.dumps(item([1], 1)), orjson.dumps(item([1, 2], 2))]))
    (chunk,) = reader.feed([b"not parsed", orjson.dumps(item([1, 2, 3, 4], 4))])
    assert chunk.output_ids == [3, 4]


def test_a_native_client_gets_every_item():
    items = [item([1], 1), item([1, 2], 2), item([1, 2, 3], 3), item([1, 2, 3, 4], 4)]
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False, is_native=True)
    chunks = list(reader.feed([orjson.dumps(one) for one in items]))
    assert [chunk.item for chunk in chunks] == items
    assert [chunk.output_ids for chunk in chunks] == [[1], [2], [3], [4]]


def test_an_abort_in_the_queue_repeats_a_token_but_samples_none():
    """Also when it arrives together with an item that was not read yet."""
    abort = {"type": "abort", "message": "Abort in waiting queue"}
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    list(reader.feed([orjson.dumps(item([1], 1)), orjson.dumps(item([1, 2], 2))]))
    backlog = [item([1, 2, 3], 3), item([3], 3, finish=abort)]
    (chunk,) = reader.feed([orjson.dumps(one) for one in backlog])
    assert chunk.output_ids == [3]
    assert chunk.finish == Finish("abort", message="Abort in waiting queue")


def test_tokens_before_an_error_are_not_lost():
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    list(reader.feed([orjson.dumps(item([1], 1)), orjson.dumps(item([1, 2], 2))]))
    (chunk,) = reader.feed(
        [orjson.dumps(item([1, 2, 3], 3)), b'{"error":{"message":"no","code":500}}']
    )
    assert chunk.output_ids == [3]
    assert isinstance(reader.failure, WorkerFailed)


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([item([1], 1), item([1, 2], 2), item([3], 3)], "turns from cumulative to incremental"),
        ([item([1], 1), item([2], 2), item([1, 2, 3], 3)], "turns from incremental to cumulative"),
        ([item([1, 2], 3)], "the count says otherwise"),
        ([item([1, 2], 2), item([1], 1)], "becomes shorter"),
        ([item([1], 1), item([1, 2], 2), item([1, 9, 3], 3)], "changes what it had said"),
        ([item([1]), item([2])], "nothing says which kind of stream it is"),
        ([item([1], 1, finish={"type": "tired"})], "an unknown reason"),
        ([item([1], 1, finish="length")], "a reason that is no object"),
        ([{"text": "x"}], "no meta_info"),
        ([[1]], "no object"),
        ([{"meta_info": {"finish_reason": None}}], "no ids at all"),
    ],
)
def test_a_stream_that_contradicts_itself_is_a_failed_worker(items, why):
    with pytest.raises(WorkerFailed):
        read(items)


@pytest.mark.parametrize("payload", [b"{", b"null", b"hello"])
def test_an_answer_that_is_no_json_object_is_a_failed_worker(payload):
    with pytest.raises(WorkerFailed):
        list(ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False).feed([payload]))


@pytest.mark.parametrize(
    "logprobs",
    [pairs([1]), pairs([1, 2, 3]), pairs([1, 9]), [[-1.0], [-1.0]], [None, None]],
)
def test_logprobs_that_do_not_belong_to_the_ids_are_a_failed_worker(logprobs):
    with pytest.raises(WorkerFailed):
        read([item([1, 2], 2, logprobs=logprobs)], with_logprobs=True)


def test_a_logprob_that_is_missing_or_not_finite_is_none():
    raw = orjson.dumps(item([1, 2, 3, 4], 4, logprobs=[[-0.25, 1], [None, 2], ["?", 3], ["?", 4]]))
    raw = raw.replace(b'"?",3', b"-Infinity,3").replace(b'"?",4', b"NaN,4")
    (chunk,) = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=True).feed([raw])
    assert chunk.logprobs == [-0.25, None, None, None]


def test_a_worker_that_gives_no_logprobs_is_still_read():
    (chunk,) = read([item([1, 2], 2)], with_logprobs=True)
    assert chunk.logprobs == [None, None]


def test_logprobs_nobody_asked_for_are_none():
    (chunk,) = read([item([1], 1, logprobs=pairs([9]))])
    assert chunk.logprobs is None


def test_older_workers_have_ids_in_their_logprobs_only():
    first, second = item([], 1, logprobs=pairs([5])), item([], 2, logprobs=pairs([5, 6]))
    del first["output_ids"], second["output_ids"]
    chunks = read([first, second], with_logprobs=True)
    assert [chunk.output_ids for chunk in chunks] == [[5], [6]]
    assert [chunk.logprobs for chunk in chunks] == [[-5.0], [-6.0]]


def test_top_logprobs_are_those_of_the_new_tokens():
    top = [[[-0.1, 1, None], [None, 4, None]], None, [[-0.3, 3, "x"]]]
    items = [
        item([1], 1, logprobs=pairs([1]), output_top_logprobs=top[:1]),
        item([1, 2, 3], 3, logprobs=pairs([1, 2, 3]), output_top_logprobs=top),
    ]
    first, second = read(items, with_logprobs=True, tops=TopPlan(2))
    assert first.top_logprobs == [[(-0.1, 1)]]
    assert second.top_logprobs == [[], [(-0.3, 3)]]


def test_finish_versions_and_counts_are_read():
    versions = [{"version": "v1", "start": 0, "end": 1}, {"version": 2, "start": 1, "end": 2}]
    (chunk,) = read(
        [
            item(
                [1, 2], 2, finish={"type": "stop", "matched": "END"}, prompt_tokens=8,
                cached_tokens=7, weight_version=2, weight_versions=versions,
            )
        ]
    )  # fmt: skip
    assert chunk.finish == Finish("stop", matched="END")
    assert (chunk.prompt_tokens, chunk.cached_tokens, chunk.weight_version) == (8, 7, 2)
    assert chunk.weight_versions == (VersionSpan("v1", 0, 1), VersionSpan(2, 1, 2))


def test_what_a_worker_counts_of_its_drafts_is_read():
    counts = {
        "spec_verify_ct": 3,
        "spec_num_proposed_drafts": 9,
        "spec_num_correct_drafts": 4,
        "spec_accept_rate": 0.44,
    }
    (chunk,) = read([item([1], 1, **counts)])
    assert chunk.speculation == Speculation(3, 9, 4)
    (chunk,) = read([item([1], 1)])
    assert chunk.speculation is None
    with pytest.raises(WorkerFailed):
        read([item([1], 1, spec_verify_ct="three")])


# Weight versions


def said(chunks):
    return [(chunk.output_ids, chunk.weight_version) for chunk in chunks]


def whole_reply(version, **meta):
    return [item([1, 2], 2, finish=LENGTH, weight_version=version, **meta)]


def test_a_whole_reply_has_the_version_before_an_update():
    """It names the version at its end: that of an update in between would be wrong."""
    asked = {"is_stream": False, "sampled_under": lambda _: "v1"}
    assert said(read(whole_reply("v2"), **asked)) == [([1, 2], "v1")]


def test_a_whole_reply_is_believed_where_the_router_brought_no_update():
    assert said(read(whole_reply("v2"), is_stream=False)) == [([1, 2], "v2")]


def test_a_worker_without_versions_gets_none():
    asked = {"is_stream": False, "sampled_under": lambda _: "v1"}
    assert said(read([item([1], 1, finish=LENGTH)], **asked)) == [([1], None)]


def test_exact_spans_are_kept_as_they_are():
    spans = [{"version": "v1", "start": 0, "end": 1}, {"version": "v2", "start": 1, "end": 2}]
    asked = {"is_stream": False, "sampled_under": lambda _: "v0"}
    (chunk,) = read(whole_reply("v2", weight_versions=spans), **asked)
    assert chunk.weight_versions == (VersionSpan("v1", 0, 1), VersionSpan("v2", 1, 2))
    assert chunk.weight_version == "v2"


def test_streamed_tokens_have_the_version_that_came_with_them():
    """Whatever was known before: a stream says it itself."""
    items = [item([1], 1, weight_version="v1"), item([1, 2], 2, weight_version="v2")]
    assert said(read(items, sampled_under=lambda _: "v0")) == [([1], "v1"), ([2], "v2")]


VERSIONS = ("v1", "v1", "v1", "v2", "v2", None, None, 3)


@pytest.mark.parametrize("is_cumulative", [True, False])
@pytest.mark.parametrize("group", range(1, 9))
def test_tokens_of_two_versions_never_share_a_chunk(is_cumulative, group):
    """Also where many items came in one piece, of which only the newest would be parsed."""
    items = [
        orjson.dumps(
            item(
                list(range(0 if is_cumulative else n, n + 1)),
                n + 1,
                finish=LENGTH if n == len(VERSIONS) - 1 else None,
                logprobs=pairs(range(0 if is_cumulative else n, n + 1)),
                weight_version=version,
            )
        )
        for n, version in enumerate(VERSIONS)
    ]
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=True)
    chunks = [
        chunk
        for start in range(0, len(items), group)
        for chunk in reader.feed(items[start : start + group])
    ]
    seen = [(token, chunk.weight_version) for chunk in chunks for token in chunk.output_ids]
    assert seen == list(enumerate(VERSIONS))
    assert [lp for chunk in chunks for lp in chunk.logprobs or ()] == [-float(n) for n in range(8)]
    assert reader.weight_version == 3


def test_exact_spans_need_no_chunks_apart():
    """Nor a parse of the items between."""
    spans = [{"version": "v1", "start": 0, "end": 2}, {"version": "v2", "start": 2, "end": 3}]
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    first, second = item([1], 1, weight_version="v1"), item([1, 2], 2, weight_version="v1")
    assert len(list(reader.feed([orjson.dumps(first), orjson.dumps(second)]))) == 1
    last = item([1, 2, 3, 4], 4, finish=LENGTH, weight_version="v2", weight_versions=spans)
    (chunk,) = reader.feed([b"not parsed", orjson.dumps(last)])
    assert chunk.output_ids == [3, 4]
    assert len(chunk.weight_versions) == 2
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    (chunk,) = reader.feed([orjson.dumps(first), orjson.dumps(last)])
    assert chunk.output_ids == [1, 2, 3, 4]


# Routed experts


def test_routed_experts_are_those_of_the_item_that_has_them():
    """A string as it came; also where that item is read together with others."""
    first, last = item([1], 1), item([1, 2], 2, finish=LENGTH, routed_experts="QUJD")
    assert [chunk.routed_experts for chunk in read([first, last])] == [None, "QUJD"]
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    (chunk,) = reader.feed([orjson.dumps(first), orjson.dumps(last)])
    assert chunk.routed_experts == "QUJD"
    (chunk,) = read([last], is_native=True, experts_start=4)
    assert (chunk.routed_experts, chunk.routed_experts_start) == ("QUJD", 4)
    assert chunk.item == last


def test_an_abort_with_a_status_is_a_refusal_to_a_chat_client_only():
    """A full queue inside a stream says 503; `/generate` clients read the item themselves."""
    full = item([], 0, finish={"type": "abort", "message": "queue is full", "status_code": 503})
    with pytest.raises(WorkerRefused, match="queue is full") as caught:
        read([full])
    assert caught.value.status == 503
    (chunk,) = read([full], is_native=True)
    assert chunk.finish == Finish("abort", message="queue is full", status_code=503)


def test_the_token_that_comes_with_a_refused_grammar_was_never_sampled():
    """SGLang sends one id, counts it, and has no logprob for it."""
    refusal = {"type": "abort", "message": "Failed to compile regex", "status_code": 400}
    refused = item([9], 1, finish=refusal, logprobs=[])
    with pytest.raises(WorkerRefused, match="Failed to compile regex") as caught:
        read([refused], with_logprobs=True)
    assert caught.value.status == 400
    (chunk,) = read([refused], is_native=True, with_logprobs=True)
    assert (chunk.output_ids, chunk.logprobs, chunk.item) == ([], [], refused)


# Errors


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"error":{"message":"bad value"}}', "bad value"),
        (b'{"error":"unknown field `foo`"}', "unknown field `foo`"),
        (b'{"object":"error","message":"bad json","type":"Bad Request","code":400}', "bad json"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"plain words", "plain words"),
        (b"", "The worker refused the request with status 400."),
        (b"[1]", "The worker refused the request with status 400."),
        (b'{"error":null}', "The worker refused the request with status 400."),
        (b'{"error":{"message":null}}', "The worker refused the request with status 400."),
        (b'{"message":"oops\\n  File \\"/root/x.py\\", line 1"}', "oops"),
    ],
)
def test_all_shapes_of_a_refusal_are_read(raw, words):
    error = read_error(400, raw)
    assert isinstance(error, WorkerRefused)
    assert (error.message, error.status, error.body) == (words, 400, raw)
    assert error.code == "invalid_value"


def test_a_long_refusal_is_cut_for_clients_and_whole_for_trainers():
    raw = orjson.dumps({"error": {"message": "x" * 100_000}})
    error = read_error(400, raw)
    assert isinstance(error, WorkerRefused)
    assert len(error.message) < 5000
    assert error.message.startswith("xxx")
    assert error.body == raw


@pytest.mark.parametrize(
    "words",
    [
        "The input (9 tokens) is longer than the model's context length (2048 tokens).",
        "Requested token count exceeds the model's maximum context length of 2048 tokens. You ...",
        "Input length (9 tokens) exceeds the maximum allowed length (2048 tokens). Use ...",
    ],
)
def test_a_context_that_is_too_long_has_openais_words_and_the_workers_body(words):
    raw = orjson.dumps({"error": {"message": words}})
    error = read_error(400, raw)
    assert isinstance(error, WorkerRefused)
    assert error.code == "context_length_exceeded"
    assert error.message == f"This model's maximum context length is 2048 tokens. {words}"
    assert (error.status, error.body) == (400, raw)


@pytest.mark.parametrize("status", [500, 502, 504, 302, 204])
def test_a_worker_that_breaks_is_a_failed_worker(status):
    error = read_error(status, b"Internal Server Error at /secret")
    assert type(error) is WorkerFailed
    assert "secret" not in error.message


@pytest.mark.parametrize(
    ("status", "is_misfit"), [(407, True), (408, False), (421, False), (425, False)]
)
def test_what_a_proxy_on_the_way_says_is_no_answer_to_the_request(status, is_misfit):
    error = read_error(status, b"Proxy Error at /secret")
    assert type(error) is WorkerFailed
    assert error.is_misfit == is_misfit
    assert "secret" not in error.message


@pytest.mark.parametrize("status", [400, 402, 413, 422, 429, 451])
def test_what_is_about_the_request_is_the_clients(status):
    error = read_error(status, b'{"message": "no"}')
    assert isinstance(error, WorkerRefused)
    assert (error.status, error.message) == (status, "no")


def test_a_full_queue_can_be_tried_again():
    error = read_error(503, b'{"object":"error","message":"The request queue is full.","code":503}')
    assert isinstance(error, RouterError)
    assert (error.status, error.type) == (503, "service_unavailable_error")


def test_an_error_that_is_null_is_none():
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False)
    meta = {"completion_tokens": 1, "finish_reason": {"type": "length"}}
    [chunk] = reader.feed([orjson.dumps({"error": None, "output_ids": [5], "meta_info": meta})])
    assert list(chunk.output_ids) == [5]
    assert reader.is_finished


def test_a_flood_of_versions_is_a_failed_worker():
    spans = [{"version": "1", "start": 0, "end": 0}] * 100_000
    with pytest.raises(WorkerFailed, match="do not fit"):
        answer.version_spans(spans, 5)
    assert answer.version_spans(spans[:9], 5)


def test_an_error_inside_a_stream_is_the_same_error():
    raw = b'{"error":{"message":"too hot","type":"invalid_request_error","code":400}}'
    with pytest.raises(WorkerRefused, match="too hot") as caught:
        list(ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False).feed([raw]))
    assert (caught.value.status, caught.value.body) == (400, raw)


@pytest.mark.parametrize("error", ["boom", {"message": "boom"}, {"message": "boom", "code": "x"}])
def test_an_error_of_status_200_that_is_no_stream_is_a_failed_worker(error):
    """SGLang has a status for it: what says so is a proxy, and another worker may answer."""
    raw = orjson.dumps({"error": error})
    with pytest.raises(WorkerFailed, match="status 200"):
        ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=False, is_stream=False).feed([raw])


@pytest.mark.parametrize(
    "error", ["out of memory", {"message": "m", "code": "x"}, {"code": 200}, 1]
)
def test_in_a_stream_only_what_sglang_writes_is_a_refusal(error):
    """Older ones name no status, but a message; anything else is a failed worker."""
    reader = partial(ChunkReader, vocab_size=VOCAB_SIZE, with_logprobs=False, is_stream=True)
    with pytest.raises(WorkerRefused) as caught:
        reader().feed([b'{"error":{"message":"boom"}}'])
    assert caught.value.status == 400
    with pytest.raises(WorkerFailed, match="status 200"):
        reader().feed([orjson.dumps({"error": error})])


@pytest.mark.parametrize(
    ("params", "is_finite", "is_cut"),
    [
        ({}, False, False),
        ({"temperature": 0}, True, True),  # greedy: one token
        ({"temperature": 1e-7}, True, True),
        ({"temperature": 1e-6}, False, False),
        ({"temperature": 1.0, "top_k": -1}, False, False),
        ({"top_k": 1}, True, True),
        ({"top_k": 2**30 - 1}, True, True),
        ({"top_k": 2**30}, False, False),  # every token
        ({"top_k": 0}, False, False),
        ({"top_p": 1.0, "min_p": 0.0}, False, False),
        ({"top_p": 0.99}, False, True),
        ({"min_p": 0.01}, False, True),
    ],
)
def test_what_truncates_is_known_and_where_so_many_are_left_at_most(params, is_finite, is_cut):
    assert has_finite_top_k(params) is is_finite
    assert truncates(params) is is_cut
