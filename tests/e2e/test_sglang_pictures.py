"""Against a real SGLang server with a tiny model of Qwen2-VL's kind: pictures, token by token."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_json
from tests.e2e.conftest import routing
from tests.e2e.test_sglang_refusals import post
from tests.e2e.test_sglang_trajectories import fetch
from tests.seeing import TOKENS, build_seeing_checkpoint, seeing_tokenizer
from tests.sglang.recorder import RecordingProxy
from tests.sglang.server import SGLangServer

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]

PATCH = 28  # pixels; a picture has a token for each such square
CHAT = "/v1/chat/completions"


def build_model(directory: Path) -> Path:
    """The smallest Qwen2-VL that still has every part; SGLang makes up the weights."""
    build_seeing_checkpoint(directory)
    path = directory / "config.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    start, pad, end = (seeing_tokenizer(directory).encode(each).tolist()[0] for each in TOKENS)
    text = {
        "model_type": "qwen2_vl_text",
        "vocab_size": known["vocab_size"],
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": known["max_position_embeddings"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],
        },
        "eos_token_id": known["eos_token_id"],
        "num_experts_per_tok": 1,  # it has none, but the server's flags ask for them
    }
    vision = {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "in_channels": 3,
        "in_chans": 3,  # SGLang's name
        "patch_size": PATCH // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": pad,
        "video_token_id": pad + 1,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    write_json(path, config)
    write_json(directory / "preprocessor_config.json", PROCESSOR)
    return directory


PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "patch_size": PATCH // 2,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": PATCH**2, "longest_edge": 16 * PATCH**2},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def picture(red: int, columns: int, rows: int) -> str:
    """A PNG of one colour, as a data URL; a worker makes `columns * rows` tokens of it."""
    width, height = columns * PATCH, rows * PATCH
    line = b"\0" + bytes((red, 0, 0)) * width

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    png = b"\x89PNG\r\n\x1a\n"
    png += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(line * height)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{b64encode(png).decode()}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def proxy(model: Path, pytestconfig: pytest.Config) -> Iterator[RecordingProxy]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    server = SGLangServer(("--load-format", "dummy"))
    server.url, server.checkpoint = "", model  # one that runs already sees nothing
    with ExitStack() as stack:
        environ = stack.enter_context(pytest.MonkeyPatch.context())
        environ.setenv("TORCHDYNAMO_DISABLE", "1")  # it would compile the tower, without an end
        with capture.global_and_fixture_disabled():
            stack.enter_context(server)
        yield stack.enter_context(RecordingProxy(server.url))


@pytest.fixture(scope="module")
def url(proxy: RecordingProxy, model: Path) -> Iterator[str]:
    with routing(proxy, model) as url:
        yield url


def said(*parts: str) -> dict[str, Any]:
    content = [
        {"type": "image_url", "image_url": {"url": each}}
        if each.startswith("data:")
        else {"type": "text", "text": each}
        for each in parts
    ]
    return {"role": "user", "content": content}


def test_each_prompt_is_what_the_worker_computed_with_the_pictures_own_tokens(url, proxy, model):
    pad = seeing_tokenizer(model).picture_id
    red, blue = picture(255, 2, 2), picture(9, 3, 2)
    talk = [said(red, "What is HAVING?")]
    for number, parts in enumerate((("And", blue, "this?"), ("Thanks.",), (blue, red))):
        body = {"messages": talk, "max_tokens": 8, "temperature": 1.0, "seed": number}
        status, _, reply = post(f"{url}/sessions/s{CHAT}", body)
        assert status == 200, reply
        talk += [json.loads(reply)["choices"][0]["message"], said(*parts)]
    sizes = {red: 4, blue: 6}
    exchanges = [each for each in seen(proxy) if {*each[0]["image_data"]} <= sizes.keys()]
    asked, answered = zip(*exchanges, strict=True)
    for sent, item in zip(asked, answered, strict=True):
        widths = iter([sizes[each] for each in sent["image_data"]])
        own = [
            each
            for token in sent["input_ids"]
            for each in [token] * (next(widths) if token == pad else 1)
        ]
        assert item["prompt_token_ids"] == own
    assert [len(sent["image_data"]) for sent in asked] == [1, 2, 2]
    turns = json.loads(fetch(f"{url}/sessions/s"))["turn_list"]
    assert [turn["receipt"]["status"] for turn in turns] == ["fresh", "extended", "extended"]
    for (before, item), after in zip(exchanges, asked[1:], strict=False):
        held = before["input_ids"] + item["output_ids"]
        assert after["input_ids"][: len(held)] == held
    [row] = json.loads(fetch(f"{url}/sessions/s/rows"))["rows"]
    sampled = [token for item in answered for token in item["output_ids"]]
    trained = zip(row["tokens"], row["loss_mask"], strict=True)
    assert [token for token, is_trained in trained if is_trained] == sampled
    places = [place for each in row["turns"] for place, _ in each.get("pictures", ())]
    assert places == [place for place, token in enumerate(row["tokens"]) if token == pad]


def seen(proxy: RecordingProxy) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What the worker was asked to generate, and its answers."""
    return [
        (each.asked(), each.items()[0]) for each in proxy.exchanges if b"image_data" in each.request
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_of_sglangs_own_is_trusted(url, stream):
    body = {"messages": [said(picture(1, 2, 1), "Hi")], "max_tokens": 4, "stream": stream}
    before = json.loads(fetch(f"{url}/metrics"))["router"]
    assert post(f"{url}{CHAT}", body)[0] == 200
    after = json.loads(fetch(f"{url}/metrics"))["router"]
    assert after["pictures_captured"] == before["pictures_captured"] + 1
    assert after["pictures_changed"] == 0


def test_the_worker_makes_the_same_prompt_of_the_messages(url, proxy):
    asked = {"messages": [said(picture(77, 3, 3), "What is", picture(78, 2, 2), "HAVING?")]}
    body = {**asked, "max_tokens": 1, "return_prompt_token_ids": True}
    status, _, reply = post(f"{proxy.url}{CHAT}", body)
    assert status == 200, reply
    of_worker = json.loads(reply)["choices"][0]["prompt_token_ids"]
    status, _, reply = post(f"{url}{CHAT}", {**asked, "max_tokens": 1})
    assert status == 200, reply
    _, item = seen(proxy)[-1]
    assert item["prompt_token_ids"] == of_worker
