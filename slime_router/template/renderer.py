"""Rendering: messages to the prompt text that the model's format makes of them.

The usual form is a Jinja template, which runs in the sandbox of `transformers` as it does on a
worker. Formats that are written in Python are in `checkpoint/`: `python_formats.py`, `tekken.py`.
"""

from __future__ import annotations

import inspect
import marshal
import re
from collections import ChainMap
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson
from jinja2 import Template, TemplateSyntaxError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from slime_router.errors import BadRequest, SetupError, one_line
from slime_router.json_text import escaped_halves
from slime_router.template.forms.forms import Forms
from slime_router.template.forms.watched import watching
from slime_router.types import Message, TemplateOptions

_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:(["'])(.*?)\1\s*\))?""")
# A template sees plain values only, so its clock is pinned by a table of the formats it asks for.
# Jinja swallows the line break; the template itself still starts on a new line.
_CLOCK = "strftime_now"
_PINNED_DATES = "pinned_dates"
_PIN = f"{{% set strftime_now = {_PINNED_DATES}.get %}}\n"
_OF_ALL_DICTS = frozenset(dir(dict))
_OF_TEXTS = frozenset(n for n in dir(str) if not n.startswith("_")) - {"format", "format_map"}
_HELLO: Message = {"role": "user", "content": "Hello"}
_OF_JINJA = (Namespace, LoopContext)

_REASONING, _OTHER_REASONING = "reasoning_content", "thinking"
# What `transformers` hands on to the template as it is, as far as a probe shows it.
_HANDED_ON = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_SHOWN = "".join(
    f"{{{{ {name} | tojson }}}}"
    for name in ("messages", "tools", "documents", "add_generation_prompt", "more")
)
_EXACT = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


class JinjaRenderer:
    """One chat template, rendered by one tokenizer of `transformers`. Never changes."""

    is_jinja = True

    def __init__(self, hf: Any, template: str) -> None:
        """`hf` may render in its own way, as tokenizers with Python code do."""
        self._hf = hf
        self._template = self.source = template
        # Takes seconds to import; whoever has a tokenizer has done so.
        from transformers import PreTrainedTokenizerBase
        from transformers.utils import chat_template_utils

        shared = PreTrainedTokenizerBase.apply_chat_template
        self._renders_itself = type(hf).apply_chat_template is not shared
        self._render_jinja = chat_template_utils.render_jinja_template
        # A variable that the template does not name has no effect, and costs time to check.
        self._known = {
            name: token
            for name, token in ({} if self._renders_itself else hf.special_tokens_map).items()
            if name in template
        }
        self.has_developer_role = "developer" in template
        # Through these, a client would steer the call itself; `documents` are the template's.
        parameters = inspect.signature(_base_method(hf)).parameters.keys()
        self._reserved = parameters - {"self", "kwargs", "documents"} | {_PINNED_DATES, "messages"}
        calls = _DATE_CALL.findall(template)
        self._date_formats = {date_format for _, date_format in calls}
        self._can_pin = bool(calls) and "" not in self._date_formats
        self._forms = Forms()
        self._watching: dict[str, Template | None] = {}  # by their sources
        self._compiled: dict[str, Template] = {}  # those that may be given plain values directly
        self._handed_on: frozenset[str] = frozenset()
        self._compile = getattr(chat_template_utils, "_compile_jinja_template", None)

    def render(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str:
        """Render `messages`; the template's clock shows `date`, if one is given.

        A clock whose format is not written out in the template is not pinned.

        Raises:
            BadRequest: The template refused the messages; in its own words.
        """
        if refused := options.kwargs.keys() & self._reserved:
            name = min(refused)
            raise BadRequest(
                f"{name!r} is not an argument of a chat template.",
                param=f"chat_template_kwargs.{name}",
            )
        template, kwargs = self._template, dict(options.kwargs)
        if date is not None and self._can_pin:
            template = _PIN + template
            kwargs[_PINNED_DATES] = {each: date.strftime(each) for each in self._date_formats}
        about = partial(self._about, template, options, kwargs)
        render = partial(self._apply, template, options, kwargs)
        watch = partial(self._watch, template, options, kwargs)
        try:
            text = self._forms.rendered(messages, about, render, watch)
            return escaped_halves(text)  # of a call's arguments: no tokenizer takes them otherwise
        except Exception as exc:  # a template is a program: on a client's messages it may raise any
            reason = f"The chat template cannot render these messages: {one_line(exc)}"
            raise BadRequest(reason, param="messages") from exc

    def compile(self) -> None:
        """Compile the template; `SetupError` if it is not Jinja."""
        try:
            self._apply(self._template, TemplateOptions(), {}, [_HELLO])
        except TemplateSyntaxError as exc:
            raise SetupError(f"bad chat template: {one_line(exc)}") from exc
        except Exception:  # noqa: BLE001 - it may refuse such messages; its syntax matters here
            pass
        if self._compile is not None and not self._renders_itself:
            pinned = [_PIN + self._template] if self._can_pin else []
            for source in (self._template, *pinned):
                compiled = self._compile(source)
                _make_cheaper(compiled)
                self._watching[source] = watching(compiled, source)
                if type(compiled.environment) is ImmutableSandboxedEnvironment:
                    self._compiled[source] = compiled
            self._handed_on = _handed_on(self._render_jinja, self._compile)

    def _apply(
        self,
        template: str,
        options: TemplateOptions,
        kwargs: Mapping[str, Any],
        messages: Sequence[Message],
    ) -> str:
        goes_on = options.continue_final_message
        compiled = None if goes_on or "documents" in kwargs else self._compiled.get(template)
        if compiled is not None:
            chat = _as_handed_on(messages, self._handed_on, [options.tools, kwargs])
            if chat is not None:
                return self._directly(compiled, options, kwargs, chat)
        settings: dict[str, Any] = {
            "tools": list(options.tools) or None,
            "chat_template": template,
            "add_generation_prompt": options.add_generation_prompt and not goes_on,
            "continue_final_message": goes_on,
            **kwargs,
        }
        text: str
        if self._renders_itself:
            text = self._hf.apply_chat_template(list(messages), tokenize=False, **settings)
        else:  # without the wrapper, which takes a content that is null from the messages
            text = self._render_jinja([list(messages)], **{**self._known, **settings})[0][0]
        return text

    def _about(
        self, template: str, options: TemplateOptions, kwargs: Mapping[str, Any]
    ) -> Hashable | None:
        """All but the messages that a rendering depends on; None where it may be something else."""
        has_clock = template is self._template and _CLOCK in template
        if options.continue_final_message or has_clock or self._renders_itself:
            return None
        if not (kwargs or options.tools):
            return options.add_generation_prompt
        try:
            written = orjson.dumps([options.tools, kwargs])
        except TypeError:  # JSON cannot say it
            return None
        return options.add_generation_prompt, blake2b(written, digest_size=16).digest()

    def _watch(
        self,
        template: str,
        options: TemplateOptions,
        kwargs: Mapping[str, Any],
        messages: Sequence[Message],
    ) -> str:
        """The same for texts that are watched: `transformers` would make plain texts of them."""
        watched = self._watching.get(template)
        if watched is None:
            raise ValueError("what this template does with a text cannot be watched")
        return self._directly(watched, options, kwargs, messages)

    def _directly(
        self,
        compiled: Template,
        options: TemplateOptions,
        kwargs: Mapping[str, Any],
        messages: Sequence[Message],
    ) -> str:
        """The same without `transformers`, which would make plain values of all of them."""
        return compiled.render(
            {**self._known, **kwargs},
            messages=messages,
            tools=list(options.tools) or None,
            documents=None,
            add_generation_prompt=options.add_generation_prompt,
        )


def _as_handed_on(
    messages: Sequence[Message], fields: frozenset[str], others: Sequence[object]
) -> list[Message] | None:
    """The messages as `transformers` gives them to a template; None where only it knows.

    It makes copies of all values, and of nothing else if they have JSON's own types; that takes
    longer than most templates. What both writers below take is made of these types and no others.
    """
    chat, odd = [], [*others]
    for message in messages:
        if type(message) is not dict or not fields.issuperset(message):
            return None
        if {*map(type, message), *map(type, message.values())} != {str}:
            odd.append(message)
        if (reasoning := message.get(_REASONING)) is not None:
            message = {_OTHER_REASONING: reasoning, **message}  # the name that gpt-oss has for it
        chat.append(message)
    try:
        orjson.dumps(odd, option=_EXACT)
        marshal.dumps(odd, 2)  # without references, which take longer
    except (TypeError, ValueError):
        return None
    return chat


def _handed_on(
    render_jinja: Callable[..., Any], compile_jinja: Callable[[str], Any]
) -> frozenset[str]:
    """The fields of messages that make no difference if the template is given them directly.

    It is tried with one that shows all that it is given: another release of `transformers` may add
    to a message, or leave out of it.
    """
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, None, "b"]}}}
    plain: list[Message] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "b", "tool_call_id": "c"},
    ]
    thought: list[Message] = [{"role": "assistant", _REASONING: each} for each in ("b", "", None)]
    found: frozenset[str] = frozenset()
    for fields, chat in ((_HANDED_ON, plain), (_HANDED_ON | {_REASONING}, [*plain, *thought])):
        for tools in ([call], None):
            rest = {"tools": tools, "add_generation_prompt": True, "more": {"a": [False, 1.5]}}
            shown = render_jinja([chat], chat_template=_SHOWN, **rest)[0][0]
            given = _as_handed_on(chat, fields, ())
            if shown != compile_jinja(_SHOWN).render(rest, messages=given, documents=None):
                return found
        found = fields
    return found


