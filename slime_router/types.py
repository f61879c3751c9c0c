"""The vocabulary that all rooms share. Values only: frozen, and without I/O.

A generation is one `GenerateCall` that goes down the pipeline and a stream of `GenerateChunk`s
that comes back. Token ids travel as read-only int32 arrays of shape `[tokens]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from slime_router.choices import History
from slime_router.shortcut.shortcut import Shortcut
from slime_router.values import replace, value

TokenIds: TypeAlias = NDArray[np.int32]
Message: TypeAlias = dict[str, Any]  # one chat message, a JSON object
WeightVersion: TypeAlias = str | int  # SGLang names them; they may not be comparable
TurnKind: TypeAlias = Literal["main", "retry", "subagent", "compaction"]


def token_ids(values: Any) -> TokenIds:
    """A read-only int32 copy of `values`; nobody can change it behind the owner's back."""
    ids = np.array(values, dtype=np.int32)
    ids.setflags(write=False)
    return ids


NO_TOKENS = token_ids(())


@value(frozen=True, slots=True)
class Piece:
    """A run of tokens and its text. Cutting is safe: of pieces that nobody sampled,
    `concat(p.ids for p in pieces) == encode(concat(p.text for p in pieces))`.
    """

    text: str
    ids: TokenIds
    is_sampled: bool = False


@value(frozen=True, slots=True)
class Receipt:
    """What was done to make a prompt. `reused + encoded` is the number of prompt tokens.

    extended: the prompt begins with all held tokens of a recorded turn
    branched: the conversation is known, but the prompt leaves the held tokens before their end
    fresh:    no recorded turn is continued

    `notes` say what else the client should know: what was left out or not read.
    """

    status: Literal["extended", "branched", "fresh"]
    reused: int
    encoded: int
    turn: str
    reason: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line of ASCII JSON, fit for an HTTP header."""
        return orjson.dumps(self.to_dict()).decode("ascii", "replace")

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; notes only if there are any."""
        named = {"status": self.status, "reused": self.reused, "encoded": self.encoded}
        said = {"turn": self.turn, "reason": self.reason}
        return {**named, **said, "notes": self.notes} if self.notes else {**named, **said}


@value(frozen=True, slots=True)
class Prompt:
    """What a worker is sent, and where it came from.

    Slice equation: `ids[:base_len] == held(base)[:base_len]`, where `base` is the turn that the
    prompt continues (`base_len == len(held(base))`) or branches off (`base_len` is less).
    The reply is filed under `messages_key`; the client wrote `reply_prefix` of it already.
    """

    ids: TokenIds
    receipt: Receipt
    base: str | None = None
    base_len: int = 0
    date: str | None = None
    messages_key: bytes | None = None
    spelling: bytes = b""  # how the replies among the messages are spelled
    reply_prefix: str = ""
    own_ids: TokenIds | None = None  # its last tokens in memory of their own, where they have it
    conversation: str = ""  # where no session is named: what its turns go together by
    new_messages: int | None = None  # after those of `base` and its reply; None: they are not that

    def tail(self, start: int) -> TokenIds:
        """The tokens from `start` on, in memory of their own or in `own_ids`."""
        if self.own_ids is not None and len(self.ids) - len(self.own_ids) == start:
            return self.own_ids
        return token_ids(self.ids[start:])


@value(frozen=True, slots=True)
class Grammar:
    """A constraint on the output, in one of the forms a worker's grammar back end knows."""

    kind: Literal["json_schema", "regex", "ebnf", "structural_tag"]
    value: str


