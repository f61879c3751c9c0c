"""The drift doctor: over HTTP, on recorded sessions, and from the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slime_router.api.diagnose import DiagnoseDoor
from slime_router.api.model_names import ModelNames
from slime_router.cli.diagnose import diagnose_main
from slime_router.doctor import doctor as diagnosis
from slime_router.doctor.doctor import Doctor
from slime_router.journal.fetching import AllIsHere
from slime_router.types import Finish
from tests.integration.gateway import FOUR_KEYS, assistant, checkpoint, served, user
from tests.integration.scripted import Client
from tests.integration.scripted import served as served_door
from tests.stack import Sample, tiny_tokenizer
from tests.talk import Talk, real_tokenizer, stop

IM_END = 151645
QWEN_P = [151644, 872, 198, 3838, 374, 220, 16, 10, 17, 30, 151645, 198, 151644, 77091, 198]
QWEN_G = [151667, 198, 16, 10, 17, 28, 18, 198, 151668, 271, 18, 151645]
HELLO = [user("Hello there")]
SUM = "What is 1+2?"


@dataclass
class Surgery:
    """The doctor at its door, and the router whose sessions it looks at."""

    talk: Talk
    http: Client

    async def ask(self, body: Any, status: int = 200) -> dict[str, Any]:
        response = await self.http.post("/diagnose", json=body)
        reply: dict[str, Any] = await response.json()
        assert response.status == status, reply
        return reply


@asynccontextmanager
async def surgery(talk: Talk) -> AsyncIterator[Surgery]:
    doctor = Doctor(talk.maker, talk.store, talk.tokenizer, talk.template, AllIsHere())
    async with served_door(
        "/diagnose", DiagnoseDoor(doctor, ModelNames("tiny", None, ())).handle
    ) as http:
        yield Surgery(talk, http)


@pytest.fixture
async def tiny() -> AsyncIterator[Surgery]:
    async with surgery(Talk(tiny_tokenizer())) as open_now:
        yield open_now


@pytest.fixture
async def qwen() -> AsyncIterator[Surgery]:
    async with surgery(Talk(real_tokenizer("qwen3"))) as open_now:
        yield open_now


def encode(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer().encode(text).tolist()
    return ids


def words(talk: Talk, text: str) -> Sample:
    """A reply that ends with the stop token."""
    ids = talk.tokenizer.encode(f"{text}<|im_end|>").tolist()
    return Sample(ids, Finish("stop", ids[-1]))


class TestGivenTokens:
    async def test_the_same(self, tiny: Surgery) -> None:
        """The tokens of the rendered messages are those that the plain way makes."""
        ids = encode("<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n")
        reply = await tiny.ask({"tokens": ids, "messages": HELLO})
        assert reply == {
            "is_same": True,
            "common_tokens": len(ids),
            "held_tokens": len(ids),
            "rendered_tokens": len(ids),
            "class": "same",
            "explanation": "The held tokens are exactly what the messages render to.",
            "first_difference": None,
            "differences": [],
            "has_more_differences": False,
        }

    async def test_another_text(self, tiny: Surgery) -> None:
        """Every key of the reply, where both sides go on."""
        held, rendered = encode("Hello world"), encode("Hello there world")
        reply = await tiny.ask({"tokens": held, "text": "Hello there world"})
        at = reply["common_tokens"]
        assert not reply["is_same"]
        assert held[:at] == rendered[:at]
        assert held[at] != rendered[at]
        first = reply["first_difference"]
        assert first.keys() == {"index", "held", "rendered", "text_before"}
        assert first["index"] == at
        assert first["text_before"] == "Hello"
        assert first["held"].keys() == {"id", "token", "text_after", "end"}
        assert (first["held"]["id"], first["rendered"]["id"]) == (held[at], rendered[at])
        assert first["rendered"]["text_after"] == " there world"
        assert reply["class"] == "client_rewrite"

    async def test_a_side_that_has_ended_is_null(self, tiny: Surgery) -> None:
        ids = encode("Hello world")
        reply = await tiny.ask({"tokens": ids[:1], "text": "Hello world"})
        assert (reply["class"], reply["first_difference"]["held"]) == ("truncated", None)
        assert reply["first_difference"]["rendered"]["end"] == len(ids)

    async def test_the_templates_arguments_count(self, tiny: Surgery) -> None:
        """Tools and the reply's header are rendered as a worker would."""
        ids = encode("<|im_start|>user\nHello there<|im_end|>\n")
        body = {"tokens": ids, "messages": HELLO, "add_generation_prompt": False}
        assert (await tiny.ask(body))["is_same"]
        tool = {"type": "function", "function": {"name": "search"}}
        assert not (await tiny.ask({**body, "tools": [tool]}))["is_same"]

    async def test_further_differences_are_listed(self, tiny: Surgery) -> None:
        told = [user("Hello"), assistant("sunny"), user("fox"), assistant("dog")]
        other = [user("Hello"), assistant("rainy"), user("fox"), assistant("cat")]
        ids = encode(tiny.talk.rendered(told, tiny.talk.ask(told, add_generation_prompt=False)))
        reply = await tiny.ask({"tokens": ids, "messages": other})
        [second] = reply["differences"]
        assert second.keys() == {"held", "rendered", "class"}
        assert second["held"].keys() == second["rendered"].keys() == {"start", "end"}
        assert second["held"]["start"] > reply["first_difference"]["held"]["end"]
        assert tiny_tokenizer().decode(
            ids[second["held"]["start"] : second["held"]["end"]], skip_special_tokens=False
        ) in ("dog", "og")

    async def test_long_ones_are_compared_beside_the_event_loop(self, tiny: Surgery) -> None:
        text = "the quick brown fox " * (diagnosis.INLINE_TOKENS // 8)
        ids = encode(text)
        assert 2 * len(ids) > diagnosis.INLINE_TOKENS
        ids[-3] = 7
        reply = await tiny.ask({"tokens": ids, "text": text})
        assert reply["common_tokens"] == len(ids) - 3

    @pytest.mark.tokenizers
    async def test_stripped_reasoning_of_qwen(self, qwen: Surgery) -> None:
        messages = [user(SUM), assistant("3"), user("and 2+3?")]
        reply = await qwen.ask({"tokens": QWEN_P + QWEN_G, "messages": messages})
        assert (reply["class"], reply["common_tokens"]) == ("reasoning_stripped", 15)
        assert reply["first_difference"]["held"] == {
            "id": 151667,
            "token": "<think>",
            "text_after": "<think>\n1+2=3\n</think>\n\n3<|im_end|>",
            "end": 25,
        }


class TestSession:
    async def test_the_turn_that_the_messages_continue(self, tiny: Surgery) -> None:
        """Not the one that was recorded last, and not one of another session."""
        first = tiny.talk.ask(HELLO, session_id="s1")
        await tiny.talk.generate(first, words(tiny.talk, "hello again"))
        told = [*HELLO, assistant("hello again"), user("ok")]
        second = tiny.talk.ask(told, session_id="s1")
        await tiny.talk.generate(second, words(tiny.talk, "yes"))
        await tiny.talk.generate(
            tiny.talk.ask(HELLO, session_id="s2"), words(tiny.talk, "hello again")
        )
        reply = await tiny.ask({"session_id": "s1", "messages": told})
        assert reply["turn_id"] == first.turn_id
        assert reply["class"] == "end_of_turn_newline"
        assert reply["common_tokens"] == reply["held_tokens"]
        deeper = [*told, assistant("yes"), user("so?")]
        reply = await tiny.ask({"session_id": "s1", "messages": deeper})
        assert reply["turn_id"] == second.turn_id

    async def test_sampled_pieces_are_no_longer_those_of_the_text(self, tiny: Surgery) -> None:
        """What a text-in router would lose: the words were sampled letter by letter."""
        table = {tiny_tokenizer().token_bytes(token_id): token_id for token_id in range(256)}
        letters = [table[bytes([byte])] for byte in b"hello"]
        end = encode("<|im_end|>")
        call = tiny.talk.ask(HELLO, session_id="s1")
        await tiny.talk.generate(call, Sample([*letters, *end], Finish("stop", end[0])))
        told = [*HELLO, assistant("hello"), user("ok")]
        reply = await tiny.ask({"session_id": "s1", "messages": told})
        assert (reply["turn_id"], reply["class"]) == (call.turn_id, "bpe_remerge")
        assert reply["differences"][0]["class"] == "end_of_turn_newline"

    async def test_where_none_is_recognised_the_nearest_turn_is_compared(
        self, tiny: Surgery
    ) -> None:
        """By tokens; of turns that share as many, the first: there the difference came up."""
        talk = tiny.talk
        other = talk.ask([user("search")], session_id="s1")
        first = talk.ask(HELLO, session_id="s1")
        await talk.generate(other, words(talk, "no"))
        await talk.generate(first, words(talk, "hello again"))
        told = [*HELLO, assistant("hello again"), user("ok")]
        second = talk.ask(told, session_id="s1")
        await talk.generate(second, words(talk, "yes"))
        rewritten = [*HELLO, assistant("hello world"), user("ok")]
        reply = await tiny.ask({"session_id": "s1", "messages": rewritten})
        assert (reply["turn_id"], reply["class"]) == (first.turn_id, "client_rewrite")
        text = talk.rendered(told, second) + "maybe"
        reply = await tiny.ask({"session_id": "s1", "text": text})
        assert reply["turn_id"] == second.turn_id
        reply = await tiny.ask({"session_id": "s1", "messages": [user("search it")]})
        assert reply["turn_id"] == other.turn_id

    async def test_a_look_changes_nothing(self, tiny: Surgery) -> None:
        call = tiny.talk.ask(HELLO, session_id="s1")
        await tiny.talk.generate(call, words(tiny.talk, "hello"))
        before = len(tiny.talk.store), tiny.talk.store.tokens, tiny.talk.cache.size
        await tiny.ask({"session_id": "s1", "messages": [*HELLO, assistant("x")]})
        await tiny.ask({"session_id": "s3", "messages": HELLO}, 404)
        assert (len(tiny.talk.store), tiny.talk.store.tokens, tiny.talk.cache.size) == before
        assert tiny.talk.store.sessions.find("s3") is None

    async def test_an_unknown_session_is_404(self, tiny: Surgery) -> None:
        error = (await tiny.ask({"session_id": "nobody", "text": "x"}, 404))["error"]
        assert error.keys() == FOUR_KEYS
        assert "nobody" in error["message"]

    @pytest.mark.tokenizers
    async def test_stripped_reasoning_of_qwen(self, qwen: Surgery) -> None:
        await qwen.talk.say([user(SUM)], QWEN_G, stop(IM_END), session_id="s1")
        messages = [user(SUM), assistant("3"), user("and 2+3?")]
        reply = await qwen.ask({"session_id": "s1", "messages": messages})
        assert (reply["class"], reply["common_tokens"]) == ("reasoning_stripped", 15)
        assert reply["held_tokens"] == 27

    @pytest.mark.tokenizers
    async def test_the_date_was_another_when_the_turn_was_sampled(self) -> None:
        """A text-in router renders today's date."""
        async with surgery(Talk(real_tokenizer("llama3_2"))) as llama:
            reply = llama.talk.tokenizer.encode("Hi<|eot_id|>").tolist()
            await llama.talk.say(HELLO, reply, stop(reply[-1]), session_id="s1")
            messages = [*HELLO, assistant("Hi"), user("ok")]
            answer = await llama.ask({"session_id": "s1", "messages": messages})
        assert answer["class"] == "date_in_template"


class TestBadInput:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"messages": HELLO}, "tokens"),
            ({"tokens": [1], "session_id": "s", "messages": HELLO}, "tokens"),
            ({"tokens": [], "messages": HELLO}, "tokens"),
            ({"tokens": "1", "messages": HELLO}, "tokens"),
            ({"tokens": [1, True], "messages": HELLO}, "tokens"),
            ({"tokens": [10**6], "messages": HELLO}, "tokens"),
            ({"tokens": [-1], "messages": HELLO}, "tokens"),
            ({"session_id": 7, "messages": HELLO}, "session_id"),
            ({"session_id": "", "messages": HELLO}, "session_id"),
            ({"tokens": [1]}, "messages"),
            ({"tokens": [1], "messages": HELLO, "text": "x"}, "messages"),
            ({"tokens": [1], "messages": []}, "messages"),
            ({"tokens": [1], "messages": [{"role": "x"}]}, "messages[0].role"),
            ({"tokens": [1], "text": ""}, "text"),
            ({"tokens": [1], "text": ["x"]}, "text"),
            ({"tokens": [1], "messages": HELLO, "tools": [{}]}, "tools[0].type"),
            (
                {"tokens": [1], "messages": HELLO, "chat_template_kwargs": []},
                "chat_template_kwargs",
            ),
        ],
    )
    async def test_the_field_is_named(self, tiny: Surgery, body: Any, param: str) -> None:
        error = (await tiny.ask(body, 400))["error"]
        assert error.keys() == FOUR_KEYS
        assert error["param"] == param

    async def test_what_is_no_object_is_refused(self, tiny: Surgery) -> None:
        assert (await tiny.ask([1], 400))["error"]["code"] == "invalid_json"

    async def test_a_lone_surrogate_is_refused(self, tiny: Surgery) -> None:
        body = '{"tokens": [1], "text": "\\ud800"}'
        response = await tiny.http.post("/diagnose", data=body)
        assert response.status == 400


