"""What is seen of a template's text around replies."""

from __future__ import annotations

from functools import partial
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.template import suffix
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.layout import (
    BEGINNING_LEN,
    MAX_LOOKED_THROUGH,
    Layout,
    Layouts,
    Mark,
    begin_of,
    compared_literals,
    find_long,
    has_word,
    holds,
    pairs_of,
    parsed,
    stands_elsewhere,
)
from slime_router.template.seam import Seam
from slime_router.template.stand_ins import Drawing, Form
from slime_router.template.suffix import Question, Suffixes
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace
from tests.tiny import build_tiny_checkpoint


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def result(text: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": "c"}


def reply(calls: int = 0) -> Message:
    return {"role": "assistant", "content": "ok", "tool_calls": [{}] * calls}


@pytest.mark.parametrize(
    ("text", "messages", "is_held"),
    [
        ("<u>one<u>two", [user("one"), user("two")], True),
        ("<u>two<u>one", [user("one"), user("two")], False),
        ("<t>two<t>one", [result("one"), result("two")], True),  # results may be sorted
        ("<t>two<t>one<u>x", [result("one"), result("two"), user("x")], True),
        ("<u>x<t>two<t>one", [result("one"), result("two"), user("x")], False),
        ("<t>two<u>x<t>one", [result("one"), result("two"), user("x")], False),
        ("<t>two<a>ok<t>one", [result("one"), reply(), result("two")], False),
        ("<u>one", [user("  one\n")], True),  # templates trim
        ("<u>", [user("  ")], True),
        ('"a \\"b\\" ü"', [result('a "b" ü')], True),  # as JSON writes it
        ('"a \\u00fc"', [result("a ü")], True),
        ("<u>one", [user("one"), user("two")], False),
        ("<a>never mind", [{"role": "assistant", "content": "sampled"}], True),
    ],
)
def test_every_later_message_is_looked_for(text, messages, is_held):
    assert holds(text, messages) is is_held


def test_a_mark_ends_with_the_last_message_and_not_with_what_follows_it():
    mark = Mark.of("<u>Hi<end><a><think></think>", [user("Hi")])
    assert mark.fits("<u>Hi<end><a>")
    assert not mark.fits("<u>Ho<end><a><think></think>")
    assert not mark.fits("<u>H")
    assert Mark.of("<u>Hi<end>", [user("Hi"), user("in no prompt")]).length == len("<u>Hi")


def test_a_message_begins_where_its_text_does():
    assert begin_of("<u>Hi<end>", user(" Hi")) == 3
    assert begin_of("<u>Hi<end>", user("Ho")) == -1
    assert begin_of("<u>Hi<end>", user(" ")) == -1


def test_a_layout_counts_replies():
    layout = Layout((Mark.of("a", []), Mark.of("b", [])))
    assert layout.agrees(Drawing(("a", "b", "later"), Form.NO_CALLS))
    assert not layout.agrees(Drawing(("a", "later"), Form.NO_CALLS))


def test_the_words_that_a_template_looks_for():
    source = (
        "{% if '</think>' in m.content and not m.content.startswith('<tool_response>') %}"
        "{{ m.content.split('<x>')[0] + 'printed' }}{% endif %}"
        "{% if '<y>' not in m.content and '{' in m.content %}{% endif %}"
    )
    assert compared_literals(parsed(source)) == ("</think>", "<tool_response>", "<x>", "<y>")
    assert compared_literals(parsed("{% generation %}")) is None
    assert compared_literals(parsed(None)) is None


def test_messages_are_of_one_kind_where_a_template_cannot_tell_them_apart():
    plain = pairs_of([user("a"), user("b")], ("<x>",))
    assert plain == pairs_of([user("c"), user("d")], ("<x>",))
    assert plain != pairs_of([user("c"), user("d<x>")], ("<x>",))
    assert plain != pairs_of([user("c"), result("d")], ("<x>",))
    assert plain != pairs_of([user("c"), user("")], ("<x>",))
    none, one, two, three = (pairs_of([user("c"), reply(count)], ()) for count in range(4))
    assert len({none, one, two}) == 3
    assert two == three


LETTERS = st.text("ab", max_size=24)


@given(
    before=LETTERS, part=LETTERS, after=LETTERS, times=st.integers(1, 12), start=st.integers(0, 9)
)
def test_a_long_text_is_found_where_any_search_finds_it(before, part, after, times, start):
    text, sought = before + part * times + after, part * 9
    for each in (sought, sought[:30], part):
        assert find_long(text, each, start) == text.find(each, start)
        assert has_word(text, each) is (each in text)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 50])
