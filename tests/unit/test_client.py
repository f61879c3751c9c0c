"""The client's core: what is sent, how rows are read, and what a rollout's rows are worth."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from slime_router.client import BadReply, Conflict, NotFound, Refused, Row, calls, group_advantages
from slime_router.client.address import Address
from slime_router.client.errors import refusal
from slime_router.client.rows import ExportReader, read_npz
from slime_router.client.summary import read_summaries, read_summary

TOKENS = [5, 6, 7, 8, 9]
MASK = [0, 0, 1, 0, 1]
LOGPROBS = [0.0, 0.0, -0.1, 0.0, -1 / 3]
VERSIONS = [None, None, "v1", None, 2]
LONGER = {  # by a token that is not trained
    "tokens": np.array([*TOKENS, 0], np.int32),
    "loss_mask": np.array([*MASK, 0], np.uint8),
    "logprobs": np.array([*LOGPROBS, 0.0]),
    "weight_version": np.array([-1, -1, 0, -1, 1, -1], np.int32),
}
SUMMARY: dict[str, Any] = {
    "session_id": "s",
    "url": "http://elsewhere/sessions/s",
    "base_url": "http://elsewhere/sessions/s/v1",
    "state": "open",
    "group_id": None,
    "rollout_id": "s",
    "metadata": {},
    "max_turns": None,
    "max_tokens": 7,
    "return_routed_experts": False,
    "reward": None,
    "turns": 1,
    "recorded_turns": 2,
    "sampled_tokens": 3,
    "dropped_turns": 1,
    "running": 0,
}


def row_fields(row_id: str = "t2", **fields: Any) -> dict[str, Any]:
    """A row as the router's JSON tells it, without what stands per token."""
    return {
        "row_id": row_id,
        "session_id": "s",
        "group_id": "g",
        "rollout_id": "r",
        "turn_ids": ["t1", row_id],
        "response_length": 3,
        "status": "completed",
        "finish_reason": "stop",
        "reward": 1.0,
        "metadata": {"task": 4},
        **fields,
    }


def stats(rows: int = 1, trained: int = 2, **fields: Any) -> dict[str, Any]:
    return {
        "turns": 2,
        "sampled_tokens": trained + 1,
        "rows": rows,
        "trained_tokens": trained,
        "left_out": {"retry": {"turns": 1, "tokens": 1}},
        "dropped_turns": 0,
        **fields,
    }


