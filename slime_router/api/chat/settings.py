"""What a chat request asks for besides its messages: read once for all requests that agree.

The requests of one client differ in their messages, and hardly ever in their other fields. Those
are written as JSON again, which is the key: equal bytes are equal values, character by character
and number by number. What was read and checked for a key is used again as it is. It depends on
nothing else: not on the time, the session or the caller, nor on a header that is not in the key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from slime_router.api.chat.aliases import (
    count_logprobs,
    errors_in_their_names,
    normalize_aliases,
    thinking_switch,
)
from slime_router.api.chat.fields import ChatFields, read_fields, sampling, worker_fields
from slime_router.api.chat.grammar import grammar
from slime_router.api.chat.reply import ChatStyle
from slime_router.api.chat.tools import ToolChoice, read_tools, tool_choice
from slime_router.api.token_ids import Vocabulary
from slime_router.config import Config
from slime_router.engine.rules import parting
from slime_router.errors import BadRequest
from slime_router.replies.parsers import ReplyParsers
from slime_router.types import Grammar, ReplyFormat, Sampling, TemplateOptions
from slime_router.values import value

MAX_KEPT_LEN = 2**23  # bytes of settings that are remembered, about
_OWN_LEN = 2**12  # bytes of one, besides what the client has written
_SHARE = 8  # times the JSON, for that and the objects read from it
_MAX_SHARE = 16  # a longer one than this part of all is read each time
SCHEMA_NOTE = "the schema of the text does not apply to a forced call"
STRICT_NOTE = "'strict' tools are not enforced where the model may choose to call them"
_SHOWN_FIELDS = (  # what of a worker's answer the client sees
    *("return_hidden_states", "return_routed_experts", "routed_experts_start_len"),
    *("return_indexer_topk", "return_sampling_mask", "sampling_logprobs_mode"),
)
_IN_META_INFO = ("return_indexer_topk", "return_sampling_mask")  # what is shown nowhere else


@value(frozen=True, slots=True, kw_only=True)
class Settings:
    """The fields of a request that neither its messages nor its names change; nobody writes to it.

    `template` is that of a request which begins a new message. `parting` names what separates the
    caches, whoever the caller is. `notes` are for the receipt.
    """

    fields: ChatFields
    shown_tools: tuple[dict[str, Any], ...]
    template: TemplateOptions
    reply: ReplyFormat
    sampling: Sampling
    worker_fields: Mapping[str, Any]
    parting: str
    style: ChatStyle
    notes: tuple[str, ...] = ()


class SettingsReader:
    """Reads settings, and remembers those that were asked for last.

    `default_model` is the model's name for a request that gives none. `has_two_reasonings`: replies
    give reasoning under both of its names. `max_kept_len` 0 remembers nothing.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        default_model: str,
        parsers: ReplyParsers,
        *,
        has_two_reasonings: bool = False,
        max_kept_len: int = MAX_KEPT_LEN,
    ) -> None:
        self.vocabulary = vocabulary
        self._default_model = default_model
        self._parsers = parsers
        self._has_two_reasonings = has_two_reasonings
        self._max_kept_len = max_kept_len
        self._kept_len = 0
        self._kept: OrderedDict[bytes, Settings] = OrderedDict()

    @classmethod
    def of(
        cls,
        config: Config,
        vocabulary: Vocabulary,
        parsers: ReplyParsers,
        plugins: Collection[object],
    ) -> SettingsReader:
        """What reads them as the router is set. Plug-ins may write to what they get."""
        return cls(
            vocabulary,
            config.openai_default_model or config.model_name,
            parsers,
            has_two_reasonings=config.reasoning_field == "both",
            max_kept_len=0 if plugins else MAX_KEPT_LEN,
        )

    def __repr__(self) -> str:
        return f"<SettingsReader {len(self._kept)} kept, {self._kept_len} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, asked: Mapping[str, Any]) -> Settings:
        """The settings in these fields of a body.

        Raises:
            BadRequest: with the dotted path of the field at fault.
        """
        name = _written(asked) if self._max_kept_len else None
        if name is None:
            return self._read(asked)
        known = self._kept.get(name)
        if known is not None:
            self._kept.move_to_end(name)
            return known
        made = self._read(asked)
        self._keep(name, made)
        return made

    def _keep(self, name: bytes, settings: Settings) -> None:
        if _size(name) * _MAX_SHARE > self._max_kept_len:
            return
        self._kept[name] = settings
        self._kept_len += _size(name)
        while self._kept_len > self._max_kept_len:
            self._kept_len -= _size(self._kept.popitem(last=False)[0])

    def _read(self, asked: Mapping[str, Any]) -> Settings:
        said = normalize_aliases(asked, {}, self._default_model)
        with errors_in_their_names(asked):
            return self._of(said)

    def _of(self, said: dict[str, Any]) -> Settings:
        count_logprobs(said)
        fields = read_fields(said, self.vocabulary)
        _check_shown(fields)
        choice = tool_choice(
            read_tools(said),
            said.get("tool_choice"),
            can_force=self._parsers.tools is not None,
        )
        form = _reply_format(fields, choice)
        constraint = self._grammar(said, fields, form)
        return Settings(
            fields=fields,
            shown_tools=choice.shown,
            template=TemplateOptions(
                tools=choice.shown,
                add_generation_prompt=fields.add_generation_prompt is not False,
                kwargs=_template_kwargs(fields),
            ),
            reply=form,
            sampling=sampling(fields, constraint),
            worker_fields=_worker_fields(fields),
            parting=parting(said),
            style=self._style(fields),
            notes=_notes(said, form, constraint),
        )

    def _style(self, fields: ChatFields) -> ChatStyle:
        options = fields.stream_options
        return ChatStyle(
            model=self._default_model if fields.model is None else fields.model,
            logprobs=bool(fields.logprobs),
            tokens_as_ids=fields.return_tokens_as_token_ids,
            token_ids=bool(fields.return_token_ids),
            prompt_token_ids=bool(fields.return_token_ids or fields.return_prompt_token_ids),
            meta_info=bool(fields.return_meta_info),
            input_ids=bool(fields.return_input_ids_in_sglext),
            output_ids=bool(fields.return_output_ids_in_sglext),
            routed_experts=bool(fields.return_routed_experts),
            usage=options is not None and bool(options.include_usage),
            running_usage=options is not None and bool(options.continuous_usage_stats),
            two_reasonings=self._has_two_reasonings,
        )

    def _grammar(
        self, said: Mapping[str, Any], fields: ChatFields, form: ReplyFormat
    ) -> Grammar | None:
        """The client's own constraint, which leaves room for calls, or the one that forces one."""
        asked = grammar(said.get("response_format"), regex=fields.regex, ebnf=fields.ebnf)
        forced = self._parsers.constraint(form)
        if asked is None or (forced is not None and _has_schema(said)):
            return forced
        if forced is not None:
            raise BadRequest(
                "A forced tool call leaves no room for another constraint.", param="tool_choice"
            )
        return self._parsers.either(form, asked)


