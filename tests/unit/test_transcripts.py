"""Which prompts are rendered from a late message on, and which are rendered whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import pytest

from slime_router.template.forms.forms import Filled
from slime_router.template.layout import compares_messages, parsed
from slime_router.template.suffix import Question
from slime_router.template.transcript import Transcript, Transcripts
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace

DATE = datetime(2026, 5, 4)
Shown = Callable[[Sequence[Message]], str]


def plain(messages: Sequence[Message]) -> str:
    return "".join(f"<{m['role']}>{m['content']}\n" for m in messages)


def numbered(messages: Sequence[Message]) -> str:
    return "".join(f"<{n} {m['role']}>{m['content']}\n" for n, m in enumerate(messages))


def thoughtful(messages: Sequence[Message]) -> str:
    """Old replies lose their thinking, as those of Qwen3 do."""
    last = max(index for index, m in enumerate(messages) if m["role"] == "user")
    return "".join(
        f"<{m['role']}>{m['content'] if n > last else m['content'].rpartition('</think>')[2]}\n"
        for n, m in enumerate(messages)
    )


def outlined(messages: Sequence[Message]) -> str:
    """A reply to a tool's result has no header of its own, as DeepSeek's have none."""
    after = [messages[0], *messages]
    return "".join(
        f"{m['content']}\n" if before["role"] == "tool" else f"<{m['role']}>{m['content']}\n"
        for before, m in zip(after, messages, strict=False)
    )


class Renderer:
    """Renders as one of these does, and counts messages."""

    def __init__(self, show: Shown) -> None:
        self._show = show
        self.rendered = 0

    def __call__(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str | None:
        self.rendered += len(messages)
        return f"{options.tools}{date}\n{self._show(messages)}"


class FormRenderer(Renderer):
    """Has a form for whatever it renders."""

    def __call__(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str | None:
        text = super().__call__(messages, options, date)
        return None if text is None else Filled(text, len("\n"))


class Talk:
    """A conversation whose prompts are made one after the other."""

    def __init__(
        self,
        show: Shown = plain,
        max_kept_len: int = 2**20,
        renderer: type[Renderer] = Renderer,
    ) -> None:
        self.renderer = renderer(show)
        self.transcripts = Transcripts(self.renderer, ("</think>",), max_kept_len)
        self.messages: list[Message] = [{"role": "user", "content": "Hi there"}]
        self.answered = self.same_len = 0

    def ask(self, options: TemplateOptions | None = None, date: datetime = DATE) -> bool:
        """Makes the prompt; whether it was rendered from a late message on."""
        options = options or TemplateOptions()
        asked = Question(tuple(self.messages), len(self.messages), options, date)
        text = self.renderer(asked.messages, options, date)
        assert text is not None
        before, self.renderer.rendered = f"turn {self.answered}", 0
        made = self.transcripts.continued(asked, before)
        is_late, self.same_len = made is not None, 0
        if made is None:
            made = self.transcripts.of_whole(asked, text, before, self.answered)
        if made is not None:
            assert made.text == text
            self.same_len = made.same_len
            self.transcripts.note(f"turn {len(self.messages)}", made)
        self.answered = len(self.messages)
        return is_late

    def sent_otherwise(self) -> Transcript:
        """The last transcript, had its turn been sent another text."""
        known = self.transcripts._kept[f"turn {self.answered}"]
        return replace(known, is_prompt=False)

    def go_on(self, reply: str = "Well.", said: str = "Go on.", role: str = "user") -> None:
        self.messages = [
            *self.messages,
            {"role": "assistant", "content": reply},
            {"role": role, "content": f"{said} {len(self.messages)}"},
        ]

    def asked_until(self, turns: int, reply: str = "Well.", role: str = "user") -> list[bool]:
        """Whether each of so many more prompts was rendered from a late message on."""
        late = []
        for _ in range(turns):
            late.append(self.ask())
            self.go_on(reply, role=role)
        return late


def test_a_long_conversation_is_rendered_whole_only_when_it_has_doubled():
    talk = Talk()
    late = talk.asked_until(100)
    whole = [2 * number + 1 for number, is_late in enumerate(late) if not is_late]
    assert whole == [1, 3, 5, 7, 9, 11, 13, 15, 31, 63, 127]


def test_where_forms_print_what_is_in_view_the_same_is_rendered_late():
    """They say where all messages end, while it is the first of them that stay."""
    assert Talk(renderer=FormRenderer).asked_until(40) == Talk().asked_until(40)


def test_what_was_sent_before_is_known_without_a_look_at_it():
    talk = Talk()
    talk.asked_until(20)
    before = len(plain(talk.messages))
    talk.asked_until(1)
    assert talk.same_len > before / 2
    talk.transcripts.note(f"turn {talk.answered}", talk.sent_otherwise())
    talk.asked_until(1)
    assert talk.same_len == 0, "that text was rendered, and another one may have been sent"
    talk.asked_until(1)
    assert talk.same_len > before / 2


def test_a_late_rendering_has_few_messages():
    talk = Talk()
    for _ in range(60):
        if talk.ask():
            assert talk.renderer.rendered <= 30
        talk.go_on()


def test_messages_that_are_numbered_are_always_rendered_whole():
    assert not any(Talk(numbered).asked_until(40))


def test_the_next_turn_of_a_user_takes_the_thinking_from_replies():
    talk = Talk(thoughtful)
    talk.asked_until(12, "<think>I see.</think>Well.")
    talk.asked_until(20, "<think>I see.</think>Next step.", role="tool")
    assert any(talk.asked_until(20, "<think>I see.</think>Well."))


def test_a_kind_of_message_that_is_new_is_rendered_with_everything():
    talk = Talk()
    assert talk.asked_until(12)[-1]
    talk.go_on(role="tool")
    assert not talk.ask()


def mixed(show: Shown) -> tuple[list[bool], int]:
    """An agent whose user speaks after each three calls: which turns are late, and the longest."""
    talk, late, most = Talk(show), [], 0
    for turn in range(120):
        late.append(talk.ask())
        most = max(most, talk.renderer.rendered if late[-1] else 0)
        thought = "<think>Hm.</think>" if turn % 3 else ""
        talk.go_on(f"{thought}Step.", role="tool" if turn % 4 else "user")
    return late, most


@pytest.mark.parametrize("show", [plain, outlined, thoughtful])
def test_a_user_who_speaks_now_and_then_costs_an_agent_no_whole_rendering(show):
    late, most = mixed(show)
    assert late.count(False) <= 14
    assert most <= 100


def test_an_agents_replies_to_results_may_be_printed_in_another_way():
    talk = Talk(outlined)
    late = talk.asked_until(60, role="tool")
    assert late.count(False) <= 11


def test_a_blank_message_now_and_then_is_seen_once():
    talk, late = Talk(), []
    for turn in range(100):
        late.append(talk.ask())
        talk.go_on()
        if turn % 7 == 3:
            talk.messages[-1] = {"role": "user", "content": ""}
    assert late.count(False) <= 13


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "user", "content": "Hi there!"},
        {"content": "Hi there", "role": "user"},  # a template may print it as JSON
        {"role": "user", "content": "Hi there", "name": "Ann"},
    ],
)
def test_an_old_message_that_reads_otherwise_is_rendered_with_everything(changed):
    talk = Talk()
    assert talk.asked_until(12)[-1]
    assert talk.ask()
    talk.messages[0] = changed
    assert not talk.ask()


@pytest.mark.parametrize("values", [(1, True), (1, 1.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_values_that_python_takes_for_equal_are_not_the_same(values):
    talk = Talk()
    talk.messages[0]["extra"] = values[0]
    talk.asked_until(12)
    talk.messages[0] = {**talk.messages[0], "extra": values[0]}
    assert talk.ask()
    talk.messages[0] = {**talk.messages[0], "extra": values[1]}
    assert not talk.ask()


@pytest.mark.parametrize(
    ("options", "date"),
    [
        (TemplateOptions(tools=({"type": "function"},)), DATE),
        (TemplateOptions(kwargs={"enable_thinking": False}), DATE),
        (TemplateOptions(add_generation_prompt=False), DATE),
        (TemplateOptions(), datetime(2026, 5, 5)),
    ],
)
def test_what_was_rendered_otherwise_is_not_used(options, date):
    talk = Talk()
    assert talk.asked_until(12)[-1]
    assert not talk.ask(options, date)


def test_another_way_on_from_the_same_reply_is_rendered_late_as_well():
    talk = Talk()
    talk.asked_until(7)
    messages, answered = talk.messages, talk.answered
    for said in ("This way.", "That way."):
        talk.messages, talk.answered = [*messages], answered
        talk.messages[-1] = {"role": "user", "content": said}
        is_late = talk.ask()
    assert is_late


def test_the_oldest_transcripts_go():
    talk = Talk(max_kept_len=20_000)
    talk.asked_until(40)
    assert 0 < len(talk.transcripts) < 10


def test_one_that_is_too_long_to_be_kept_drives_nothing_out():
    transcripts = Transcripts(Renderer(plain), (), 1_000)
    for turn, text in (("short", "a"), ("long", "a" * 1_000)):
        transcripts.note(turn, Transcript(text, (), b""))
    assert len(transcripts) == 1
    transcripts.note("short", Transcript("a" * 1_000, (), b""))
    assert len(transcripts) == 0


def test_nothing_is_kept_where_nobody_knows_what_the_template_looks_for():
    transcripts = Transcripts(Renderer(plain), None)
    messages = tuple({"role": "user", "content": "Hi"} for _ in range(30))
    asked = Question(messages, len(messages), TemplateOptions(), DATE)
    assert transcripts.of_whole(asked, plain(messages), "turn", 28) is None


@pytest.mark.parametrize(
    ("source", "compares"),
    [
        ("{% for m in messages %}{% if m == users[-1] %}x{% endif %}{% endfor %}", True),
        ("{% for m in messages %}{% if m.role == 'user' %}x{% endif %}{% endfor %}", False),
        ("{% for m in messages %}{% if loop.index0 == last %}x{% endif %}{% endfor %}", False),
        ("{% for key in m %}{% if key == 'x' %}x{% endif %}{% endfor %}", False),
        ("{% generation %}", True),
        (None, True),
    ],
)
def test_templates_that_ask_if_one_message_is_another(source, compares):
    assert compares_messages(parsed(source)) is compares
