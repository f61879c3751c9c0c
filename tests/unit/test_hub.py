"""A checkpoint that is named by its id, with a hub that answers and one that cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from slime_router.checkpoint.files import CheckpointFiles
from slime_router.errors import SetupError
from tests.ports import free_port

ID = "some/model"
COMMIT = "a" * 40


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("slime_router.checkpoint.hub.sleep", found.append)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub's library, empty, as is its endpoint."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asks(monkeypatch, free_port())
    return tmp_path


def asks(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)


def fill(cache: Path, **files: str) -> Path:
    """Puts these files of the model into the cache, as the hub's library does."""
    model = cache / "models--some--model"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    for name, text in files.items():
        (snapshot / f"{name}.json").write_text(text)
    return snapshot


@contextmanager
def hub(status: int) -> Iterator[ThreadingHTTPServer]:
    """A hub that answers everything with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def test_without_the_hub_an_id_that_is_not_here_is_refused_at_once(cache, waits):
    with pytest.raises(SetupError) as refused:
        CheckpointFiles(ID)
    message = refused.value.message
    assert "\n" not in message
    assert "127.0.0.1" in message  # what was tried
    assert str(cache) in message
    assert sum(waits) <= 5


def test_without_the_hub_what_is_here_is_used_and_nothing_is_asked_for(cache, waits, caplog):
    snapshot = fill(cache, config='{"model_type": "here"}')
    files = CheckpointFiles(ID)
    assert files.name == str(snapshot)
    assert files.json("config.json") == {"model_type": "here"}
    assert files.json("generation_config.json") == {}
    [line] = caplog.messages
    assert "127.0.0.1" in line


def test_a_hub_that_is_back_at_the_second_look_is_used(cache, monkeypatch):
    with hub(404) as server:
        monkeypatch.setattr(
            "slime_router.checkpoint.hub.sleep",
            lambda _: asks(monkeypatch, server.server_port),
        )
        assert CheckpointFiles(ID).name == ID


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_a_hub_that_answers_is_left_to_its_library(status, cache, waits, monkeypatch):
    with hub(status) as server:
        asks(monkeypatch, server.server_port)
        assert CheckpointFiles(ID).name == ID
    assert waits == []


def test_offline_mode_is_left_to_the_library(cache, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert CheckpointFiles(ID).name == ID
    assert waits == []


@pytest.mark.parametrize("name", ["", "a/b/c", "spaces in it", "x" * 200])
def test_what_is_no_id_is_left_to_the_library(name, cache, waits):
    assert CheckpointFiles(name).name == name
    assert waits == []


def test_a_directory_is_never_asked_for(cache, waits, tmp_path):
    CheckpointFiles(str(tmp_path))
    assert waits == []
