"""Where a suffix is entered: no end token stands twice, none is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from slime_router.template.seam import Cut, Sampled, Seam, TurnEnds

NAMES = ("<end>", "<eos>", "<user>", "<tool>", "<call>", "</call>", "<resp>")
LITERALS = {name: number for number, name in enumerate(NAMES, 1)}
END, EOS, USER, TOOL, CALL, CLOSE, RESP = LITERALS.values()
WORD = 99
PATTERN = re.compile("|".join(LITERALS))


class Controls:
    """A tokenizer with a few control tokens."""

    def __init__(self, *eos: int) -> None:
        self.eos_ids = frozenset(eos)

    def find_added(self, text: str) -> Iterator[tuple[int, int, int]]:
        for match in PATTERN.finditer(text):
            yield match.start(), match.end(), LITERALS[match.group()]


CHATML = Seam(Controls(END, EOS), TurnEnds(closers=frozenset({END})))
GLM = Seam(Controls(USER, TOOL, EOS), TurnEnds(openers={USER: "<user>", TOOL: "<tool>"}))
GEMMA = Seam(Controls(END, RESP), TurnEnds(closers=frozenset({END})))
TWO = Seam(Controls(END, EOS), TurnEnds(closers=frozenset({END})))
PLAIN = Seam(Controls(END, EOS), TurnEnds())  # nobody knows what closes a turn
WORDY = Seam(Controls(END), TurnEnds(closers=frozenset({END}), closing=" so<call> and<end>"))
HARMONY = Seam(Controls(EOS, CALL), TurnEnds(closers=frozenset({END, EOS})))


@pytest.mark.parametrize(
    ("seam", "behind", "last_id", "rest", "drop"),
    [
        (CHATML, "<end>\n<user>Hi", END, "\n<user>Hi", 0),
        (CHATML, " <end><user>Hi", END, "<user>Hi", 0),  # Llama 2 puts a space before it
        (CHATML, "<end>\n<user>Hi", EOS, "\n<user>Hi", 0),  # it closed the turn in its place
        (CHATML, "<end>\n<user>Hi", WORD, "<end>\n<user>Hi", 0),
        (CHATML, " <end>\n<user>Hi", None, " <end>\n<user>Hi", 0),
        (CHATML, "<end>[INST] Hi", EOS, "[INST] Hi", 0),
        (PLAIN, "<end>\n<user>Hi", EOS, "\n<user>Hi", 0),
        (PLAIN, "<end>Hi", EOS, "<end>Hi", 0),  # it may be what the text belongs to
        (WORDY, " so<call> and<end><user>Hi", END, "<user>Hi", 0),
        (WORDY, " so<call> and<end><user>Hi", WORD, " so<call> and<end><user>Hi", 0),
        (WORDY, " so<call> and<end><user>Hi", CALL, " so<call> and<end><user>Hi", 0),
        (WORDY, " or<call> and<end><user>Hi", END, " or<call> and<end><user>Hi", 0),
        (CHATML, "[INST] Hi", END, "[INST] Hi", 0),  # the template closes with nothing
        (CHATML, "[INST] say <end>", END, "[INST] say <end>", 0),  # a user's own text is not a seam
        (TWO, "<call><end>\n<user>Hi", END, "\n<user>Hi", 0),  # the end is a token of several
        (TWO, "<call><end>\n<user>Hi", EOS, "\n<user>Hi", 0),
        (TWO, "<call><end>\n<user>Hi", CALL, "<end>\n<user>Hi", 0),
        (TWO, "<call><end>\n<user>Hi", WORD, "<call><end>\n<user>Hi", 0),
        (GLM, "<user>Hi", USER, "Hi", 0),
        (GLM, "<tool>5", USER, "<tool>5", 1),  # the header that was sampled gives way
        (GLM, "<user>Hi", EOS, "<user>Hi", 0),
        (GLM, "<user><resp>Hi", EOS, "<user><resp>Hi", 0),
        (GLM, "and more", USER, "and more", 1),
    ],
)
def test_after_a_text(seam: Seam, behind: str, last_id: int | None, rest: str, drop: int) -> None:
    cut = seam.after_text(behind, Sampled(last_id))
    assert (behind[cut.start :], cut.drop) == (rest, drop)


@pytest.mark.parametrize(
    ("seam", "tail", "behind", "last_id", "rest", "drop"),
    [
        (CHATML, '"}</call><end>', "\n<user>Hi", END, "\n<user>Hi", 0),
        (CHATML, '"}</call><end>', "\n<user>Hi", WORD, "<end>\n<user>Hi", 0),  # cut in the call
        (CHATML, '"}</call><end>', "\n<user>Hi", CLOSE, "<end>\n<user>Hi", 0),  # cut after it
        (CHATML, '"}</call>\n<end>', "\n<user>Hi", CLOSE, "\n<end>\n<user>Hi", 0),
        (CHATML, '"}</call>', "<resp>5<end>", END, "<resp>5<end>", 0),  # closed by nothing
        (GLM, "</call>", "<tool>5", TOOL, "5", 0),
        (GLM, "</call>", "<tool>5", USER, "<tool>5", 1),
        (GLM, "</call>", "<tool>5", WORD, "<tool>5", 0),
        (GEMMA, "}</call><resp>", "5", RESP, "5", 0),
        (GEMMA, "}</call><resp>", "5", END, "<resp>5", 0),  # the text belongs to what opens it
        (HARMONY, '"}<call>', "<user>5", CALL, "<user>5", 0),
        (HARMONY, '"}<call>', "<user>5", EOS, "<user>5", 0),
        (HARMONY, '"}<call>', "<user>5", WORD, "<call><user>5", 0),
    ],
)
def test_after_a_call(
    seam: Seam, tail: str, behind: str, last_id: int, rest: str, drop: int
) -> None:
    whole = tail + behind
    head, mark, _ = tail.partition(next((n for n in NAMES if LITERALS[n] == last_id), "<none>"))
    written = f"Paris{head}{mark}" if mark else "Paris"
    cut = seam.after_call(whole, len(tail), Sampled(last_id, lambda: written))
    assert (whole[cut.start :], cut.drop) == (rest, drop)


@pytest.mark.parametrize(("own_len", "rest"), [(0, "<end>? Hi"), (1, "? Hi"), (None, "? Hi")])
def test_a_token_in_the_next_message_ends_nothing(own_len: int | None, rest: str) -> None:
    behind = "<end>? Hi"
    assert behind[CHATML.after_text(behind, Sampled(END), own_len).start :] == rest


def test_a_cut_never_parts_a_token() -> None:
    assert CHATML.boundary("a</call><end>", 4) == 1
    assert CHATML.boundary("a</call><end>", 8) == 8
    assert CHATML.boundary("abc", 2) == 2
    assert CHATML.boundary("abc</call>", 2) == 2
    assert CHATML.after_text("", Sampled(END)) == Cut(0)


WORDS = "<call>said<end><call>turn<end><eos>"  # what a turn is closed with
KIMI = Seam(Controls(EOS), TurnEnds(frozenset({EOS}), {}, "<eos>", WORDS))


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("Hello", WORDS),
        ("", WORDS),
        ("<call>said", "<end><call>turn<end><eos>"),
        ("Hello<call>", "said<end><call>turn<end><eos>"),
        ("Hello<call>sa", "id<end><call>turn<end><eos>"),
        ("Hello<call>said<end>", "<call>turn<end><eos>"),
        ("Hello<call>said<end><call>", "turn<end><eos>"),
        ("Hello<call>said<end><call>turn<end>", "<eos>"),
        ("Hello<call>said<end><user>get", "<call>turn<end><eos>"),  # something has begun
        (f"{WORDS} and on", "<eos>"),
        ("<call>thought<end>Hello", WORDS),
    ],
)
def test_closing_words_that_were_sampled_are_not_sent_again(written: str, rest: str) -> None:
    behind = WORDS + "<user>Hi"
    cut = KIMI.after_text(behind, Sampled(WORD, lambda: written))
    assert behind[cut.start :] == rest + "<user>Hi"


CALL_END = "</call>arg<end></call>get<end>"


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("<call>get", "<call>turn<end><eos>"),
        ("<call>said<end><tool>get<end>Par", "<call>turn<end><eos>"),  # in the call: it stays cut
        ("Paris</call>arg<end>", "</call>get<end><call>turn<end><eos>"),
        ("Paris</call>arg<end></call>", "get<end><call>turn<end><eos>"),
        ("Paris</call>arg<end></call>get<end>", "<call>turn<end><eos>"),
        ("Paris</call>arg<end></call>get<end><call>tu", "rn<end><eos>"),
        ("<tool>now<end></call>get<end>", "<call>turn<end><eos>"),  # without an argument
    ],
)
def test_a_call_that_was_closed_in_part_is_closed_to_its_end(written: str, rest: str) -> None:
    behind = CALL_END + "<call>turn<end><eos><user>Hi"
    written = "<call>said<end>" + written
    cut = KIMI.after_call(behind, len(behind) - len("<user>Hi"), Sampled(WORD, lambda: written))
    assert behind[cut.start :] == rest + "<user>Hi"


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ('{city:"', "<resp>"),  # it may have opened the text
        ("{city:<call>", "<resp>"),
        ("Paris<call>}", "</call><resp>"),
        ("Paris<call>}</call>", "<resp>"),
    ],
)
def test_a_call_is_closed_where_its_end_was_begun_for_certain(written: str, rest: str) -> None:
    behind = "<call>}</call><resp>5"
    tail_len = len("<call>}</call><resp>")
    cut = GEMMA.after_call(behind, tail_len, Sampled(WORD, lambda: written))
    assert behind[cut.start :] == rest + "5"
