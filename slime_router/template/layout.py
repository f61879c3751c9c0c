"""What a template was seen to print around replies, and whether it prints the same again.

Held tokens may be continued only where the template appends: what it printed before the reply, it
prints there again, and nothing moves. (Mistral Nemo moves the system prompt to the last
user's turn.) How it prints old replies does not matter, because their tokens are kept.

A layout belongs to one recorded turn and says what its own prompt looked like. It is never used for
another conversation, so no conversation changes what another gets.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from typing import TypeAlias

import jinja2
from jinja2 import nodes

from slime_router.template.forms.forms import Filled
from slime_router.template.messages import content_text, without_reasoning
from slime_router.template.stand_ins import Drawing, is_reply
from slime_router.types import Message
from slime_router.values import value

Tree: TypeAlias = nodes.Template  # a template as Jinja reads it
MAX_LAYOUTS = 16_384
BEGINNING_LEN = 64  # characters of a text that is looked for
MAX_BEGINNINGS = 8  # that are looked at one by one
MAX_COMMON_LEN = 256  # characters of a text that a template may say by itself
# Characters to look through for the results of one row, or for texts that may be elsewhere: less
# than a second. Each is looked for among all the others.
MAX_LOOKED_THROUGH = 2**28
MAX_MARKS = 64  # of a layout; a conversation with more replies in view is rendered once more
_PLAIN = frozenset({"role", "content"})
_STRING_METHODS = frozenset({"startswith", "endswith", "split", "rsplit", "find", "replace"})


@value(frozen=True, slots=True)
class Mark:
    """The text before a reply, up to the end of the last message in it: its length and hash.

    Python's hashes of texts have a secret of the process: nobody can make two collide on purpose.
    """

    length: int
    digest: int

    @staticmethod
    def of(part: str, group: Sequence[Message]) -> Mark:
        """The mark of a part that holds these messages; others may follow them."""
        length = reach(part, group)
        return Mark(length, hash(part[:length]))

    @staticmethod
    def of_prompt(text: str, messages: Sequence[Message]) -> Mark:
        """The mark of a prompt of these messages and no others: a form says where they end."""
        if not isinstance(text, Filled):
            return Mark.of(text, messages)
        length = len(text) - text.tail_len
        return Mark(length, hash(text[:length]))

    def fits(self, part: str) -> bool:
        """Whether the part begins with the same text."""
        return hash(part[: self.length]) == self.digest


@value(frozen=True, slots=True)
class Layout:
    """What the prompt of a turn looked like.

    `start` is the message from which it was rendered (0: all of it), after those whose places are
    in `lead`. That is enough as long as messages follow each other as in `pairs`, and there are
    fewer than twice `proved_len` of them. `hidden` says which followed which before `start`.
    """

    marks: tuple[Mark, ...]
    start: int = 0
    lead: tuple[int, ...] = ()
    hidden: frozenset[int] = frozenset()
    pairs: frozenset[int] = frozenset()
    proved_len: int = 0

    def agrees(self, drawing: Drawing) -> bool:
        """Whether the text before each reply is what it was."""
        parts = drawing.parts[:-1]
        return len(parts) == len(self.marks) and all(
            mark.fits(part) for mark, part in zip(self.marks, parts, strict=True)
        )


class Layouts:
    """The layouts of the prompts that were made last, by the turns that answer them."""

    def __init__(self, limit: int = MAX_LAYOUTS) -> None:
        self._limit = limit
        self._layouts: OrderedDict[str, Layout] = OrderedDict()

    def get(self, turn_id: str) -> Layout | None:
        """The layout of a turn's own prompt; without it, the next turn costs one more rendering."""
        return self._layouts.get(turn_id)

    def note(self, turn_id: str, layout: Layout | None) -> None:
        """Keep one, in place of the oldest where there are too many."""
        if layout is not None:
            self._layouts[turn_id] = layout
        if len(self._layouts) > self._limit:
            self._layouts.popitem(last=False)


def marks_of(parts: Sequence[str], groups: Sequence[Sequence[Message]]) -> tuple[Mark, ...]:
    """The mark of each part; `groups` are the messages in them."""
    return tuple(Mark.of(part, group) for part, group in zip(parts, groups, strict=True))


def holds(
    text: str, messages: Sequence[Message], start: int = 0, *, with_replies: bool = False
) -> bool:
    """Whether the text of each message is in `text` after `start`, one after the other.

    Consecutive results of tools may be in any order: some templates sort them. What was sampled
    counts only `with_replies`, and then without its reasoning. Of more results than can be looked
    for, the answer is no.
    """
    end = start
    was_result = False
    left = MAX_LOOKED_THROUGH
    for message in messages:
        said = content_text(message.get("content"))
        if is_reply(message):
            was_result = False
            if not with_replies:
                continue
            said = without_reasoning(said)
        is_result = str(message["role"]).lower() in ("tool", "function")
        if not (is_result and was_result):
            start = end
        found = _find(text, said, start)
        left -= found - start if is_result and was_result else 0
        if found < 0 or left < 0:
            return False
        end, was_result = max(end, found), is_result
    return True


def end_of(text: str, messages: Sequence[Message]) -> int:
    """Where the last of the messages that has a text ends, as far as that can be seen."""
    for message in reversed(messages):
        said = content_text(message.get("content"))
        if is_reply(message):
            said = without_reasoning(said)
        if said := said.strip():
            at = text.rfind(said)
            return at + len(said) if at >= 0 else 0
    return 0


