"""Rendering: messages to the prompt text that the model's format makes of them.

The usual form is a Jinja template, which runs in the sandbox of `transformers` as it does on a
worker. Formats that are written in Python are in `checkpoint/`: `python_formats.py`, `tekken.py`.
"""

from __future__ import annotations

import inspect
import marshal
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from jinja2 import TemplateSyntaxError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from slime_router.errors import BadRequest, SetupError, one_line
from slime_router.json_text import escaped_halves
from slime_router.types import Message, TemplateOptions

_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:(["'])(.*?)\1\s*\))?""")
# A template sees plain values only, so its clock is pinned by a table of the formats it asks for.
# Jinja swallows the line break; the template itself still starts on a new line.
_PINNED_DATES = "pinned_dates"
_PIN = f"{{% set strftime_now = {_PINNED_DATES}.get %}}\n"
_OF_ALL_DICTS = frozenset(dir(dict))
_OF_TEXTS = frozenset(n for n in dir(str) if not n.startswith("_")) - {"format", "format_map"}
_OF_JINJA = (Namespace, LoopContext)

# Fields of a message that `transformers` hands on as they are, as far as a probe shows it.
_HANDED_ON = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_SHOWN = "".join(
    f"{{{{ {name} | tojson }}}}"
    for name in ("messages", "tools", "documents", "add_generation_prompt", "more")
)
_TEXTS = frozenset({str, type(None)})
_EXACT = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


class JinjaRenderer:
    """One chat template, rendered by one tokenizer of `transformers`. Never changes."""

    is_jinja = True

    def __init__(self, hf: Any, template: str) -> None:
        """`hf` may render in a way of its own, as tokenizers with Python code do."""
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
        self._compile = getattr(chat_template_utils, "_compile_jinja_template", None)
        self._compiled: dict[str, Any] = {}  # of templates that plain values may be given directly

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
        try:
            return self._apply(template, messages, options, kwargs)
        except Exception as exc:  # a template is a program: on a client's messages it may raise any
            reason = f"The chat template cannot render these messages: {one_line(exc)}"
            raise BadRequest(reason, param="messages") from exc

    def check(self, name: str) -> None:
        """Compile the template; `SetupError` if it is not Jinja."""
        try:
            self._apply(
                self._template, [{"role": "user", "content": "Hello"}], TemplateOptions(), {}
            )
        except Exception as exc:  # it may refuse such messages; only its syntax matters here
            if isinstance(exc, TemplateSyntaxError):
                raise SetupError(f"{name}: bad chat template: {one_line(exc)}") from exc
        if self._compile is None or self._renders_itself:
            return
        sources = (self._template, _PIN + self._template)
        compiled = {source: self._compile(source) for source in sources}
        for each in compiled.values():
            _make_cheaper(each)
        if _hands_on(self._render_jinja, self._compile):
            self._compiled = compiled

    def _apply(
        self,
        template: str,
        messages: Sequence[Message],
        options: TemplateOptions,
        kwargs: Mapping[str, Any],
    ) -> str:
        goes_on = options.continue_final_message
        chat, settings = list(messages), {**self._known, **kwargs}
        settings["tools"] = list(options.tools) or None
        settings["add_generation_prompt"] = options.add_generation_prompt and not goes_on
        text: str
        compiled = None if goes_on else self._compiled.get(template)
        if compiled is not None and _is_handed_on(chat, settings):
            text = compiled.render(settings, messages=chat, documents=None)
            return escaped_halves(text)
        settings |= {"chat_template": template, "continue_final_message": goes_on}
        if self._renders_itself:
            text = self._hf.apply_chat_template(chat, tokenize=False, **settings)
        else:  # without the wrapper, which takes a content that is null from the messages
            text = self._render_jinja([chat], **settings)[0][0]
        return escaped_halves(text)  # of a call's arguments: no tokenizer takes them otherwise


def _is_handed_on(chat: list[Message], settings: Mapping[str, Any]) -> bool:
    """Whether `transformers` would give the template copies of these values, and nothing else.

    It rebuilds all of them of JSON's own types, which takes longer than most templates.
    """
    if "documents" in settings or not all(map(_HANDED_ON.issuperset, chat)):
        return False
    richer = [m for m in chat if not _TEXTS.issuperset(map(type, m.values()))]
    return _is_json([richer, settings])


def _is_json(value: Any) -> bool:
    """Whether it is made of JSON's own types: both writers take these, and together no others."""
    try:
        orjson.dumps(value, option=_EXACT)
        marshal.dumps(value, 2)  # without references, which take longer
    except (TypeError, ValueError):
        return False
    return True


def _hands_on(render_jinja: Callable[..., Any], compile_jinja: Callable[[str], Any]) -> bool:
    """Whether a template that shows all that it is given shows the same if it is given it directly.

    Another release of `transformers` may add to a message, or leave out of it.
    """
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, None, "b"]}}}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "b", "tool_call_id": "c"},
    ]
    for tools in ([call], None):
        settings = {"tools": tools, "add_generation_prompt": True, "more": {"a": [False, 1.5]}}
        shown = render_jinja([chat], chat_template=_SHOWN, **settings)[0][0]
        if shown != compile_jinja(_SHOWN).render(settings, messages=chat, documents=None):
            return False
    return True


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
