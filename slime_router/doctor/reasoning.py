"""Reasoning in tokens: where a span that only one side has comes to its end."""

from __future__ import annotations

from slime_router.doctor.token_text import TokenText

# How models begin and end it. In harmony it is a separate message, so its end is the next header.
MARKERS = (
    (b"<think>", b"</think>"),
    (b"[THINK]", b"[/THINK]"),
    (b"<seed:think>", b"</seed:think>"),
    ("◁think▷".encode(), "◁/think▷".encode()),
    (b"<|START_THINKING|>", b"<|END_THINKING|>"),
    (b"analysis<|message|>", b"<|end|><|start|>assistant<|channel|>"),
)
MAX_LEAD_LEN = 16  # bytes of white space before the marker
PROBE_LEN = 64  # bytes of reasoning by which it is looked for on the other side
SLACK_LEN = 256  # bytes that the other side may have before it

_SPACE = b" \n\r\t"


def reasoning_ends(held: TokenText, i: int, rendered: TokenText, j: int) -> tuple[int, int] | None:
    """Where both sides continue after reasoning that only the held side has at token `i`.

    Returns:
        Indexes of tokens, held and rendered; None if there is no such reasoning.
    """
    for begin, end in MARKERS:
        found = _inside(held, i, rendered, j, begin, end) or _whole(
            held, i, rendered, j, begin, end
        )
        if found is not None:
            return found
    return None


def _inside(
    held: TokenText, i: int, rendered: TokenText, j: int, begin: bytes, end: bytes
) -> tuple[int, int] | None:
    """Both sides have the markers, and the rendered one nothing between them."""
    start, other = held.byte_at(i), rendered.byte_at(j)
    opened = held.data.rfind(begin, 0, start)
    if opened < 0 or held.data.find(end, opened, start) >= 0:
        return None
    close, other_close = held.data.find(end, start), rendered.data.find(end, other)
    if close < 0 or other_close < 0 or not held.data[start:close].strip():
        return None
    if rendered.data[other:other_close].strip():
        return None
    return held.index_at(close), rendered.index_at(other_close)


def _whole(
    held: TokenText, i: int, rendered: TokenText, j: int, begin: bytes, end: bytes
) -> tuple[int, int] | None:
    """The held side has markers and all; the marker's first bytes may be common to both."""
    start, other = held.byte_at(i), rendered.byte_at(j)
    opened = held.data.find(
        begin, max(start - len(begin) + 1, 0), start + MAX_LEAD_LEN + len(begin)
    )
    if opened < 0 or held.data[start:opened].strip(_SPACE):
        return None
    close = held.data.find(end, opened)
    after = close + len(end)
    if close < 0:  # cut off while it was thinking: to the end of the turn
        controls = held.controls_in(held.index_at(opened + len(begin)), len(held))
        close = after = held.byte_at(int(controls[0]) if len(controls) else len(held))
    body = held.data[opened + len(begin) : close].strip()[:PROBE_LEN]
    beside = rendered.data[other : other + close - opened + SLACK_LEN]
    if beside.lstrip(_SPACE).startswith(begin) or (body and body in beside):
        return None
    if beside[:1] not in (b" ", b"\n", b"\r", b"\t"):
        rest = held.data[after : after + MAX_LEAD_LEN]
        after += len(rest) - len(rest.lstrip(_SPACE))
    after += max(start - opened, 0)  # the bytes that begin the marker begin what follows, too
    return held.index_at(after), j
