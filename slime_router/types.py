"""The vocabulary that all rooms share. Values only: frozen, and without I/O.

A generation is one `GenerateCall` that goes down the pipeline and a stream of `GenerateChunk`s
that comes back. Token ids travel as read-only int32 arrays of shape `[tokens]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

TokenIds: TypeAlias = NDArray[np.int32]
Message: TypeAlias = dict[str, Any]  # one chat message, a JSON object
History: TypeAlias = Literal["held", "template"]
Capture: TypeAlias = Literal["full", "tokens", "off"]
Resume: TypeAlias = Literal["chat", "all", "none"]  # which aborted generations are resumed
PolicyName: TypeAlias = Literal[
    "cache_aware", "least_inflight", "consistent_hashing", "power_of_two", "round_robin", "random"
]
WeightVersion: TypeAlias = str | int  # SGLang names them; they may not be comparable

NO_TOKENS: TokenIds = np.zeros(0, np.int32)
NO_TOKENS.setflags(write=False)


def token_ids(values: Any) -> TokenIds:
    """A read-only int32 copy of `values`; nobody can change it behind the owner's back."""
    ids = np.array(values, dtype=np.int32)
    ids.setflags(write=False)
    return ids


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens and its text.

    Cutting is safe: where a text is cut into pieces that nobody sampled,
    `concat(p.ids for p in pieces) == encode(concat(p.text for p in pieces))`.
    """

    text: str
    ids: TokenIds
    is_sampled: bool = False


@dataclass(frozen=True, slots=True)
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
        """Its fields by name; the notes only where there are any."""
        fields = asdict(self)
        if not self.notes:
            del fields["notes"]
        return fields


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a worker is sent, and where it came from.

    Slice equation: `ids[:base_len] == held(base)[:base_len]`, where `base` is the turn that the
    prompt continues (`base_len == len(held(base))`) or branches off (`base_len` is less).
    `pieces` are the tokens after those the tree holds already under `tree_handle`. The reply will
    be filed under `messages_key`; `reply_prefix` is what the client wrote of it already.
    """

    ids: TokenIds
    receipt: Receipt
    base: str | None = None
    base_len: int = 0
    date: str | None = None
    pieces: tuple[Piece, ...] = ()
    tree_handle: Any = None  # a pinned node of the radix tree; only the cache looks inside
    messages_key: bytes | None = None
    spelling: bytes = b""  # how the replies among the messages are spelled
    reply_prefix: str = ""
    is_reserved: bool = False  # `base` is this prompt's until it is released
    own_ids: TokenIds | None = None  # the tokens of `pieces`, of which those are slices

    def tail(self, start: int) -> TokenIds:
        """The tokens from `start` on, in memory of their own or of `pieces`."""
        if self.own_ids is not None and len(self.ids) - len(self.own_ids) == start:
            return self.own_ids
        return token_ids(self.ids[start:])


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the output, in one of the forms a worker's grammar back end knows."""

    kind: Literal["json_schema", "regex", "ebnf", "structural_tag"]
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. None means that the client did not say: then the worker is not sent it either.

    `max_tokens` None runs to the end of the context.
    """

    max_tokens: int | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """What a chat template is rendered with besides the messages."""

    tools: tuple[dict[str, Any], ...] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFormat:
    """How a reply is taken apart. `named` is the one tool that must be called."""

    tools: tuple[dict[str, Any], ...] = ()  # those the model may call
    is_forced: bool = False  # at least one call must come
    named: str | None = None
    is_parallel: bool = True
    separates_reasoning: bool = True
    streams_reasoning: bool = True


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """A piece of a tool call: first its id and name, then its arguments bit by bit.

    An id that is not random was written by the model, or counted: other samples have it, too.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str
    has_random_id: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """One generation asked for. Exactly one of `messages`, `text`, `input_ids` is given.

    `prompt` is None until the pipeline has made it. `native` is the body of a
    `/generate` request in the worker's own spelling; its fields reach the worker untouched.
    `scope` parts the caches (adapter, cache salt, extra key): prompts never cross it.
    """

    rid: str
    turn_id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    input_ids: TokenIds | None = None
    template: TemplateOptions = field(default_factory=TemplateOptions)
    history: History | None = None
    session_id: str | None = None
    scope: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    native: Mapping[str, Any] | None = None
    worker_fields: Mapping[str, Any] = field(default_factory=dict)  # top level, chat doors only
    headers: Mapping[str, str] = field(default_factory=dict)  # handed on to the worker
    stream: bool = False
    top_logprobs: int = 0
    prompt: Prompt | None = None
    reply: ReplyFormat = field(default_factory=ReplyFormat)
    request_id: str = ""  # shared by the samples of one prompt that were asked for together
    samples: int = 1  # how many those are
    defaults: Sampling | None = None  # the session's; what a native body says itself wins
    token_limit: int | None = None  # at most so many output tokens, whatever the client says
    wants_routed_experts: bool = False  # the session does; the client need not
    sampled: TokenIds = field(default_factory=lambda: NO_TOKENS)  # of this reply, by another worker
    asked_as: str = ""  # the rid that the client knows, where it is not `rid`


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a generation ended. `matched` is the stop token's id or the stop string."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str | None = None
    status_code: int | None = None


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Output tokens `[start, end)` were sampled under `version`."""

    version: WeightVersion
    start: int
    end: int


@dataclass(slots=True, kw_only=True)
class GenerateChunk:
    """What came since the chunk before. The last chunk has `finish`.

    `logprobs`, where present, has one entry per output id; None stands for one that the worker
    did not give or that is not finite. `prompt` is on the first chunk. `text` is the content
    that a chat client sees, beside `reasoning` and `tool_calls`. `item` is the worker's own JSON
    object, as it came.
    """

    output_ids: list[int]
    logprobs: list[float | None] | None = None
    top_logprobs: list[list[tuple[float, int]]] | None = None
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
    item: dict[str, Any] | None = None
    worker_url: str = ""
