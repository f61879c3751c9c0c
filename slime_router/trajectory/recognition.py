"""Which recorded turn the messages of a call continue."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Sequence
from typing import Any, Protocol

from slime_router.auth.caller import name_of_root
from slime_router.errors import BadRequest
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.conversation_key import Key, gathered, joined, next_link, root_key
from slime_router.template.heard import Chain, Heard
from slime_router.template.messages import Plain, without_call_ids, without_repairs
from slime_router.template.stand_ins import is_reply
from slime_router.trajectory.known_links import KnownLinks, Link
from slime_router.trajectory.turn import Turn
from slime_router.types import GenerateCall, Message
from slime_router.values import value

SHORT_LEN = 2048  # characters of a text; to remember a link costs more than its digest
_RESULTS = ("tool", "function")
_DISORDER = "; results do not answer the calls in order, and the template prints no ids"


@value(frozen=True, slots=True)
class Conversation:
    """The messages of a call, and the recorded turn that they continue.

    `is_ordered`: some results of the reply's several calls have no id, and answer them in order.
    `is_unordered`: some answer them in another order, which the model cannot see.
    """

    messages: tuple[Message, ...]
    keys: list[Key]  # of each prefix of the messages
    spellings: list[Key]  # likewise: how their replies are spelled
    turn: Turn | None = None
    reply_index: int = -1  # which message is the turn's reply
    is_ordered: bool = False
    is_unordered: bool = False

    @property
    def order_note(self) -> str:
        """What the receipt says of it: results in another order would be those of other calls."""
        return "; results without ids answer the calls in order" if self.is_ordered else ""

    @property
    def disorder_note(self) -> str:
        """What the receipt says of it: the model reads results as those of other calls."""
        return _DISORDER if self.is_unordered else ""

    def name_of(self, call: GenerateCall) -> str:
        """What the turns of a conversation without a session go together by: that of the first.

        One that continues a session's turns goes with that session. "" for a call that names one.
        """
        if call.session_id is not None:
            return ""
        turn = self.turn
        if turn is None:
            return name_of_root(call.turn_id)
        return turn.session_id or turn.conversation or name_of_root(turn.id)

    def new_index(self, messages: Sequence[Message]) -> int:
        """Where what comes after the turn's reply begins in `messages`, which are the call's own.

        Without a turn all is new.
        """
        if self.turn is None:
            return 0
        return self.reply_index + 1 + len(messages) - len(self.messages)

    def new_after(self, base: Turn | None) -> int | None:
        """How many messages come after the reply of `base`; None where they do not continue it."""
        if self.turn is None or base is None or self.turn.id != base.id:
            return None
        return len(self.messages) - 1 - self.reply_index


class Recorded(Protocol):
    """Where turns are looked for; `slime_router.trajectory.store` is one."""

    def find(
        self,
        key: bytes,
        session_id: str | None,
        *,
        taken: Container[str] = (),
        spelling: bytes = b"",
    ) -> Turn | None:
        """The newest turn of a conversation."""

    def of_handle(self, handle: str, session_id: str | None, scope: str = "") -> Turn | None:
        """The turn that has this id of a tool call, or this id itself."""

    def ids_of_handles(
        self, handles: Sequence[str], session_id: str | None, scope: str = ""
    ) -> list[str | None]:
        """The id of each turn that `of_handle` finds, in order; none of them counts as used."""


class Recogniser:
    """Finds turns by the messages that came before them and by their replies."""

    def __init__(self, template: ChatTemplate, store: Recorded) -> None:
        self._template = template
        self._store = store
        self._known = KnownLinks(self._next)

    def recognise(self, call: GenerateCall, *, taken: Container[str] = ()) -> Conversation:
        """The deepest recorded turn whose messages and reply are the start of the call's messages.

        Of several that read the same, the newest that no running request continues; else the
        newest.
        """
        assert call.messages is not None
        if isinstance(call.messages, Plain):  # none has calls
            return self._recognise(call, call.messages, taken)
        whole = _joined(call.messages)
        talk = self._recognise(call, whole, taken)
        if whole is not call.messages and (
            talk.turn is None or not _was_joined(call.messages, talk.reply_index)
        ):
            talk = self._recognise(call, call.messages, taken)
        together = self._gathered(call, whole, talk)
        if together is whole:
            return talk
        other = self._recognise(call, together, taken)
        if other.turn is None or (talk.turn is not None and talk.turn.id == other.turn.id):
            return talk
        return other

    def _gathered(
        self, call: GenerateCall, messages: tuple[Message, ...], talk: Conversation
    ) -> tuple[Message, ...]:
        """The messages with the calls of each turn in one, as far as no turn was recognised."""
        first = talk.reply_index + 1 if len(talk.messages) == len(messages) else 0
        handles = {place: _handle(messages[place]) for place in range(first, len(messages))}
        named = {place: name for place, name in handles.items() if name is not None}
        if len(named) < 2:
            return messages
        found = self._store.ids_of_handles([*named.values()], call.session_id, call.scope)
        turns = {place: turn for place, turn in zip(named, found, strict=True) if turn is not None}
        is_one_each = len(turns) == len({*turns.values()})
        return messages if is_one_each else tuple(gathered(messages, turns))

    def _recognise(
        self, call: GenerateCall, messages: tuple[Message, ...], taken: Container[str]
    ) -> Conversation:
        try:
            chain = self._chain(call, messages)
        except RecursionError as exc:
            raise BadRequest("the request is nested too deeply", param="messages") from exc
        asked = messages
        if held := chain.held:
            messages = tuple(held.get(index, each) for index, each in enumerate(messages))
        given, whole = messages, self._template.parts.whole(messages)
        messages = messages if whole is messages else tuple(whole)
        keys, spellings, named = chain.keys, chain.spellings, chain.named
        shown_by = self._template.findings.results_by
        for index in range(len(messages) - 1, -1, -1):
            if not is_reply(messages[index]):
                continue
            turn = self._named_turn(given[index], keys[index], call) if index in named else None
            turn = turn or self._store.find(
                keys[index + 1],
                call.session_id,
                taken=taken,
                spelling=spellings[index + 1],
            )
            if turn is not None:
                is_ordered = _is_ordered(asked[index:], held, index)
                is_unordered = _is_unordered(messages[index:], shown_by)
                return Conversation(
                    messages, keys, spellings, turn, index, is_ordered, is_unordered
                )
        return Conversation(
            messages, keys, spellings, is_unordered=_is_unordered(messages, shown_by)
        )

    def _chain(self, call: GenerateCall, messages: tuple[Message, ...]) -> Chain:
        """The key and the spelling of each prefix, and the replies that name their turns.

        A reply that identifies its turn enters the chain as it was recorded, however the client
        spells it now; so do the results of its calls.
        """
        root = root_key(call.scope, call.template)
        chain = self._known_chain(call, messages, root) or Chain.of(root)
        keys, spellings = chain.keys, chain.spellings
        link, last = Link(keys[-1], spellings[-1]), len(messages) - 1
        for index in range(len(keys) - 1, len(messages)):
            message = messages[index]
            turn = told = None
            if (chain.waiting or chain.ids) and str(message["role"]).lower() in _RESULTS:
                message = _note_result(chain, index, message)
            if "tool_calls" in message or "turn" in message:
                turn = self._named_turn(message, link.key, call, chain)
                told = turn or self._repaired_turn(message, link.key, call)
                if self._template.findings.prints_call_ids:
                    _note_ids(chain, index, message, told)
            if turn is not None:
                chain.named.add(index)
            if told is not None:
                link = Link(told.keys[0], told.spelling)
            elif "name" not in message and type(said := message.get("content")) is str:
                is_new = index == last and len(said) < SHORT_LEN  # digested sooner than looked up
                link = (self._next if is_new else self._known)(link, message)
            else:
                link = self._after_parts(link, message, call.session_id)
            keys.append(link.key)
            spellings.append(link.spelling)
        if isinstance(messages, Heard):
            messages.whole.note(root, chain)
        return chain

    def _known_chain(
        self, call: GenerateCall, messages: tuple[Message, ...], root: Key
    ) -> Chain | None:
        """The chain of the messages that came before, where what they name is what it was."""
        past = messages.past if isinstance(messages, Heard) else None
        chain = None if past is None else past.chains.get(root)
        if chain is None:
            return None
        found = self._store.ids_of_handles(chain.handles, call.session_id, call.scope)
        return chain.copy() if found == chain.found else None

    def _next(self, link: Link, message: Message) -> Link:
        with_ids = self._template.findings.prints_call_ids
        return Link(*next_link(link.key, link.spelling, message, with_call_ids=with_ids))

    def _after_parts(self, link: Link, message: Message, session_id: str | None) -> Link:
        """The next link for a message as the template sees it.

        A reply in parts is the recorded one that reads so, whatever stands between its parts.
        """
        if not is_reply(message):
            seen = self._template.parts.joined(message)
            if "name" in seen and not self._template.prints_names:
                seen = {name: value for name, value in seen.items() if name != "name"}
            return self._next(link, seen)
        links = [self._next(link, each) for each in self._template.parts.spellings(message)]
        if len(links) > 1:
            for each in links:
                if self._store.find(each.key, session_id, spelling=each.spelling) is not None:
                    return each
        return links[0]

    def _named_turn(
        self, message: Message, asked: Key, call: GenerateCall, chain: Chain | None = None
    ) -> Turn | None:
        """The turn that made the tool calls of this message, if the messages before it match.

        Number and tools of the calls must match: an agent may repair arguments, nothing else. What
        was looked for, and what was found, is noted in `chain`.
        """
        calls = message.get("tool_calls")
        handle = message.get("turn") or _handle(message)
        if not isinstance(handle, str):
            return None
        turn = self._store.of_handle(handle, call.session_id, call.scope)
        if chain is not None:
            chain.handles.append(handle)
            chain.found.append(None if turn is None else turn.id)
        if turn is None or turn.asked != asked or not turn.keys:
            return None
        made = tuple((each.get("id"), each["function"]["name"]) for each in calls or ())
        return turn if made == turn.calls else None

    def _repaired_turn(self, message: Message, asked: Key, call: GenerateCall) -> Turn | None:
        """The turn of a reply whose ids name none, and whose arguments or ids an agent changed."""
        if not (is_reply(message) and message.get("tool_calls")):
            return None
        told = without_repairs(message, call.template.tools)
        forms = [message] if told is message else [message, told]
        if self._template.findings.prints_call_ids and _are_distinct(_ids(message)):
            forms += [without_call_ids(form) for form in forms]
        for form in forms:
            key = self._next(Link(asked, b""), form).key
            if (turn := self._store.find(key, call.session_id)) is not None:
                is_changed = form is not message or not any(_ids(message))
                return turn if is_changed else None
        return None


def _handle(message: Message) -> str | None:
    """The id of the first call of a message."""
    calls = message.get("tool_calls")
    handle = calls[0].get("id") if calls else None
    return handle if isinstance(handle, str) else None


def _ids(reply: Message) -> list[Any]:
    return [call.get("id") for call in reply.get("tool_calls") or ()]


def _are_distinct(ids: Sequence[Any]) -> bool:
    """Whether each names a call."""
    return all(type(each) is str and each for each in ids) and len(set(ids)) == len(ids)


def _note_ids(chain: Chain, index: int, reply: Message, turn: Turn | None) -> None:
    """What the results after a reply refer to by the client's ids, which `turn` may not have."""
    given = _ids(reply)
    held = given if turn is None else [call_id for call_id, _ in turn.calls]
    for each in given:
        if type(each) is str:
            chain.ids.pop(each, None)
    chain.waiting[:] = [each for each in held if type(each) is str and each]
    if held != given and len(held) == len(given):
        named = zip(given, held, strict=True)
        chain.ids.update((each, call_id) for each, call_id in named if each)
        calls = zip(reply["tool_calls"], held, strict=True)
        chain.held[index] = {
            **reply,
            "tool_calls": [{**call, "id": call_id} for call, call_id in calls],
        }


