"""Drift: the first difference is found exactly, and known causes are kept apart."""

from __future__ import annotations

import copy
import random
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from slime_router.doctor.alignment import GRAM_LEN
from slime_router.doctor.causes import Cause, json_around, of_json, of_texts
from slime_router.doctor.drift import MAX_REGIONS, Drift, compare
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions, token_ids
from tests.stack import chat_template, tiny_tokenizer
from tests.talk import real_tokenizer, user

IM_START, IM_END, END_OF_TEXT = 151644, 151645, 151643
QWEN_P = [151644, 872, 198, 3838, 374, 220, 16, 10, 17, 30, 151645, 198, 151644, 77091, 198]
QWEN_G = [151667, 198, 16, 10, 17, 28, 18, 198, 151668, 271, 18, 151645]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "Run a command",
        "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}},
    },
}
Spans = list[tuple[tuple[int, int], tuple[int, int], str]]


class Model:
    """A tokenizer and its template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.template = chat_template(tokenizer)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).tolist()
        return ids

    def render(self, *messages: Message, date: datetime | None = None, **options: Any) -> list[int]:
        return self.encode(self.template.render(messages, TemplateOptions(**options), date=date))

    def drift(self, held: list[int], rendered: list[int]) -> Drift:
        drift = compare(
            token_ids(held),
            token_ids(rendered),
            self.tokenizer,
            ends_turn=self.template.ends_turn,
        )
        check(drift, held, rendered)
        return drift


def check(drift: Drift, held: list[int], rendered: list[int]) -> None:
    """What always holds: outside of the regions both sides are the same tokens."""
    i = j = 0
    for region in drift.regions:
        assert held[i : region.held[0]] == rendered[j : region.rendered[0]]
        assert region.held[0] - i == region.rendered[0] - j
        assert held[slice(*region.held)] != rendered[slice(*region.rendered)]
        i, j = region.held[1], region.rendered[1]
    assert drift.has_more or held[i:] == rendered[j:]
    common = next((k for k, (a, b) in enumerate(zip(held, rendered, strict=False)) if a != b), None)
    assert drift.common == (min(len(held), len(rendered)) if common is None else common)
    assert drift.is_same == (held == rendered) == (drift.cause is Cause.SAME)
    assert drift.explanation.endswith(".")
    assert "\n" not in drift.explanation


def spans(drift: Drift) -> Spans:
    return [(region.held, region.rendered, region.cause.value) for region in drift.regions]


def assistant(content: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "bash", "arguments": arguments}}


@pytest.fixture
def tiny() -> Model:
    return Model(tiny_tokenizer())


@pytest.fixture
def qwen() -> Model:
    return Model(real_tokenizer("qwen3"))


class TestWhere:
    def test_the_same_tokens_are_the_same(self, tiny: Model) -> None:
        ids = tiny.render(user("Hello there"))
        drift = tiny.drift(ids, list(ids))
        assert (drift.is_same, drift.parting, drift.regions) == (True, None, ())
        assert (drift.common, drift.held_len, drift.rendered_len) == (len(ids),) * 3

    def test_the_first_difference_shows_both_sides(self, tiny: Model) -> None:
        held = tiny.render(user("Hello"), assistant("It is sunny in Paris"), user("ok"))
        rendered = tiny.render(user("Hello"), assistant("It rains in Berlin"), user("ok"))
        parting = tiny.drift(held, rendered).parting
        assert parting is not None
        assert parting.held is not None
        assert parting.rendered is not None
        assert parting.text_before.endswith("<|im_start|>assistant\nIt")
        ids = held[parting.index], rendered[parting.index]
        assert (parting.held.id, parting.rendered.id) == ids
        assert parting.held.text_after.startswith(parting.held.token)
        assert parting.held.text_after.startswith(" is sunny in Paris<|im_end|>\n<|im_start|>")
        assert parting.rendered.text_after.startswith(" rains in Berlin<|im_end|>\n<|im_start|>")

    def test_excerpts_are_short(self, tiny: Model) -> None:
        same = tiny.encode("a quick brown fox " * 50)
        other = tiny.encode("lazy " * 500)
        parting = tiny.drift([*same, *other], [*same, *other[::-1], 1]).parting
        assert parting is not None
        assert parting.held is not None
        assert len(parting.text_before) == len(parting.held.text_after) == 60

    def test_turns_are_compared_one_by_one(self, tiny: Model) -> None:
        """Two rewritten messages are two regions, whatever stands between them."""
        held = tiny.render(user("Hello"), assistant("sunny"), user("fox"), assistant("dog"))
        rendered = tiny.render(user("Hello"), assistant("rainy"), user("fox"), assistant("cat"))
        causes = [region.cause for region in tiny.drift(held, rendered).regions]
        assert causes == [Cause.CLIENT_REWRITE] * 2

    def test_turns_are_compared_one_by_one_even_side_by_side(self, tiny: Model) -> None:
        """What stands between them is too short to tell a place by."""
        held = tiny.render(user("sunny"), assistant("dog"), user("yes"))
        rendered = tiny.render(user("rainy"), assistant("cat"), user("yes"))
        rewritten = [
            tiny.tokenizer.decode(held[slice(*region.held)], skip_special_tokens=False)
            for region in tiny.drift(held, rendered).regions
        ]
        assert rewritten == ["sunny", "dog"]

    def test_a_short_common_end_is_no_part_of_the_difference(self, tiny: Model) -> None:
        drift = tiny.drift([1, 2, 3, 50, 51], [1, 2, 3, 60, 61, 51])
        assert [(region.held, region.rendered) for region in drift.regions] == [((3, 4), (3, 5))]

    def test_a_left_out_turn_is_one_region(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        first, last = user("What is the weather in Paris?"), user("the last question of all")
        extra = [assistant("It is sunny in Paris today"), user("And then in Berlin, please?")]
        held, rendered = model.render(first, *extra, last), model.render(first, last)
        [(on_held, on_rendered, cause)] = spans(model.drift(held, rendered))
        assert on_rendered[0] == on_rendered[1]
        assert on_held[1] - on_held[0] == len(held) - len(rendered)
        assert cause == "client_rewrite"

    def test_no_more_than_so_many_regions_are_told(self, tiny: Model) -> None:
        """And it is said that there are more."""
        numbers = random.Random(7)
        held = [numbers.randrange(100, 400) for _ in range(1000)]
        rendered = list(held)
        for index in range(10, 1000, 30):
            rendered[index] = 450
        drift = tiny.drift(held, rendered)
        assert (len(drift.regions), drift.has_more) == (MAX_REGIONS, True)
        few = tiny.drift(held[:630], rendered[:630])
        assert (len(few.regions), few.has_more) == (MAX_REGIONS, False)

    def test_one_side_may_be_empty(self, tiny: Model) -> None:
        ids = tiny.encode("Hello")
        assert tiny.drift([], []).is_same
        assert spans(tiny.drift(ids, [])) == [((0, len(ids)), (0, 0), "truncated")]
        parting = tiny.drift([], ids).parting
        assert parting is not None
        assert (parting.index, parting.held) == (0, None)

    @pytest.mark.parametrize("seed", range(40))
    def test_any_two_lists_are_aligned_soundly(self, tiny: Model, seed: int) -> None:
        """Whatever is inserted, removed or changed; `check` says what must hold."""
        numbers = random.Random(seed)
        vocab_size = tiny.tokenizer.vocab_size
        few = [*range(512, 517), *numbers.sample(range(vocab_size), 4)]
        pool = few if seed % 2 else range(vocab_size)
        held = numbers.choices(pool, k=numbers.randrange(200))
        rendered = list(held)
        for _ in range(numbers.randrange(6)):
            at = numbers.randrange(len(rendered) + 1)
            cut = numbers.randrange(4) * numbers.randrange(10)
            rendered[at : at + cut] = numbers.choices(pool, k=numbers.randrange(12))
        tiny.drift(held, rendered)
        tiny.drift(rendered, held)

    def test_long_histories_cost_no_more_than_reading_them(self, tiny: Model) -> None:
        """A hundred thousand tokens that never agree, or all look alike: nothing is quadratic."""
        n = 100_000
        alternating = np.tile([7, 8], n // 2).tolist()
        assert not tiny.drift(alternating, np.tile([8, 8, 7], n // 3).tolist()).is_same
        assert spans(tiny.drift([7] * n, [9] * n)) == [((0, n), (0, n), "client_rewrite")]
        held = [*[7] * n, 9, *range(20)]
        assert spans(tiny.drift(held, [*[7] * n, 10, *range(20)]))[0][0] == (n, n + 1)


@pytest.fixture(params=["tiny", pytest.param("qwen3", marks=pytest.mark.tokenizers)])
def qwen_or_tiny(request: pytest.FixtureRequest) -> Model:
    return Model(tiny_tokenizer() if request.param == "tiny" else real_tokenizer(request.param))


class TestCausesOfAnyVocabulary:
    """On both vocabularies: how they cut words does not matter."""

    def test_a_prefix_is_truncated(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        whole = model.encode("the quick brown fox jumps over the lazy dog")
        cut = whole[:-2]
        ends = (len(cut), len(cut)), (len(cut), len(whole))
        assert spans(model.drift(cut, whole)) == [(*ends, "truncated")]
        assert spans(model.drift(whole, cut)) == [(*ends[::-1], "truncated")]

    def test_the_newline_behind_a_turn(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        held = model.encode("<|im_start|>assistant\nHi<|im_end|>")
        drift = model.drift(held, model.encode("<|im_start|>assistant\nHi<|im_end|>\n"))
        end = len(held)
        assert spans(drift) == [((end, end), (end, end + 1), "end_of_turn_newline")]

    def test_the_newline_that_was_forgotten_between_turns(self, qwen_or_tiny: Model) -> None:
        """The next turn was put right after the stop token."""
        model = qwen_or_tiny
        first = model.encode("<|im_start|>user\nHi<|im_end|>")
        second = model.encode("<|im_start|>assistant\n")
        drift = model.drift(first + second, [*first, *model.encode("\n"), *second])
        end = len(first)
        assert spans(drift) == [((end, end), (end, end + 1), "end_of_turn_newline")]

    def test_another_stop_token(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        start = "<|im_start|>assistant\nHi"
        held = model.encode(f"{start}<|endoftext|>")
        drift = model.drift(held, model.encode(f"{start}<|im_end|>\n<|im_start|>user\nok"))
        assert drift.cause is Cause.STOP_TOKEN
        assert '"<|endoftext|>"' in drift.explanation
        assert '"<|im_end|>"' in drift.explanation
        assert drift.regions[0].held == (len(held) - 1, len(held))

    def test_stripped_reasoning(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        start = model.encode("<|im_start|>assistant\n")
        thought = model.encode("<think>\nfirst this, then that\n</think>\n\n")
        reply = model.encode("forty two<|im_end|>")
        drift = model.drift([*start, *thought, *reply], [*start, *reply])
        span = len(start), len(start) + len(thought)
        assert spans(drift) == [(span, (len(start), len(start)), "reasoning_stripped")]

    def test_reasoning_that_is_still_there_was_rewritten(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        held = model.encode("<think>\nfirst this\n</think>\n\nYes")
        rendered = model.encode("<think>\nthen that\n</think>\n\nYes")
        assert model.drift(held, rendered).cause is Cause.CLIENT_REWRITE

    def test_reasoning_that_was_moved_is_not_stripped(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        held = model.encode("<think>\nthinking about the question\n</think>\n\nYes")
        rendered = model.encode("Yes: thinking about the question")
        assert model.drift(held, rendered).cause is Cause.CLIENT_REWRITE

    def test_a_dropped_tool_call_is_no_stop_token(self, qwen_or_tiny: Model) -> None:
        model = qwen_or_tiny
        held = model.encode('Yes\n<tool_call>\n{"name": "search"}\n</tool_call><|im_end|>')
        rendered = model.encode("Yes<|im_end|>\n<|im_start|>user\nok<|im_end|>\n")
        assert model.drift(held, rendered).cause is Cause.CLIENT_REWRITE

    def test_reasoning_may_share_its_first_letters_with_the_reply(
        self, qwen_or_tiny: Model
    ) -> None:
        """Where the markers are plain text; the region begins and ends after the letters."""
        model = qwen_or_tiny
        thought = "[THINK]first this[/THINK]"
        held = model.encode("<|im_start|>[") + model.encode(f"{thought[1:]}[")
        reply = model.encode("x yes<|im_end|>")
        rendered = [*model.encode("<|im_start|>["), *reply]
        [region] = model.drift([*held, *reply], rendered).regions
        assert region.cause is Cause.REASONING_STRIPPED
        assert (region.held, region.rendered) == ((2, len(held)), (2, 2))

    @pytest.mark.parametrize(
        ("held", "rendered", "cause"),
        [
            ('{"a":[1,2],"b":"x y"}', '{"a": [1, 2], "b": "x y"}', "json_respaced"),
            ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', "json_respaced"),
            ('{"city": "K\\u00f6ln"}', '{"city": "Köln"}', "json_respaced"),
            ('{"a": 1}', '{"a": 1, "strict": false}', "schema_default"),
            ('{"a": 1, "limit": null}', '{"a": 1}', "schema_default"),
            ('{"a": 1}', '{"a": 1, "limit": 7}', "client_rewrite"),
            ('{"a": 1}', '{"a": true}', "client_rewrite"),
            ('{"a": "x  y"}', '{"a": "x y"}', "whitespace"),
            ('{"a": true}', '{"a": True}', "boolean_respelled"),
            ("first None then", "first null then", "boolean_respelled"),
            ("nothing is false", "nothing is true", "client_rewrite"),
            ("Today: 26 Jul 2024 end", "Today: 07 Nov 2026 end", "date_in_template"),
            ("on 2026-01-02 end", "on 2026-01-03 end", "date_in_template"),
            ("Monday, March 2, 2026!", "Tuesday, March 3, 2026!", "date_in_template"),
            ("there are 26 dogs", "there are 27 dogs", "client_rewrite"),
            ("cafe\u0301 au lait", "café au lait", "unicode_normalised"),
            ("hello  there\n\nyou", "hello there\nyou", "whitespace"),
            ("hello there", "hello where", "client_rewrite"),
            (
                "<function=e>\n<parameter=s>\nq\n</parameter>\n</function>",
                "<function=e>\n<parameter=s>\nq\n</parameter>\n"
                "<parameter=replace_all>\nfalse\n</parameter>\n</function>",
                "schema_default",
            ),
        ],
    )
    def test_what_the_texts_say(
        self, qwen_or_tiny: Model, held: str, rendered: str, cause: str
    ) -> None:
        """The tokens of the one text are taken as they could have been sampled: byte for byte."""
        model = qwen_or_tiny
        start, end = model.encode("<|im_start|>assistant\n"), model.encode("<|im_end|>")

        def sampled(text: str) -> list[int]:  # no normalizer stands between a model and its bytes
            parts = [model.encode(part) for part in text.split("\u0301")]
            accent = bytes_of(model, "\u0301".encode())
            ids = parts[0]
            for part in parts[1:]:
                ids = [*ids, *accent, *part]
            return ids

        drift = model.drift([*start, *sampled(held), *end], [*start, *sampled(rendered), *end])
        assert [region.cause for region in drift.regions] == [cause]


def bytes_of(model: Model, data: bytes) -> list[int]:
    """One token for each byte."""
    table = {model.tokenizer.token_bytes(token_id): token_id for token_id in range(256)}
    return [table[bytes([byte])] for byte in data]


def test_a_word_in_other_pieces(tiny: Model) -> None:
    held = [*tiny.encode("say "), *bytes_of(tiny, b"hello"), *tiny.encode(" world")]
    rendered = tiny.encode("say hello world")
    drift = tiny.drift(held, rendered)
    assert [region.cause for region in drift.regions] == [Cause.BPE_REMERGE]
    assert '"hello"' in drift.explanation.replace(" ", "")


def test_a_cut_character_comes_back_as_a_replacement(tiny: Model) -> None:
    """Half of an emoji is sampled, U+FFFD is what the client sends back."""
    held = [*tiny.encode("ok "), *bytes_of(tiny, "🦩".encode()[:2])]
    drift = tiny.drift(held, tiny.encode("ok \ufffd"))
    assert drift.cause is Cause.BPE_REMERGE


def test_a_spelled_out_control_token(tiny: Model) -> None:
    held = [*tiny.encode("print "), *bytes_of(tiny, b"<|im_end|>"), *tiny.encode(" please")]
    rendered = tiny.encode("print <|im_end|> please")
    for pair in ((held, rendered), (rendered, held)):
        drift = tiny.drift(*pair)
        assert [region.cause for region in drift.regions] == [Cause.SPECIAL_TOKEN_TEXT]


def test_an_id_without_a_token_is_compared_like_any_other(tiny: Model) -> None:
    spare = tiny.tokenizer.vocab_size - 1
    assert tiny.tokenizer.token_bytes(spare) == b""
    ids = tiny.encode("hello world")
    assert tiny.drift([spare, *ids], ids).cause is Cause.BPE_REMERGE  # it reads as nothing
    assert tiny.drift([*ids, spare], ids).cause is Cause.TRUNCATED


class TestJson:
    def test_true_is_not_one_and_numbers_count_by_value(self) -> None:
        assert of_json({"a": 1.0}, {"a": 1}) is Cause.JSON_RESPACED
        assert of_json({"a": True}, {"a": 1}) is None
        assert of_json([{"a": 1}], [{"a": 1, "b": []}]) is Cause.SCHEMA_DEFAULT
        assert of_json([1, 2], [2, 1]) is None
        assert of_json({"a": 1, "b": False}, {"a": 1, "c": False}) is None

    def test_the_outermost_value_around_a_place_is_found(self) -> None:
        text = 'x {"y" [1] {"a": [1, {"b": 2}]} {"c": 3}'
        at = text.index("2")
        assert json_around(text, at, at + 1) == ({"a": [1, {"b": 2}]},)
        assert json_around(text, 0, 1) is None
        assert json_around(text, at, len(text)) is None

    def test_deep_nesting_is_no_value(self) -> None:
        assert json_around("[" * 100_000, 99_000, 99_001) is None

    def test_texts_that_are_the_same_were_cut_otherwise(self) -> None:
        assert of_texts("a", "a") is Cause.BPE_REMERGE

    def test_long_white_space_is_judged_in_time(self) -> None:
        space = " " * 200_000
        parameter = f"<parameter=a>{space}x</parameter>"
        assert of_texts(parameter, space) is Cause.CLIENT_REWRITE


@pytest.mark.tokenizers
class TestQwen:
    """The cases that other projects met, with the real ids."""

    def test_16_reasoning_of_an_earlier_turn(self, qwen: Model) -> None:
        rendered = qwen.render(user("What is 1+2?"), assistant("3"), user("and 2+3?"))
        drift = qwen.drift(QWEN_P + QWEN_G, rendered)
        assert drift.common == 15
        assert spans(drift)[:2] == [
            ((15, 25), (15, 15), "reasoning_stripped"),
            ((27, 27), (17, len(rendered)), "end_of_turn_newline"),
        ]
        assert drift.parting is not None
        assert drift.parting.held is not None
        assert (drift.parting.held.id, drift.parting.held.token) == (151667, "<think>")
        assert drift.parting.text_before.endswith("<|im_start|>assistant\n")

    def test_16_reasoning_of_the_last_turn(self, qwen: Model) -> None:
        """The template puts an empty span where the client dropped the reasoning."""
        rendered = qwen.render(user("What is 1+2?"), assistant("3"), add_generation_prompt=False)
        drift = qwen.drift(QWEN_P + QWEN_G, rendered)
        assert [region.cause for region in drift.regions] == [
            Cause.REASONING_STRIPPED,
            Cause.END_OF_TURN_NEWLINE,
        ]

    def test_16_reasoning_that_was_cut_off(self, qwen: Model) -> None:
        held = [*QWEN_P, 151667, 198, 16, 10, 17, IM_END]
        drift = qwen.drift(held, [*QWEN_P, 18, IM_END, 198])
        assert drift.cause is Cause.REASONING_STRIPPED
        assert drift.regions[0].held == (15, 20)

    def test_17_the_newline_behind_the_stop_token(self, qwen: Model) -> None:
        rendered = qwen.render(user("What is 1+2?"), assistant("3"), user("x"))
        drift = qwen.drift([*QWEN_P, 18, IM_END], rendered)
        assert spans(drift) == [((17, 17), (17, len(rendered)), "end_of_turn_newline")]
        assert rendered[17] == 198

    def test_a_dropped_tool_call_is_no_stop_token(self, qwen: Model) -> None:
        """Although the held side has a control token where the template ends the turn."""
        held = [*QWEN_P, *qwen.encode('<tool_call>\n{"name": "x"}\n</tool_call><|im_end|>')]
        rendered = [*QWEN_P, IM_END, *qwen.encode("\n<|im_start|>user\nok")]
        assert qwen.drift(held, rendered).cause is Cause.CLIENT_REWRITE

    def test_20_and_21_compact_json(self, qwen: Model) -> None:
        """Two calls in one turn are two regions, each with the cause of its own."""
        compact = '<tool_call>\n{"name":"bash","arguments":{"cmd":"ls"}}\n</tool_call>'
        text = f"<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n{compact}\n{compact}"
        calls = [call({"cmd": "ls"}), call('{"cmd":"ls"}')]
        rendered = qwen.render(user("go"), assistant("", tool_calls=calls), user("x"))
        drift = qwen.drift([*qwen.encode(text), IM_END], rendered)
        assert [region.cause for region in drift.regions] == [
            Cause.JSON_RESPACED,
            Cause.JSON_RESPACED,
            Cause.END_OF_TURN_NEWLINE,
        ]

    @pytest.mark.parametrize(
        ("held", "rendered", "text"),
        [
            ([39, 83722], [72239, 1718], "HAVING"),
            ([393, 30002], [53122, 316], " Pantom"),
            ([32713, 385], [9707], "Hello"),
        ],
    )
    def test_22_words_in_other_pieces(
        self, qwen: Model, held: list[int], rendered: list[int], text: str
    ) -> None:
        after = qwen.encode("\nand then")
        drift = qwen.drift([*QWEN_P, *held, *after], [*QWEN_P, *rendered, *after])
        spanned = (15, 15 + len(held)), (15, 15 + len(rendered))
        assert spans(drift) == [(*spanned, "bpe_remerge")]
        assert f'"{text}"' in drift.explanation

    def test_23_nfc(self, qwen: Model) -> None:
        assert qwen.encode("e\u0301") == [963]
        drift = qwen.drift([*QWEN_P, 68, 53839, IM_END], [*QWEN_P, 963, IM_END])
        assert spans(drift) == [((15, 17), (15, 16), "unicode_normalised")]

    def test_24_half_an_emoji(self, qwen: Model) -> None:
        rendered = [*QWEN_P, *qwen.encode("\ufffd"), IM_END, 198]
        drift = qwen.drift([*QWEN_P, 123918], rendered)
        assert drift.cause is Cause.BPE_REMERGE
        assert (drift.regions[0].held, drift.regions[0].rendered) == ((15, 16), (15, 16))

    def test_28_a_control_token_in_the_users_text(self, qwen: Model) -> None:
        rendered = qwen.render(user("print <|im_end|> please"))
        assert rendered.count(IM_END) == 2
        at = rendered.index(IM_END)
        held = [*rendered[:at], 27, 91, 318, 6213, 91, 29, *rendered[at + 1 :]]
        drift = qwen.drift(held, rendered)
        assert spans(drift) == [((at, at + 6), (at, at + 1), "special_token_text")]

    def test_33_a_field_added_to_a_tool(self, qwen: Model) -> None:
        strict = copy.deepcopy(TOOL)
        strict["function"]["strict"] = False
        held = qwen.render(user("hi"), tools=(TOOL, TOOL))
        rendered = qwen.render(user("hi"), tools=(strict, TOOL))
        assert len(rendered) == len(held) + 4
        assert [region.cause for region in qwen.drift(held, rendered).regions] == [
            Cause.SCHEMA_DEFAULT
        ]

    def test_35_a_constant_in_python(self, qwen: Model) -> None:
        before = qwen.encode("<tool_call>\n<function=Edit>\n<parameter=replace_all>\n")
        after = qwen.encode("\n</parameter>\n</function>\n</tool_call>")
        drift = qwen.drift([*before, 3849, *after], [*before, 4049, *after])
        at = len(before)
        assert spans(drift) == [((at, at + 1), (at, at + 1), "boolean_respelled")]

    def test_37_an_argument_with_its_default(self, qwen: Model) -> None:
        arguments = {"file": "a.py", "new": "b"}
        held = qwen.render(user("go"), assistant("", tool_calls=[call(arguments)]), user("x"))
        echo = call({**arguments, "replace_all": False})
        rendered = qwen.render(user("go"), assistant("", tool_calls=[echo]), user("x"))
        assert [region.cause for region in qwen.drift(held, rendered).regions] == [
            Cause.SCHEMA_DEFAULT
        ]


@pytest.mark.tokenizers
class TestOtherModels:
    @pytest.mark.parametrize(
        ("name", "bos"), [("llama3_2", 128000), ("gemma3", 2), ("mistral_nemo", 1)]
    )
    def test_26_the_first_token_twice(self, name: str, bos: int) -> None:
        model = Model(real_tokenizer(name))
        ids = model.render(user("Hello"), date=datetime(2026, 1, 2))
        assert ids[:1] == [bos]
        assert ids[1] != bos
        assert spans(model.drift([bos, *ids], ids)) == [((1, 2), (1, 1), "double_bos")]
        assert spans(model.drift(ids, [bos, *ids])) == [((1, 1), (1, 2), "double_bos")]

    def test_27_the_date_in_the_header(self) -> None:
        model = Model(real_tokenizer("llama3_2"))
        held = model.render(user("Hello"), date=datetime(2026, 1, 31))
        rendered = model.render(user("Hello"), date=datetime(2026, 2, 1))
        drift = model.drift(held, rendered)
        assert [region.cause for region in drift.regions] == [Cause.DATE_IN_TEMPLATE]

    def test_reasoning_in_a_message_of_its_own(self) -> None:
        """gpt-oss: the analysis is left out, and the turn closed with another token."""
        model = Model(real_tokenizer("gptoss"))
        before = "<|start|>user<|message|>hi<|end|><|start|>assistant<|channel|>"
        thought = "analysis<|message|>Think hard<|end|><|start|>assistant<|channel|>"
        held = model.encode(f"{before}{thought}final<|message|>3<|return|>")
        rendered = model.encode(f"{before}final<|message|>3<|end|><|start|>user")
        assert [region.cause for region in model.drift(held, rendered).regions] == [
            Cause.REASONING_STRIPPED,
            Cause.STOP_TOKEN,
            Cause.TRUNCATED,
        ]


def test_a_gram_is_longer_than_the_words_between_two_turns(tiny: Model) -> None:
    """Or any end of a turn would pass for the same place."""
    assert len(tiny.encode("<|im_end|>\n<|im_start|>")) < GRAM_LEN