def npz(meta: dict[str, Any], **columns: Any) -> bytes:
    """An archive as the router writes it; a column of None is left out."""
    arrays = {
        "tokens": np.array(TOKENS, np.int32),
        "loss_mask": np.array(MASK, np.uint8),
        "logprobs": np.array(LOGPROBS, np.float64),
        "weight_version": np.array([-1, -1, 0, -1, 1], np.int32),
        "offsets": np.array([0, 5], np.int64),
        **columns,
    }
    buffer = io.BytesIO()
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(buffer, **kept, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    return buffer.getvalue()


def meta(**fields: Any) -> dict[str, Any]:
    return {"rows": [row_fields()], "versions": ["v1", 2], "stats": stats(), **fields}


def line(**fields: Any) -> bytes:
    """A row as one line."""
    per_token = {
        "tokens": TOKENS,
        "loss_mask": MASK,
        "logprobs": LOGPROBS,
        "weight_versions": VERSIONS,
    }
    return json.dumps({**row_fields(), **per_token, **fields}).encode() + b"\n"


def stats_line(**fields: Any) -> bytes:
    return json.dumps({"session_id": "s", "stats": stats(**fields)}).encode() + b"\n"


def error_line(session_id: str = "gone", code: str = "session_not_found") -> bytes:
    error = {"message": f"No {session_id}.", "type": "t", "param": None, "code": code}
    return json.dumps({"session_id": session_id, "error": error}).encode() + b"\n"


def check_row(row: Row) -> None:
    """Whether it is the row of this file, token by token."""
    assert_array_equal(row.tokens, TOKENS)
    assert_array_equal(row.loss_mask, MASK)
    assert row.logprobs is not None
    assert_array_equal(row.logprobs, LOGPROBS)
    assert row.weight_versions == (None, None, "v1", None, 2)
    assert (row.tokens.dtype.name, row.loss_mask.dtype.name) == ("int32", "uint8")
    assert (row.row_id, row.turn_ids, row.trained_tokens) == ("t2", ("t1", "t2"), 2)
    assert (row.group_id, row.rollout_id, row.reward, row.status) == ("g", "r", 1.0, "completed")


class TestArrays:
    def test_a_row_comes_back_bit_for_bit(self):
        export = read_npz("s", npz(meta()))
        [row] = export.rows
        check_row(row)
        assert export.stats.left_out["retry"].tokens == 1
        assert export.stats.others == {"dropped_turns": 0}
        lost = sum(each.tokens for each in export.stats.left_out.values())
        assert export.stats.sampled_tokens == export.stats.trained_tokens + lost

    def test_rows_are_cut_where_the_offsets_say(self):
        two = [row_fields("a", response_length=2), row_fields("b", response_length=1)]
        data = npz(meta(rows=two, stats=stats(rows=2)), offsets=np.array([0, 3, 5]))
        first, second = read_npz("s", data).rows
        assert (first.tokens.tolist(), second.tokens.tolist()) == ([5, 6, 7], [8, 9])
        assert (first.weight_versions, second.weight_versions) == ((None, None, "v1"), (None, 2))

    def test_no_rows_are_no_rows(self):
        nothing = {
            name: np.zeros(0, np.int32)
            for name in ("tokens", "loss_mask", "logprobs", "weight_version")
        }
        empty = meta(rows=[], versions=[], stats=stats(rows=0, trained=0))
        assert read_npz("s", npz(empty, **nothing, offsets=np.array([0]))).rows == ()

    def test_arrays_cannot_be_written_to(self):
        [row] = read_npz("s", npz(meta())).rows
        for array in (row.tokens, row.loss_mask, row.logprobs):
            assert array is not None
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1

    @pytest.mark.parametrize("column", [None, np.full(5, np.nan)])
    def test_without_logprobs_there_is_none(self, column):
        """A row without any stands as NaN among rows with some."""
        [row] = read_npz("s", npz(meta(), logprobs=column)).rows
        assert row.logprobs is None
        assert row.to_sample()["rollout_log_probs"] is None

    def test_float32_logprobs_stay_float32(self):
        [row] = read_npz("s", npz(meta(), logprobs=np.array(LOGPROBS, np.float32))).rows
        assert row.logprobs is not None
        assert row.logprobs.dtype == np.float32

    def test_routed_experts_have_offsets_of_their_own(self):
        """A row without experts among others has None, not an array without positions."""
        two = [row_fields("a", response_length=1), row_fields("b", response_length=1)]
        data = npz(
            meta(rows=two, stats=stats(rows=2)),
            offsets=np.array([0, 3, 5]),
            routed_experts=np.arange(8, dtype=np.uint8).reshape(2, 4),
            routed_experts_offsets=np.array([0, 2, 2]),
        )
        first, second = read_npz("s", data).rows
        assert first.routed_experts is not None
        assert first.routed_experts.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert second.routed_experts is None
        assert "rollout_routed_experts" in first.to_sample()
        assert "rollout_routed_experts" not in second.to_sample()

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"<html>", id="something else"),
            pytest.param(npz(meta())[:-40], id="broken off"),
            pytest.param(npz({"rows": []}), id="no stats"),
            pytest.param(npz(meta(), offsets=np.array([0, 4])), id="offsets stop early"),
            pytest.param(npz(meta(), offsets=np.array([0, 7, 5])), id="offsets go back"),
            pytest.param(npz(meta(), **LONGER), id="more than the offsets say"),
            pytest.param(npz(meta(), loss_mask=np.ones(4, np.uint8)), id="a short mask"),
            pytest.param(npz(meta(), tokens=None), id="no tokens"),
            pytest.param(npz(meta(rows=[row_fields(response_length=6)])), id="a long response"),
            pytest.param(npz(meta(stats=stats(trained=3))), id="fewer trained than counted"),
            pytest.param(npz(meta(stats=stats(rows=2))), id="fewer rows than counted"),
        ],
    )
    def test_what_does_not_fit_together_is_never_trained_on(self, data):
        with pytest.raises(BadReply):
            read_npz("s", data)