@pytest.mark.parametrize("start", [0, 1, BEGINNING_LEN + 2])
def test_a_long_text_is_found_however_often_it_begins(count, start):
    sought = "a" * BEGINNING_LEN + "b"
    text = f"{sought}-{'a' * count}{sought}-{'a' * 99}"
    assert find_long(text, sought, start) == text.find(sought, start)
    assert find_long(text, sought.replace("b", "c"), start) == -1


def test_what_was_seen_holds_for_such_messages_until_there_are_twice_as_many():
    talk = [user("a"), reply(), result("b"), reply(), user("c")]
    question = Question(talk, 3, TemplateOptions())
    suffixes = Suffixes(lambda *_: None, cast("Seam", None), None)
    seen = Layout((), start=1, pairs=pairs_of(talk[2:], ()), proved_len=3)
    assert suffixes.covers(seen, question)
    assert not suffixes.covers(replace(seen, proved_len=2), question)
    longer = Question([user("x"), *talk], 4, TemplateOptions())
    assert not suffixes.covers(seen, longer), "there are twice as many"
    for gone in (talk[2:4], talk[3:]):  # what stands before the reply, and after it
        known = seen.pairs - pairs_of(gone, ())
        assert not suffixes.covers(replace(seen, pairs=known), question)


def test_the_oldest_layouts_go():
    layouts = Layouts(limit=2)
    for name in ("a", "b", "c"):
        layouts.note(name, Layout(()))
    layouts.note("d", None)
    assert [layouts.get(name) is not None for name in "abcd"] == [False, True, True, False]


def test_a_layout_has_a_limited_number_of_marks(tmp_path, monkeypatch):
    """Where it would have more, the next turn costs one more rendering, and says the same."""
    monkeypatch.setattr(suffix, "MAX_MARKS", 3)
    monkeypatch.setattr(suffix, "SHIFT_LEN", 1000)
    template = ChatTemplate(load_tokenizer(str(build_tiny_checkpoint(tmp_path))))
    options, messages = TemplateOptions(), [user("0")]
    layout = template.layout(template.render(messages, options), messages, options, None)
    counts = []
    for number in range(1, 6):
        index = len(messages)
        messages = [*messages, {"role": "assistant", "content": "yes"}, user(str(number))]
        found = template.suffix(messages, index, options, sampled=(), layout=layout)
        assert found is not None
        assert template.render(messages, options).endswith(found.text)
        layout = found.layout
        counts.append(None if layout is None else len(layout.marks))
    assert counts == [2, 3, None, None, None]


def test_a_long_conversation_is_continued_from_few_messages(tmp_path, monkeypatch):
    """Whole it is rendered at first, and whenever it has doubled."""
    tokenizer = load_tokenizer(str(build_tiny_checkpoint(tmp_path)))
    template, options, sizes = ChatTemplate(tokenizer), TemplateOptions(), []
    render = tokenizer.render

    def counted(messages, *args, **kwargs):
        sizes.append(len(messages))
        return render(messages, *args, **kwargs)

    monkeypatch.setattr(tokenizer, "render", counted)
    messages = [user("0")]
    layout = template.layout(template.render(messages, options), messages, options, None)
    for number in range(100):
        index = len(messages)
        messages = [*messages, {"role": "assistant", "content": "yes"}, user(str(number))]
        found = template.suffix(messages, index, options, sampled=(), layout=layout)
        assert found is not None
        layout = found.layout
    whole = [size for size in sizes if size > suffix.SHIFT_LEN + 1]
    assert 4 <= len(whole) <= 2 * 5  # from 10 messages on: at about 20, 40, 80 and 160
    assert sum(sizes) - sum(whole) <= 100 * 10