def _make_cheaper(compiled: Any) -> None:
    """Has a template render the same with less work, as far as it is one that we know."""
    if isinstance(getattr(compiled, "globals", None), ChainMap):
        # Each rendering copies them, name by name where they are a chain of mappings.
        compiled.globals = dict(compiled.globals)
    environment = getattr(compiled, "environment", None)
    if type(environment) is ImmutableSandboxedEnvironment:
        environment.getattr = _quick_getattr(environment)  # type: ignore[assignment, method-assign]


def _quick_getattr(environment: ImmutableSandboxedEnvironment) -> Callable[[Any, str], Any]:
    """What the sandbox gives for `obj.attribute`, sooner where it has nothing to guard.

    It looks for a field of a message among the attributes of all dictionaries first, and asks of
    texts, loops and namespaces whether they are frames, coroutines, sets or lists.
    """
    guarded, missing = environment.getattr, environment.undefined

    def attribute_of(obj: Any, attribute: str) -> Any:
        if type(obj) is dict:
            if attribute not in _OF_ALL_DICTS:
                return obj[attribute] if attribute in obj else missing(obj=obj, name=attribute)
        elif type(obj) is str:
            if attribute in _OF_TEXTS:
                return getattr(obj, attribute)
        elif isinstance(obj, _OF_JINJA) and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if value is not None and not callable(value):
                return value
        return guarded(obj, attribute)

    return attribute_of


def _base_method(hf: Any) -> Any:
    """`apply_chat_template` as `transformers` defines it: more in a subclass is the template's."""
    owners = [each for each in type(hf).__mro__ if "apply_chat_template" in vars(each)]
    return vars(owners[-1])["apply_chat_template"]