def _check_shown(fields: ChatFields) -> None:
    for name in _IN_META_INFO:
        if getattr(fields, name) and not fields.return_meta_info:
            raise BadRequest(f"'{name}' needs 'return_meta_info' to be true.", param=name)


def _has_schema(said: Mapping[str, Any]) -> bool:
    """Whether the text is to follow a schema: as at OpenAI, calls that are forced do not."""
    wanted = said.get("response_format")
    return isinstance(wanted, Mapping) and wanted.get("type") == "json_schema"


def _notes(
    said: Mapping[str, Any], form: ReplyFormat, constraint: Grammar | None
) -> tuple[str, ...]:
    """What of the request has no effect, in words for the receipt."""
    if form.is_forced:
        return (SCHEMA_NOTE,) if _has_schema(said) else ()
    is_strict = any(tool["function"].get("strict") for tool in form.tools)
    return (STRICT_NOTE,) if is_strict and constraint is None else ()


def _written(asked: Mapping[str, Any]) -> bytes | None:
    """The key of these fields; None where they cannot be written."""
    try:
        return orjson.dumps(asked)
    except TypeError:  # half a surrogate pair, say
        return None


def _size(name: bytes) -> int:
    return _OWN_LEN + _SHARE * len(name)


def _reply_format(fields: ChatFields, choice: ToolChoice) -> ReplyFormat:
    unwanted = False in (fields.separate_reasoning, fields.include_reasoning)
    return ReplyFormat(
        tools=choice.callable,
        is_forced=choice.is_forced,
        named=choice.named,
        is_parallel=fields.parallel_tool_calls is not False,
        separates_reasoning=not unwanted,
        streams_reasoning=fields.stream_reasoning is not False,
    )


def _template_kwargs(fields: ChatFields) -> dict[str, Any]:
    """What the client gives the template; an effort is spelled as the templates know it."""
    effort, documents = fields.reasoning_effort, fields.documents
    given: dict[str, Any] = {}
    if effort is not None:
        given = {**thinking_switch(is_on=effort != "none"), "reasoning_effort": effort}
    if documents is not None:
        given["documents"] = documents
    return {**given, **(fields.chat_template_kwargs or {})}


def _worker_fields(fields: ChatFields) -> dict[str, Any]:
    given = worker_fields(fields, *_SHOWN_FIELDS)
    if fields.logprobs:
        given["return_logprob"] = True  # also where nothing is captured for a trainer
    return given
