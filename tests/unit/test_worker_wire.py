"""What is written to a worker and read from one, without a network."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.errors import BadRequest, RouterError, WorkerFailed, WorkerRefused
from slime_router.types import (
    Finish,
    GenerateCall,
    Grammar,
    Prompt,
    Receipt,
    Sampling,
    VersionSpan,
    token_ids,
)
from slime_router.workers.events import EventSplitter
from slime_router.workers.reader import ChunkReader
from slime_router.workers.wire import generate_body, read_error, wants_logprobs


def call(ids=(1, 2, 3), **fields):
    receipt = Receipt("fresh", 0, len(ids), "t", "")
    return GenerateCall(rid="r", turn_id="t", prompt=Prompt(token_ids(ids), receipt), **fields)


def body(given_call, capture="full"):
    return orjson.loads(generate_body(given_call, capture=capture))


# The body


def test_a_worker_is_told_only_what_the_client_said():
    """Older workers refuse keys that they do not know; but they must never stop at their 128."""
    assert body(call()) == {
        "input_ids": [1, 2, 3],
        "rid": "r",
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
    assert sent["rid"] == "r"
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
    raw = generate_body(call(native=native), capture="off")
    assert raw == (
        b'{"sampling_params":{"n":1,"unknown":{"z":1,"a":2}},"return_routed_experts":true,'
        b'"rid":"r","image_data":null,"input_ids":[1,2,3],"return_logprob":false,"stream":false}'
    )


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


def test_ids_in_strides_are_written_right():
    """A slice with steps is no plain run of memory."""
    receipt = Receipt("fresh", 0, 2, "t", "")
    prompt = Prompt(token_ids(range(8))[::4], receipt)
    assert body(GenerateCall(rid="r", turn_id="t", prompt=prompt))["input_ids"] == [0, 4]


def test_what_is_no_json_is_the_clients_mistake():
    with pytest.raises(BadRequest):
        generate_body(call(native={"x": 2**70}))


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


def test_a_line_that_never_ends_is_cut_off():
    splitter = EventSplitter(max_len=10)
    splitter.feed(b"data: 1234")
    with pytest.raises(WorkerFailed):
        splitter.feed(b"5")


# Chunks


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
    options = {"with_logprobs": False, **options}
    reader = ChunkReader(**options)
    return [chunk for one in items for chunk in reader.read([orjson.dumps(one)])]


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
    reader = ChunkReader(with_logprobs=True)
    groups = [items[i : i + group] for i in range(0, len(items), group)]
    chunks = [chunk for payloads in groups for chunk in reader.read([*payloads, b"[DONE]"])]
    assert [token for chunk in chunks for token in chunk.output_ids] == ids
    assert [lp for chunk in chunks for lp in chunk.logprobs or ()] == [
        -float(token) for token in ids
    ]
    assert chunks[-1].finish == Finish("length")
    assert reader.is_finished


def test_a_backlog_of_cumulative_items_is_parsed_once():
    """Only the newest is needed; those between would cost their parse for nothing."""
    reader = ChunkReader(with_logprobs=False)
    list(reader.read([orjson.dumps(item([1], 1)), orjson.dumps(item([1, 2], 2))]))
    (chunk,) = reader.read([b"not parsed", orjson.dumps(item([1, 2, 3, 4], 4))])
    assert chunk.output_ids == [3, 4]


def test_a_native_client_gets_every_item():
    items = [item([1], 1), item([1, 2], 2), item([1, 2, 3], 3), item([1, 2, 3, 4], 4)]
    reader = ChunkReader(with_logprobs=False, is_native=True)
    chunks = list(reader.read([orjson.dumps(one) for one in items]))
    assert [chunk.item for chunk in chunks] == items
    assert [chunk.output_ids for chunk in chunks] == [[1], [2], [3], [4]]


def test_an_abort_in_the_queue_repeats_a_token_but_samples_none():
    """Also when it arrives together with an item that was not read yet."""
    abort = {"type": "abort", "message": "Abort in waiting queue"}
    reader = ChunkReader(with_logprobs=False)
    list(reader.read([orjson.dumps(item([1], 1)), orjson.dumps(item([1, 2], 2))]))
    backlog = [item([1, 2, 3], 3), item([3], 3, finish=abort)]
    chunks = list(reader.read([orjson.dumps(one) for one in backlog]))
    assert [chunk.output_ids for chunk in chunks] == [[3], []]
    assert chunks[-1].finish == Finish("abort", message="Abort in waiting queue")


def test_tokens_before_an_error_are_not_lost():
    reader = ChunkReader(with_logprobs=False)
    list(reader.read([orjson.dumps(item([1], 1)), orjson.dumps(item([1, 2], 2))]))
    chunks = reader.read(
        [orjson.dumps(item([1, 2, 3], 3)), b'{"error":{"message":"no","code":500}}']
    )
    assert next(chunks).output_ids == [3]
    with pytest.raises(WorkerFailed):
        next(chunks)


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
        list(ChunkReader(with_logprobs=False).read([payload]))


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
    (chunk,) = ChunkReader(with_logprobs=True).read([raw])
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
    first, second = read(items, with_logprobs=True, top_logprobs=2)
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


def test_an_abort_with_a_status_is_a_refusal_to_a_chat_client_only():
    """A full queue inside a stream says 503; `/generate` clients read the item themselves."""
    full = item([], 0, finish={"type": "abort", "message": "queue is full", "status_code": 503})
    with pytest.raises(WorkerRefused, match="queue is full") as caught:
        read([full])
    assert caught.value.status == 503
    (chunk,) = read([full], is_native=True)
    assert chunk.finish == Finish("abort", message="queue is full", status_code=503)


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
        (b'{"message":"oops\\n  File \\"/root/x.py\\", line 1"}', "oops"),
    ],
)
def test_all_shapes_of_a_refusal_are_read(raw, words):
    error = read_error(400, raw)
    assert isinstance(error, WorkerRefused)
    assert (error.message, error.status, error.body) == (words, 400, raw)
    assert error.code == "invalid_value"


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


def test_a_full_queue_can_be_tried_again():
    error = read_error(503, b'{"object":"error","message":"The request queue is full.","code":503}')
    assert isinstance(error, RouterError)
    assert (error.status, error.type) == (503, "service_unavailable_error")


def test_an_error_inside_a_stream_is_the_same_error():
    raw = b'{"error":{"message":"too hot","type":"invalid_request_error","code":400}}'
    with pytest.raises(WorkerRefused, match="too hot") as caught:
        list(ChunkReader(with_logprobs=False).read([raw]))
    assert (caught.value.status, caught.value.body) == (400, raw)