@pytest.mark.parametrize("is_there", [True, False])
def test_a_doubt_in_a_long_conversation_costs_few_messages(is_there, tmp_path, monkeypatch):
    """`assistant` is a word that the template prints itself."""
    tokenizer = load_tokenizer(str(build_tiny_checkpoint(tmp_path)))
    template, options, sizes = ChatTemplate(tokenizer), TemplateOptions(), []
    render = tokenizer.render

    def counted(messages, *args, **kwargs):
        sizes.append(len(messages))
        text = render(messages, *args, **kwargs)
        return text if is_there else text.replace(messages[-1]["content"], "")

    said = {"role": "assistant", "content": "yes"}
    messages = [user("0"), *(each for n in range(100) for each in (said, user(f"{n} and")))]
    messages += [said, user("assistant")]
    text = template.render(messages, options)
    monkeypatch.setattr(tokenizer, "render", counted)
    lost = ("messages[202]",)
    left_out = template.left_out(text, messages, len(messages) - 1, 190, options, None)
    assert left_out == (() if is_there else lost)
    assert sizes == [1 + len(messages) - 190]


def test_what_a_form_prints_is_not_looked_through(tmp_path, monkeypatch):
    """`assistant` is a word that the template prints itself."""
    tokenizer = load_tokenizer(str(build_tiny_checkpoint(tmp_path)))
    template, options = ChatTemplate(tokenizer), TemplateOptions()
    messages = [user("assistant")]
    plain, *_, filled = (template.render(messages, options) for _ in range(3))
    layouts = [template.layout(text, messages, options, None) for text in (plain, filled)]
    assert layouts[0] == layouts[1]
    monkeypatch.setattr(tokenizer, "render", pytest.fail)
    assert template.left_out(filled, messages, 0, 0, options, None) == ()


@pytest.mark.parametrize("period", [2, 5, 17])
def test_kinds_of_messages_that_come_now_and_then_are_seen_once(tmp_path, period):
    template = ChatTemplate(load_tokenizer(str(build_tiny_checkpoint(tmp_path))))
    options, messages, whole = TemplateOptions(), [user("0")], 0
    layout = template.layout(template.render(messages, options), messages, options, None)
    for number in range(100):
        index = len(messages)
        said = result("21") if not number % period else user("" if number % 7 == 3 else "go on")
        messages = [*messages, {"role": "assistant", "content": "yes"}, said]
        ask = partial(template.suffix, messages, index, options, sampled=(), layout=layout)
        near, found = ask(is_near=True), ask()
        whole += near is None
        assert found is not None
        assert near in (None, found)
        assert found == ask(is_near=False) == template.suffix(messages, index, options, sampled=())
        layout = found.layout
    assert whole <= 20


class Read(str):
    """A text that counts how much of it has been looked through, and how often all of it was."""

    characters = 0
    times = 0

    def find(self, part: str, start: int = 0) -> int:  # type: ignore[override]
        at = super().find(part, start)
        self.characters += (at if at >= 0 else len(self)) - start
        return at

    def __contains__(self, part: str) -> bool:  # type: ignore[override]
        self.times += 1
        return super().__contains__(part)


def test_results_of_one_row_are_looked_for_only_so_long():
    results = [result(f"{n} {'y' * 2000}") for n in range(2000)]
    text = Read("".join(str(each["content"]) for each in results))
    assert not holds(text, results)
    assert text.characters < 1.1 * MAX_LOOKED_THROUGH
    assert holds(text, results[:200])
    assert holds(text, [user(str(each["content"])) for each in results])


def test_short_texts_are_looked_for_among_the_rest_only_so_long():
    new = [user(f"{n} words") for n in range(2000)]
    long: Message = {**user("hi"), "name": "ab " * 10}
    assert not stands_elsewhere([long], new, "printed")
    assert stands_elsewhere([{**long, "name": "ab " * 2**17}], new, "printed")
    assert not stands_elsewhere([{**long, "name": "ab " * 2**17}], new[:1] * 2000, "printed")


def test_what_is_left_out_of_many_messages_is_seen_at_one_look(tmp_path, monkeypatch):
    """Each of them holds a word that the template prints itself."""
    tokenizer = load_tokenizer(str(build_tiny_checkpoint(tmp_path)))
    template, options, drawn = ChatTemplate(tokenizer), TemplateOptions(), []
    render = tokenizer.render

    def watched(messages, *args, **kwargs):
        text = Read(render(messages, *args, **kwargs).replace(messages[7]["content"], ""))
        drawn.append(text)
        return text

    messages = [user("assistant") for _ in range(100)]
    text = template.render(messages, options)
    monkeypatch.setattr(tokenizer, "render", watched)
    left_out = template.left_out(text, messages, 0, 0, options, None)
    assert left_out == ("messages[7]",)
    assert [text.times < 5 for text in drawn] == [True]