class TestLines:
    def test_however_the_bytes_are_cut_the_exports_are_the_same(self):
        text = line() + stats_line() + stats_line(rows=0, trained=0)
        for size in (1, 7, len(text)):
            reader = ExportReader()
            blocks = (text[i : i + size] for i in range(0, len(text), size))
            exports = [export for block in blocks for export in reader.feed(block)]
            reader.finish()
            check_row(exports[0].rows[0])
            assert [len(export.rows) for export in exports] == [1, 0]

    def test_an_unknown_session_is_told_after_all_others_are_delivered(self):
        reader = ExportReader()
        exports = [*reader.feed(error_line("a") + line() + stats_line() + error_line("b", "x"))]
        assert len(exports) == 1
        with pytest.raises(NotFound, match=r"No a\.") as caught:
            reader.finish()
        assert (caught.value.status, caught.value.code) == (404, "session_not_found")
        assert caught.value.__notes__ == ["and: No b."]

    @pytest.mark.parametrize("text", [line(), line() + stats_line()[:-9], line()[:40]])
    def test_a_stream_that_breaks_off_is_an_error(self, text):
        reader = ExportReader()
        assert [*reader.feed(text)] == []
        with pytest.raises(BadReply, match="broke off"):
            reader.finish()

    @pytest.mark.parametrize(
        "text", [b"{}\n", b"[]\n", b"nonsense\n", line() + stats_line(trained=1)]
    )
    def test_a_line_that_is_none_is_an_error(self, text):
        with pytest.raises(BadReply):
            [*ExportReader().feed(text)]

    def test_routed_experts_come_as_bytes(self):
        experts = np.array([[1, 2], [3, 4]], np.int16)
        data = b64encode(experts.tobytes()).decode()
        text = line(routed_experts={"dtype": "int16", "shape": [2, 2], "data": data})
        [export] = ExportReader().feed(text + stats_line())
        assert_array_equal(export.rows[0].routed_experts, experts)


class TestSamples:
    def test_a_sample_holds_all_tokens_and_what_belongs_to_the_response(self):
        [row] = read_npz("s", npz(meta())).rows
        assert row.to_sample() == {
            "tokens": TOKENS,
            "response_length": 3,
            "loss_mask": [1, 0, 1],
            "rollout_log_probs": LOGPROBS[2:],
            "weight_versions": ["v1", "2"],
            "reward": 1.0,
            "status": "completed",
            "session_id": "s",
            "truncated_sampling": False,
            "metadata": {
                "task": 4,
                "slime_router": {
                    "group_id": "g",
                    "rollout_id": "r",
                    "row_id": "t2",
                    "turn_ids": ["t1", "t2"],
                    "turns": [],
                },
            },
        }

    def test_a_sample_can_be_written_as_json(self):
        [row] = read_npz("s", npz(meta())).rows
        assert json.loads(json.dumps(row.to_sample())) == row.to_sample()

    def test_an_empty_response_has_an_empty_mask(self):
        one = meta(rows=[row_fields(response_length=0)])
        assert read_npz("s", npz(one)).rows[0].to_sample()["loss_mask"] == []

    def test_the_routers_own_turn_versions_are_kept(self):
        one = meta(rows=[row_fields(turn_versions=["v1", "v1", 2])])
        assert read_npz("s", npz(one)).rows[0].to_sample()["weight_versions"] == ["v1", "v1", "2"]


@dataclass(frozen=True)
class Rewarded:
    group_id: str | None
    rollout_id: str
    reward: Any


def rewarded(*rewards: float, group: str = "g") -> list[Rewarded]:
    """A rollout of one row for each reward."""
    return [Rewarded(group, f"{group}-{i}", reward) for i, reward in enumerate(rewards)]