def _note_result(chain: Chain, index: int, result: Message) -> Message:
    """The result with the id that its call is held with; without one, it answers the next call."""
    given = result.get("tool_call_id")
    call_id = chain.ids.get(given, given) if given else next(iter(chain.waiting), given)
    if call_id in chain.waiting:
        chain.waiting.remove(call_id)
    if call_id == given:
        return result
    chain.held[index] = {**result, "tool_call_id": call_id}
    return chain.held[index]


def _is_ordered(asked: Sequence[Message], held: Container[int], start: int) -> bool:
    """Whether results without ids among messages from `start` on got those of several calls."""
    count = 0
    for index, message in enumerate(asked if held else (), start):
        if calls := message.get("tool_calls"):
            count = len(calls)
        elif count > 1 and index in held and not message.get("tool_call_id"):
            return True
    return False


def _is_unordered(messages: Sequence[Message], shown_by: str) -> bool:
    """Whether a result answers another call than the one that it will be read as answering.

    `shown_by`: what the template shows of whose result one is (`Findings.results_by`).
    """
    if shown_by == "id" or isinstance(messages, Plain):
        return False
    kinds = dict[str, str]()  # of the calls by their ids: what the template shows of one
    waiting = defaultdict[str, deque[str]](deque)  # the ids of each kind, in order
    for message in messages:
        if calls := message.get("tool_calls"):
            kinds = {}
            waiting.clear()
            for call_id, call in zip(_ids(message), calls, strict=True):
                if type(call_id) is str:
                    kinds[call_id] = call["function"]["name"] if shown_by == "name" else ""
                    waiting[kinds[call_id]].append(call_id)
        elif str(message["role"]).lower() in _RESULTS:
            answered = message.get("tool_call_id")
            if not answered:
                kinds = {}  # it answers the next call, whichever that is
            elif answered in kinds:
                rest = waiting[kinds[answered]]
                if not rest or rest.popleft() != answered:
                    return True
    return False


def _joined(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """`joined`, for which messages that came before are not looked at again."""
    if not isinstance(messages, Heard):
        return tuple(joined(messages))
    past, start = messages.past, 0
    if past is not None and past.is_apart:
        start = len(past.messages) - 1
    new = messages[start:]
    messages.whole.is_apart = joined(new) is new
    return messages if messages.whole.is_apart else tuple(joined(messages))


def _was_joined(messages: tuple[Message, ...], index: int) -> bool:
    """Whether one of the first `index + 1` joined messages was made of two of `messages`."""
    return len(joined(messages[: index + 2])) < len(messages[: index + 2])
