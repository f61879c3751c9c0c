"""What no request may have a worker open or run: media that are not public, code, odd sessions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from slime_router.edge.allowances import Allowances, is_public
from slime_router.errors import BadRequest

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
FINE = [
    "data:image/png;base64," + PIXEL,
    PIXEL,
    "/9j/4AAQSkZJRgABAQAA",
    "/" + PIXEL * 100,
    "https://example.com/cat.png",
    "http://93.184.216.34/cat.png?x=1#y",
    "http://[2606:2800:220:1::1]:8080/x",
]
LOCAL = [
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file:/etc/passwd",
    "/etc/passwd.png",
    "data/img",
    "keys/one/two",
    "photo001",
    "//usr/lib/x1",
    "/9j",
    "/etc/passwd",
    "/var/lib/private/key",
    "etc/passwd",
    "/data/recordings/one/two",
    "etc/x.jpg",
    "../secret.webp",
    "C:\\x.png",
    "http://169.254.169.254/latest/meta-data",
    "http://a:b@169.254.169.254/",
    "http://127.0.0.1:30000/flush_cache",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://0.0.0.0/",
    "http://0/",
    "http://[::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00::1]/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://169.254.169.254./",
    "http://localhost/",
    "http://a.localhost/",
    "http://worker:30000/",
    "http://metadata.google.internal/",
    "http://printer.local/",
    "http://example.com\\@127.0.0.1/",
    "http://exa mple.com/",
    " http://127.0.0.1/",
    "http:///x",
    "ftp://example.com/x",
    "gopher://example.com/",
    "s3://bucket/x",
    "http://[bad",
    "",
]


def bodies(source: str) -> list[dict[str, Any]]:
    """Every place where a request may name a medium."""
    chat = {"type": "image_url", "image_url": {"url": source, "detail": "low"}}
    return [
        {"messages": [{"role": "user", "content": [chat]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": source}]}]},
        {"messages": [{"role": "tool", "content": [{"type": "video_url", "video_url": chat}]}]},
        {"messages": [{"content": [{"type": "tool_result", "content": [
            {"type": "image", "source": {"type": "url", "url": source}}]}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": source}]}]},
        {"input": [{"type": "function_call_output", "output": [
            {"type": "input_image", "image_url": source}]}]},
        {"input": [{"content": [{"type": "input_file", "file_url": source}]}]},
        {"messages": [{"content": [{"type": "document", "source": {"url": source}}]}]},
        {"text": "x", "image_data": source},
        {"text": ["x"], "image_data": [[source]]},
        {"text": "x", "video_data": [{"url": source}]},
        {"input_ids": [1], "audio_data": {"format": "x", "inner": {"file": source}}},
        {"instances": [{"text": "x", "image_data": source}]},
        {"input": [{"text": "x", "image": source}]},
        {"query": [chat], "documents": ["x"]},
        {"query": "q", "documents": [[{"type": "image_url", "image_url": {"url": source}}]]},
        {"images": [source], "questions": []},
        {"model": "m", "messages": [{"content": "x", "images": [source]}]},
    ]  # fmt: skip


SHORT = {  # as long as paths; the last ones lack their padding
    "png": PIXEL,
    "png, cut": PIXEL[:-2],
    "jpeg": "/9j/4AAQSkZJRgABAQAA",
    "gif": "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
    "webp": "UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA",
    "bmp": "Qk06AAAAAAAAADYAAAAoAAAAAQAAAAEAAAABABgAAAAAAAQAAAAA",
    "mp4": "AAAAIGZ0eXBpc29tAAACAGlzb21pc28yYXZjMW1wNDE=",
    "webm": "GkXfo59ChoEBQveBAULygQRC84EIQoKEd2VibUKHgQJChYEC",
    "ogg": "T2dnUwACAAAAAAAAAAA",
    "flac": "ZkxhQwAAACIQ",
    "mp3 with tags": "SUQzBAAAAAAAI1RTU0UAAAAP",
    "spread": "iVBORw0K\nGgoAAAANSUhEUg==",
}


@pytest.mark.parametrize("source", SHORT.values(), ids=SHORT)
def test_what_begins_as_a_file_of_media_is_data_however_short(source):
    for body in bodies(source):
        check(body)


@pytest.mark.parametrize("data", ["//uQxAAAAAAAAAAAAAAA", "//uQxAA", "AAAA", "UklGRg==", ""])
def test_what_no_worker_takes_for_a_path_is_data(data):
    """A short MP3 begins as a path from the root does."""
    audio: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}
    image: dict[str, Any] = {
        "type": "image",
        "source": {"type": "base64", "media_type": "x", "data": data},
    }
    check({"messages": [{"role": "user", "content": [audio, image]}]})
    for part in (audio["input_audio"], image["source"]):
        part["data"] = "file:///etc/passwd"
    for part in (audio, image):
        with pytest.raises(BadRequest):
            check({"messages": [{"role": "user", "content": [part]}]})


def check(body: Any, allowances: Allowances | None = None) -> None:
    (allowances or Allowances()).check(body)


@pytest.mark.parametrize("source", LOCAL)
def test_a_medium_that_only_a_worker_can_reach_is_refused_wherever_it_stands(source):
    for body in bodies(source):
        if not source:
            check(body)  # there is nothing to open
            continue
        with pytest.raises(BadRequest) as caught:
            check(body)
        assert caught.value.status == 400
        assert caught.value.param
        check(body, Allowances(local_media=True))


@pytest.mark.parametrize("source", FINE)
def test_data_and_public_addresses_are_fine(source):
    for body in bodies(source):
        check(body)


def test_names_that_escapes_hide_are_read_all_the_same():
    raw = b'{"\\u0069mage_data": "file:///etc/passwd", "text": "x"}'
    with pytest.raises(BadRequest):
        Allowances().check(orjson.loads(raw))


def test_what_tools_are_called_with_is_nobodys_medium():
    """Agents read and write files all day."""
    call = {"type": "tool_use", "input": {"type": "image", "image_url": "file:///a.png"}}
    function = {"type": "function_call", "arguments": '{"image": "file:///a"}', "input": {}}
    body = {
        "messages": [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": "look at file:///a.png and image_url: http://10.0.0.1/"},
        ],
        "input": [function],
        "tools": [{"type": "image", "path": "/x.png", "parameters": {"image": "file:///x"}}],
        "metadata": {"image": "/x.png"},
    }
    check(body)


@pytest.mark.parametrize(
    "body",
    [
        {"custom_logit_processor": "x"},
        {"custom_logit_processor": [None, "x"]},
        {"parameters": {"custom_logit_processor": "x"}},
        {"instances": [{"custom_logit_processor": {"a": 1}}]},
    ],
)
def test_code_for_workers_is_refused(body):
    with pytest.raises(BadRequest, match="--allow-custom-logit-processors"):
        check(body)
    check(body, Allowances(logit_processors=True))


@pytest.mark.parametrize("value", [None, "", [None, None]])
def test_no_code_is_no_code(value):
    check({"custom_logit_processor": value})


@pytest.mark.parametrize(
    "params",
    [
        {"foo": 1},
        {"id": 5},
        {"offset": "1"},
        {"offset": True},
        {"replace": 1},
        5,
        "x",
        [{"foo": 1}],
    ],
)
def test_session_parameters_are_those_that_workers_take(params):
    for body in ({"session_params": params}, {"parameters": {"session_params": params}}):
        with pytest.raises(BadRequest) as caught:
            check(body)
        assert "session_params" in str(caught.value.param)


def test_good_session_parameters_pass():
    check({"session_params": {"id": "s", "rid": None, "offset": 3, "replace": True}})
    check({"session_params": [{"drop_previous_output": False}, None]})


def test_deep_nesting_is_refused_and_not_a_crash():
    body: Any = "image"
    for _ in range(300):
        body = [body]
    with pytest.raises(BadRequest):
        Allowances().check({"image_data": body})
    deep: Any = {"image": 1}
    for _ in range(120):
        deep = {"x": deep}
    with pytest.raises(BadRequest):
        Allowances().check(deep)


def test_no_name_is_looked_up():
    assert is_public("https://example.com")
    assert not is_public("//example.com")
    assert not is_public("")