class TestAdvantages:
    def test_a_rollout_of_more_rows_weighs_no_more(self):
        """Row by row the mean of 1, 1, 1, 0 would be 0.75; of the rollouts 1 and 0 it is 0.5."""
        rows = [*[Rewarded("g", "a", 1.0)] * 3, Rewarded("g", "b", 0.0)]
        assert group_advantages(rows) == [0.5, 0.5, 0.5, -0.5]

    def test_groups_of_uneven_sizes_never_share_a_baseline(self):
        rows = [
            *rewarded(1, 0, 1, 0, group="a"),
            *rewarded(5.0, 5.0, 5.0, group="b"),
            *rewarded(9, 9, 9, 1, group="c"),
        ]
        expected = [0.5, -0.5, 0.5, -0.5, 0, 0, 0, 2, 2, 2, -6]
        assert group_advantages(rows) == expected

    def test_the_order_of_rows_is_free(self):
        rows = [*rewarded(1, 0, group="a"), *rewarded(3, 5, group="b")]
        mixed = [rows[2], rows[0], rows[3], rows[1]]
        assert group_advantages(mixed) == [-1, 0.5, 1, -0.5]

    @pytest.mark.parametrize("divides", [False, True])
    @pytest.mark.parametrize("rewards", [(0.7,), (0.1, 0.1, 0.1)])
    def test_without_a_difference_there_is_no_advantage(self, divides, rewards):
        """Never NaN, and no rounding error that dividing would blow up."""
        advantages = group_advantages(rewarded(*rewards), divide_by_std=divides)
        assert advantages == [0.0] * len(rewards)

    def test_dividing_is_by_the_deviation_over_rollouts(self):
        rows = [*[Rewarded("g", "a", 1.0)] * 3, Rewarded("g", "b", 0.0)]
        std = 0.5**0.5  # of 1 and 0, with n - 1
        expected = [0.5 / std] * 3 + [-0.5 / std]
        assert group_advantages(rows, divide_by_std=True) == pytest.approx(expected, rel=1e-5)

    def test_two_rewards_for_one_rollout_are_a_mistake(self):
        with pytest.raises(ValueError, match=r"'a' has rewards 1\.0 and 0\.0"):
            group_advantages([Rewarded("g", "a", 1.0), Rewarded("g", "a", 0.0)])

    def test_one_rollout_id_in_two_groups_is_two_rollouts(self):
        rows = [Rewarded("g", "0", 1), Rewarded("h", "0", 0)]
        assert group_advantages(rows) == [0, 0]

    def test_of_several_rewards_the_key_says_which(self):
        rows = rewarded(*({"score": score, "length": 9} for score in (1, 0)))  # type: ignore[arg-type]
        assert group_advantages(rows, reward_key="score") == [0.5, -0.5]
        with pytest.raises(ValueError, match="reward_key"):
            group_advantages(rows)
        with pytest.raises(ValueError, match="no reward"):
            group_advantages(rows, reward_key="sore")

    @pytest.mark.parametrize("row", [Rewarded("g", "a", None), Rewarded(None, "a", 1.0)])
    def test_no_reward_or_no_group_is_a_mistake(self, row):
        with pytest.raises(ValueError, match="has no"):
            group_advantages([row])