@value(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. None means that the client did not say: then the worker is not sent it either.

    `max_tokens` None runs to `usual_max_tokens`, an API's own, or else to the end of the context.
    """

    max_tokens: int | None = None
    usual_max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool | None = None
    seed: int | None = None
    logit_bias: Mapping[str, float] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool | None = None
    keep_stop: bool = False  # a matched stop stays in the text
    grammar: Grammar | None = None
    custom_params: Mapping[str, Any] | None = None

    def pinned(self, pins: Pins) -> Sampling:
        """This, with what is pinned in place of its own."""
        said = {name: getattr(pins.sampling, name) for name in pins.names}
        longest = said.get("max_tokens")
        if longest is not None and "min_tokens" not in said and (self.min_tokens or 0) > longest:
            said["min_tokens"] = longest
        return replace(self, **said)

    def over(self, defaults: Sampling) -> Sampling:
        """This, with `defaults` for everything that it does not say."""
        empty = Sampling()
        unsaid = {
            each.name: getattr(defaults, each.name)
            for each in fields(Sampling)
            if getattr(self, each.name) == getattr(empty, each.name)
            and getattr(defaults, each.name) != getattr(empty, each.name)
        }
        return replace(self, **unsaid) if unsaid else self


@value(frozen=True, slots=True, kw_only=True)
class Pins:
    """Sampling that holds whatever a request says: the fields `names` of `sampling`.

    Where it has None for one, the worker does what it does by itself.
    """

    names: tuple[str, ...] = ()
    sampling: Sampling = Sampling()

    def over(self, others: Pins) -> Pins:
        """These pins, and of `others` those that these do not name."""
        names = tuple(name for name in others.names if name not in self.names)
        rest = {name: getattr(others.sampling, name) for name in names}
        return Pins(names=(*self.names, *names), sampling=replace(self.sampling, **rest))


@value(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """What a chat template is rendered with besides the messages."""

    tools: tuple[dict[str, Any], ...] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class ReplyFormat:
    """How a reply is taken apart. `named` is the one tool that must be called."""

    tools: tuple[dict[str, Any], ...] = ()  # those the model may call
    is_forced: bool = False  # at least one call must come
    named: str | None = None
    is_parallel: bool = True
    separates_reasoning: bool = True
    streams_reasoning: bool = True


@value(frozen=True, slots=True)
class ToolDelta:
    """A piece of a tool call: first its id and name, then its arguments bit by bit.

    An id that is not random was written by the model, or counted: other samples have it, too.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str
    has_random_id: bool = True


@value(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """One generation, asked for by `messages`, `text` or `input_ids`; `prompt` is made of these.

    Prompts never cross `scope`: adapter, cache salt, extra key. `/generate` asks by `NativeCall`s.
    """

    is_passed_on: ClassVar[bool] = False  # the client gets the worker's own items, as they are

    rid: str
    turn_id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    input_ids: TokenIds | None = None
    prefix_ids: TokenIds | None = None  # its prompt begins with these, or it is refused
    ids_text: bytes | memoryview = b""  # the JSON array that `input_ids` came as, if it was kept
    template: TemplateOptions = TemplateOptions()
    history: History | None = None
    session_id: str | None = None
    scope: str = ""
    sampling: Sampling = Sampling()
    worker_fields: Mapping[str, Any] = field(default_factory=dict)  # at top level
    headers: Mapping[str, str] = field(default_factory=dict)  # handed on to the worker
    stream: bool = False
    top_logprobs: int = 0
    prompt: Prompt | None = None
    reply: ReplyFormat = ReplyFormat()
    request_id: str = ""  # shared by the samples of one prompt that were asked for together
    samples: int = 1  # how many those are
    token_limit: int | None = None  # at most so many output tokens, whatever the client says
    wants_routed_experts: bool = False  # the session does; the client need not
    wants_indexer_topk: bool = False  # likewise
    kept_tops: int = 0  # likeliest tokens at each position that are recorded; likewise
    thinks_first: bool = False  # its grammar, or its budget, waits for the reasoning
    mask_top_k: int | None = None  # the top_k of a truncated sampling that has none
    masks_refused: bool = False  # a worker has refused to capture what it samples from
    notes: tuple[str, ...] = ()  # for the receipt
    sampled: TokenIds = field(default_factory=lambda: NO_TOKENS)  # of this reply, by another worker
    pictures: tuple[str, ...] = ()  # their digests, as they stand in `messages`
    asked_as: str = ""  # the rid that the client knows, where it is not `rid`
    kv_session: str = ""  # what workers call its session, where they tag its KV
    kind: TurnKind | None = None  # what the client says that its turn is
    shows_items: bool = False  # the client sees a part of the worker's last item
    shortcut: Shortcut[GenerateChunk] | None = None  # of a stream alone, for its plain chunks

    @property
    def asked(self) -> Mapping[str, Any]:
        """What the client asked for in the worker's own fields, at top level."""
        return self.worker_fields

    def asking(self, fields: Mapping[str, Any]) -> GenerateCall:
        """The call with these for `asked`."""
        return replace(self, worker_fields=fields)

    def under(self, defaults: Sampling) -> GenerateCall:
        """The call with a session's defaults for whatever it does not say itself."""
        return replace(self, sampling=self.sampling.over(defaults))

    def pinned(self, pins: Pins) -> GenerateCall:
        """The call with these pins in place of what it says."""
        return replace(self, sampling=self.sampling.pinned(pins))


@value(frozen=True, slots=True, kw_only=True)
class NativeCall(GenerateCall):
    """A `/generate` request: `body` is the client's, in the worker's own spelling.

    Its fields reach the worker untouched; a session's `defaults` lie beneath them, `pins` above.
    """

    is_passed_on: ClassVar[bool] = True

    body: Mapping[str, Any] = field(default_factory=dict)
    defaults: Sampling | None = None
    pins: Pins | None = None

    @property
    def asked(self) -> Mapping[str, Any]:
        """The client's own body."""
        return self.body

    def asking(self, fields: Mapping[str, Any]) -> NativeCall:
        """The call with this body."""
        return replace(self, body=fields)

    def under(self, defaults: Sampling) -> NativeCall:
        """The call with a session's defaults beneath its body."""
        return replace(self, defaults=defaults)

    def pinned(self, pins: Pins) -> NativeCall:
        """The call with these pins above its body."""
        return replace(self, pins=pins)


@value(frozen=True, slots=True)
class Finish:
    """Why a generation ended. `matched` is the stop token's id or the stop string."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str | None = None
    status_code: int | None = None


@value(frozen=True, slots=True)
class VersionSpan:
    """Output tokens `[start, end)` were sampled under `version`."""

    version: WeightVersion
    start: int
    end: int


class Speculation(NamedTuple):
    """What speculative decoding did for a generation.

    verifications: forward passes in which drafts were verified
    proposed:      draft tokens that were verified
    accepted:      those of them that became output
    """

    verifications: int
    proposed: int
    accepted: int

    def plus(self, other: Speculation | None) -> Speculation:
        """Of two parts of one generation together."""
        return self if other is None else Speculation(*map(sum, zip(self, other, strict=True)))


class GenerateChunk(NamedTuple):
    """What came since the chunk before. The last chunk has `finish`.

    A chunk holds still: `changed` makes another one. (A named tuple: one is made for each token.)

    `logprobs`, where present, has one entry per output id; None stands for one that the worker
    did not give or that is not finite. `prompt` is on the first chunk. `text` is the content
    that a chat client sees, beside `reasoning` and `tool_calls`. `item` is the worker's own JSON
    object, as it came. `sample` numbers the sample, of those that were asked for together.

    `masks`, where present, has for each output id the ids that it was sampled from, and
    `mask_logprobs` its log-probability among those. `uncaptured` says why there are none of tokens
    that were sampled from a part of the vocabulary.
    """

    output_ids: Sequence[int]
    logprobs: Sequence[float | None] | None = None
    top_logprobs: Sequence[Sequence[tuple[float, int]]] | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    reasoning_tokens: int = 0
    hidden_calls: int = 0  # that were sampled and are not shown: calls were not to be parallel
    finish: Finish | None = None
    prompt: Prompt | None = None
    receipt: Receipt | None = None  # on the last chunk, where it says more than the prompt's
    prompt_tokens: int = 0
    cached_tokens: int = 0
    weight_version: WeightVersion | None = None
    weight_versions: tuple[VersionSpan, ...] = ()
    routed_experts: str | None = None  # base64 of int32, as the worker wrote it; on the last chunk
    routed_experts_start: int = 0  # the position of the first of them
    indexer_topk: str | None = None  # likewise, of all positions
    masks: Sequence[Sequence[int]] | None = None
    mask_logprobs: Sequence[float] | None = None
    uncaptured: str = ""
    item: dict[str, Any] | None = None
    worker_url: str = ""
    sample: int = 0
    speculation: Speculation | None = None  # on the last chunk, where the worker reports it

    def changed(self, **fields: Any) -> GenerateChunk:
        """A copy with these fields changed."""
        return self._replace(**fields)

    def cut(self, start: int, end: int) -> GenerateChunk:
        """A copy with the output tokens `[start, end)` alone; all else is as it was."""
        part = slice(start, end)
        logprobs, tops = self.logprobs, self.top_logprobs
        return self._replace(
            output_ids=self.output_ids[part],
            logprobs=logprobs and logprobs[part],
            top_logprobs=tops and tops[part],
            masks=self.masks and self.masks[part],
            mask_logprobs=self.mask_logprobs and self.mask_logprobs[part],
        )