def stands_elsewhere(messages: Sequence[Message], new: Sequence[Message], printed: str) -> bool:
    """Whether a text of the `new` messages may be in the prompt anyway if it is left out.

    It may in what the template prints of its own, or among the calls or the reasoning of
    `messages`; or where there is too much of that to look through it for each.
    """
    texts = (content_text(message.get("content")).strip() for message in new)
    short = {text for text in texts if 0 < len(text) <= MAX_COMMON_LEN}
    if not short:
        return False
    others = [printed]
    for message in messages:
        if len(message) > 2:  # more than a role and a text
            others += [str(value) for name, value in message.items() if name not in _PLAIN]
    said = "\0".join(others)
    return len(short) * len(said) > MAX_LOOKED_THROUGH or any(text in said for text in short)


def printed_words(tree: Tree | None) -> str:
    """All that a template may print of its own, and a little more; empty where nobody knows."""
    if tree is None:
        return ""
    texts = [data.data for data in tree.find_all(nodes.TemplateData)]
    texts += [const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str)]
    return "\0".join(texts)


def pairs_of(messages: Sequence[Message], literals: Sequence[str]) -> frozenset[int]:
    """Which kinds of messages follow which: all that a template may branch on there."""
    return paired(_kind(message, literals) for message in messages)


def paired(kinds: Iterable[object]) -> frozenset[int]:
    """Which of these follow which, as hashes."""
    return frozenset(map(hash, pairwise(kinds)))


def first_of_each(
    messages: Sequence[Message], places: Iterable[int], literals: Sequence[str]
) -> tuple[int, ...]:
    """The places of the first of each kind of message that follows another.

    A reply is there with all that comes after it, up to the next one, which there has to be.
    """
    seen, first = set[int](), list[int]()
    for place in places:
        if not is_reply(messages[place]):
            continue
        end = place + 1
        while not is_reply(messages[end]):
            end += 1
        pairs = pairs_of(messages[place - 1 : end], literals)
        if not pairs <= seen:
            seen |= pairs
            first += range(place, end)
    return tuple(first)


def compared_literals(tree: Tree | None) -> tuple[str, ...] | None:
    """The words for which a template looks in its messages (`'</think>' in content`).

    None if that is unknown, as without a tree.
    """
    if tree is None:
        return None
    found = {literal for literal in _literals(tree) if len(literal) > 1}
    return tuple(sorted(found))


def compares_messages(tree: Tree | None) -> bool:
    """Whether a template asks if one message is another, as Mistral's do (`m == users[-1]`).

    Then a new message may change how an old one of the same words is printed. True where nobody
    knows.
    """
    if tree is None:
        return True
    loops = (loop.target for loop in tree.find_all(nodes.For))
    each = {target.name for target in loops if isinstance(target, nodes.Name)}
    for compare in tree.find_all(nodes.Compare):
        sides = [compare.expr, *(operand.expr for operand in compare.ops)]
        has_one = any(isinstance(side, nodes.Name) and side.name in each for side in sides)
        if has_one and not any(isinstance(side, nodes.Const) for side in sides):
            return True
    return False


def reach(part: str, group: Sequence[Message]) -> int:
    """Where the last message of the group that is found in the part ends; 0 where none is."""
    end = 0
    for message in group:
        end = max(end, _find(part, content_text(message.get("content")), end))
    return end


def begin_of(text: str, message: Message) -> int:
    """Where the message's text begins; -1 where it has none, or it is not found."""
    content = content_text(message.get("content"))
    return _span(text, content, 0)[0] if content.strip() else -1


def _kind(message: Message, literals: Sequence[str]) -> tuple[object, ...]:
    content = content_text(message.get("content"))
    calls = len(message.get("tool_calls") or ())
    role = str(message["role"]).lower()
    if role == "assistant":  # a stand-in takes its place
        return role, min(calls, 2)
    return role, bool(content), tuple(map(has_word, repeat(content), literals))


def has_word(text: str, word: str) -> bool:
    """Whether the word is in the text: quicker than `in` where its first character is not."""
    return word[:1] in text and word in text


def parsed(source: str | None) -> Tree | None:
    """The template's syntax tree; None without a template, or if it has tags that Jinja lacks."""
    if source is None:
        return None
    try:
        return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except jinja2.TemplateSyntaxError:  # tags of other extensions: the parts cannot be told apart
        return None


def _literals(tree: Tree) -> Iterator[str]:
    for compare in tree.find_all(nodes.Compare):
        if isinstance(compare.expr, nodes.Const) and any(
            operand.op in ("in", "notin") for operand in compare.ops
        ):
            yield str(compare.expr.value)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _STRING_METHODS:
            yield from (str(each.value) for each in call.args if isinstance(each, nodes.Const))


def _find(text: str, content: str, start: int) -> int:
    """Where `content` ends in `text`, as it is or as JSON writes it; -1 where it is not there."""
    return _span(text, content, start)[1]


def _span(text: str, content: str, start: int) -> tuple[int, int]:
    for spelling in _spellings(content.strip()):
        at = find_long(text, spelling, start)
        if at >= 0:
            return at, at + len(spelling)
    return -1, -1


def find_long(text: str, part: str, start: int) -> int:
    """`text.find(part, start)`, for a part that is usually where its beginning is first found.

    A search for all of a long text begins by looking through all of it for how it repeats.
    """
    beginning = part[:BEGINNING_LEN]
    at = text.find(beginning, start)
    for _ in range(MAX_BEGINNINGS):
        if at < 0 or text.startswith(part, at):
            return at
        at = text.find(beginning, at + 1)
    return text.find(part, at) if at >= 0 else -1


def _spellings(content: str) -> Iterator[str]:
    yield content
    for is_ascii in (False, True):
        yield json.dumps(content, ensure_ascii=is_ascii)[1:-1]