class TestCalls:
    def test_only_what_is_said_is_sent(self):
        call = calls.open_session({"group_id": "g", "max_turns": None, "sampling": {"top_p": 1}})
        assert json.loads(call.payload or b"") == {"group_id": "g", "sampling": {"top_p": 1}}

    def test_an_id_of_any_characters_is_one_step_of_the_path(self):
        call = calls.read_session("a/../b?c #ä")
        assert call.path == "/sessions/a%2F..%2Fb%3Fc%20%23%C3%A4"

    def test_rows_are_asked_for_as_arrays_with_the_options(self):
        call = calls.session_rows("s", {"max_len": 9, "retries": "keep", "realign_threshold": 0})
        assert (call.method, call.accept) == ("GET", "application/x-npz")
        path = "/sessions/s/rows?format=npz&max_len=9&retries=keep&realign_threshold=0"
        assert call.path == path

    def test_filters_stand_in_the_query(self):
        call = calls.list_sessions(group_id="a&b", rollout_id=None, state="open")
        assert call.path == "/sessions?group_id=a%26b&state=open"

    def test_closing_may_take_as_long_as_it_says(self):
        call = calls.close_session("s", in_flight="cancel", timeout_s=12.5)
        assert call.body == {"in_flight": "cancel", "timeout_secs": 12.5}
        assert call.wait_s == 12.5

    @pytest.mark.parametrize("names", [{}, {"group_id": "g", "rollout_id": "r"}])
    def test_rows_are_chosen_in_one_way(self, names):
        given = {"session_ids": None, "group_id": None, "rollout_id": None, **names}
        with pytest.raises(ValueError, match="Give one of"):
            calls.many_rows(**given, options={})

    def test_a_reward_computed_with_numpy_is_a_number(self):
        call = calls.reward_session("s", np.float32(0.5))  # type: ignore[arg-type]
        assert call.payload == b'{"reward": 0.5}'
        mapped = calls.reward_session("s", {"hits": np.int64(3)})
        assert mapped.payload == b'{"reward": {"hits": 3}}'

    @pytest.mark.parametrize("reward", [float("nan"), float("inf"), object()])
    def test_a_reward_that_json_cannot_say_is_never_sent(self, reward):
        with pytest.raises((ValueError, TypeError)):
            _ = calls.reward_session("s", reward).payload

    @pytest.mark.parametrize(
        "url", ["localhost:30001", "ftp://x", "http://", "http://x?y=1", "http://x/#part"]
    )
    def test_a_url_of_something_else_is_refused(self, url):
        with pytest.raises(ValueError, match="not the URL of a router"):
            Address.of(url)

    def test_a_url_with_an_account_is_refused_without_its_password(self):
        """One client sent it, and the other did not."""
        with pytest.raises(ValueError, match="give it as one of the headers") as caught:
            Address.of("http://user:SECRET@host:30001")
        assert "SECRET" not in str(caught.value)

    def test_a_url_may_have_a_path_and_slashes(self):
        address = Address.of("https://host:8443/router//")
        assert (address.host, address.port, address.path) == ("host", 8443, "/router")
        assert (address.url, address.is_secure) == ("https://host:8443/router", True)


class TestReplies:
    def test_a_refusal_has_the_routers_words(self):
        error = {"message": "Taken.", "type": "t", "param": "session_id", "code": "session_exists"}
        refused = refusal(409, json.dumps({"error": error}).encode())
        assert isinstance(refused, Conflict)
        assert (refused.message, refused.param) == ("Taken.", "session_id")
        assert (refused.status, refused.code, str(refused)) == (409, "session_exists", "Taken.")

    @pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[]", b'{"error": 1}'])
    def test_a_refusal_of_something_else_shows_its_text(self, body):
        refused = refusal(502, body)
        assert type(refused) is Refused
        assert (refused.status, refused.code) == (502, None)
        assert body.decode() in refused.message

    def test_a_summary_is_read_and_what_is_new_in_it_skipped(self):
        summary = read_summary(json.dumps({**SUMMARY, "new": 1}).encode())
        assert (summary.session_id, summary.max_tokens, summary.turns) == ("s", 7, 1)
        listed = json.dumps({"sessions": [SUMMARY], "total": 1}).encode()
        assert read_summaries(listed) == (summary,)

    @pytest.mark.parametrize("body", [b"", b"ok", b"[]", b"{}", b"null"])
    def test_what_is_no_summary_is_a_bad_reply(self, body):
        with pytest.raises(BadReply):
            read_summary(body)
        with pytest.raises(BadReply):
            read_summaries(body)


def test_the_blocking_client_loads_numpy_and_nothing_else():
    """A trainer's process takes none of the router's own dependencies on board."""
    heavy = ("aiohttp", "transformers", "tokenizers", "orjson", "pydantic", "yarl")
    code = (
        "import sys; import slime_router.client as c; c.Client; c.group_advantages;"
        f"print([name for name in {heavy} if name in sys.modules]); c.AsyncClient;"
        "print('aiohttp' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["[]", "True"]