async def test_the_running_router_serves_it() -> None:
    """At its own path, and in a session that the path names."""
    async with served() as (router, _):
        ids = encode("<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n")
        status, reply = await router.post("/diagnose", json={"tokens": ids, "messages": HELLO})
        assert (status, reply["is_same"]) == (200, True)
        text, _ = await router.chat(HELLO, path="/sessions/s1/v1/chat/completions", max_tokens=5)
        told = [*HELLO, assistant(text)]
        status, reply = await router.post("/sessions/s1/diagnose", json={"messages": told})
        assert (status, reply["common_tokens"] >= len(ids)) == (200, True)
        assert reply["turn_id"].startswith("turn_")


class TestCommandLine:
    """`slime-router diagnose FILE`."""

    IDS = encode("Hello world")

    def run(self, *argv: str) -> int:
        return diagnose_main([*argv, "--hf-checkpoint", str(checkpoint())])

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "question.json"

    def test_the_same(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file.write_text(json.dumps({"tokens": self.IDS, "text": "Hello world"}, indent=2))
        assert self.run(str(file)) == 0
        assert capsys.readouterr().out == f"same: all {len(self.IDS)} tokens agree\n"

    def test_a_report_shows_where_and_why(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The caret stands under the first character that differs, on both sides."""
        file.write_text(json.dumps({"tokens": encode("Hello\n world"), "text": "Hello\n there"}))
        assert self.run(str(file)) == 1
        lines = capsys.readouterr().out.splitlines()
        at = len(encode("Hello\n"))
        assert lines[0] == f"different: client_rewrite at token {at}"
        held, rendered, caret = lines[2:5]
        column = caret.index("^")
        assert held[:column] == rendered[:column].replace("rendered", "held    ")
        assert held[:column].endswith("Hello\\n")
        assert held[column:] == " world"
        assert rendered[column:] == " there"
        assert lines[5].strip().startswith("The text is different")
        assert lines[-1].split()[0] == str(at)
        assert lines[-1].endswith("client_rewrite")

    def test_json_is_what_the_door_replies(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(json.dumps({"tokens": self.IDS, "text": "Hello"}))
        assert self.run(str(file), "--json") == 1
        reply = json.loads(capsys.readouterr().out)
        assert (reply["class"], reply["held_tokens"]) == ("truncated", len(self.IDS))

    def test_lines_are_diagnosed_one_by_one(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """From the standard input; one that differs makes the exit code."""
        questions = [{"tokens": self.IDS, "text": text} for text in ("Hello world", "Hello")]
        raw = "\n\n".join(map(json.dumps, questions)).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert self.run("-") == 1
        out = capsys.readouterr().out
        assert out.startswith("== -:1\nsame: ")
        assert "\n== -:3\ndifferent: truncated at token " in out

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty"),
            ("{", "is not JSON"),
            ("[1]", "is not a JSON object"),
            ('{"text": "x"}', "'tokens' is required"),
            ('{"tokens": [1]}', "'messages' or 'text' is required"),
            ('{"tokens": [99999], "text": "x"}', "outside the vocabulary"),
            ('{"session_id": "s", "text": "x"}', "give 'tokens'"),
            ('{"tokens": [1], "text": "x"}\n{"tokens"', ":2: is not JSON"),
        ],
    )
    def test_wrong_use_is_one_line(
        self, file: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
    ) -> None:
        """It names the file; nothing is reported."""
        file.write_text(content)
        assert self.run(str(file)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"slime-router diagnose: error: {file}")
        assert message in captured.err
        assert captured.err.count("\n") == 1

    def test_what_cannot_be_read_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for path in (tmp_path / "missing.json", tmp_path):
            assert self.run(str(path)) == 2
            err = capsys.readouterr().err
            assert (str(path) in err, err.count("\n")) == (True, 1)

    def test_the_routers_own_file_is_read(self, file: Path, tmp_path: Path) -> None:
        file.write_text(json.dumps({"tokens": self.IDS, "text": "Hello"}))
        settings = tmp_path / "router.yaml"
        settings.write_text(f"hf-checkpoint: {checkpoint()}\nport: 7\n")
        assert diagnose_main([str(file), "--config", str(settings)]) in (0, 1)

    def test_a_checkpoint_is_needed(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file.write_text(json.dumps({"tokens": self.IDS, "text": "Hello"}))
        assert diagnose_main([str(file)]) == 2
        assert diagnose_main([str(file), "--hf-checkpoint", "./nowhere"]) == 2
        err = capsys.readouterr().err
        assert "--hf-checkpoint" in err
        assert "./nowhere: no such directory" in err
        assert err.count("\n") == 2
