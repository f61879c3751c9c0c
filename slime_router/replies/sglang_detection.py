"""SGLang's own detection of a model's reply formats, without SGLang's engine.

Its rules look at the chat template and at the names of the tokens; for a checkpoint that has no
template, at the architecture. They live in a module that also writes the engine's settings: where
torch is not installed, those are stood in for, and nothing that is called here uses them.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

from slime_router.checkpoint.sglang_entry import import_from_sglang
from slime_router.errors import SetupError, one_line
from slime_router.replies.sglang_parsers import MISSING, NamedTokens, load_parsers

logger = logging.getLogger(__name__)

_RULES = "parser.template_detection"
_SETTINGS = "sglang.srt.arg_groups"
_HUB = "sglang.srt.utils.hf_transformers_utils"
_FLAGS = ("reasoning_parser", "tool_call_parser")
_UNKNOWN_THINKING = "SGLang's rules do not say whether this chat template thinks: %s"
_EXPLICIT = "explicit_"  # of a mode: it has to be turned on


class Model(Protocol):
    """What is known of a loaded model; `slime_router.tokens.tokenizer` has it."""

    jinja_template: str | None
    architectures: tuple[str, ...]
    model_type: str

    def mark_names(self) -> Collection[str]:
        """The names of its tokens that may be marks of a format."""


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What the formats of a model are known by. `tokens` are the names of those that may be marks.

    SGLang's rules walk through all that they are given, up to four times.
    """

    template: str | None
    tokens: Collection[str] = ()
    architectures: tuple[str, ...] = ()
    model_type: str = ""

    @classmethod
    def of(cls, model: Model) -> ModelTraits:
        """The traits of a loaded model."""
        return cls(
            template=model.jinja_template,
            tokens=model.mark_names(),
            architectures=model.architectures,
            model_type=model.model_type,
        )


@dataclass(frozen=True, slots=True)
class Detected:
    """SGLang's names of a model's formats; None where it knows none."""

    tools: str | None
    reasoning: str | None


def detect(model: ModelTraits) -> Detected:
    """What SGLang takes for `auto` where it serves this model.

    Raises:
        SetupError: SGLang is not installed or too old, or its rules fail on this model.
    """
    load_parsers()
    try:
        rules = _load_rules()
        if model.template is None:
            return _by_architecture(rules, model)
        is_forced, toggle = rules.detect_reasoning_pattern(model.template)
        given = (model.template, NamedTokens(model.tokens), toggle, is_forced)
        return Detected(
            tools=rules.detect_tool_call_parser(*given),
            reasoning=rules.detect_reasoning_parser(*given),
        )
    except (ImportError, AttributeError) as exc:
        raise SetupError(f"{MISSING} ({exc})") from exc
    except Exception as exc:  # SGLang's rules may raise anything on a template
        raise SetupError(f"no format can be detected: {one_line(exc)}") from exc


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether a model thinks before it answers, where neither prompt nor reply shows it yet.

    Attributes:
        default: whether it does where the request says nothing.
        switch: the template's argument that turns it on and off; None: nothing does.
        by_effort: an effort decides, and `none` turns it off.
    """

    default: bool = False
    switch: str | None = None
    by_effort: bool = False

    @classmethod
    def of_mode(cls, mode: str) -> Thinking:
        """By what SGLang's parser of a format says: `always`, `mistral`, or a switch."""
        if mode in ("", "always", "mistral"):
            return cls(default=mode == "always", by_effort=mode == "mistral")
        return cls(default=not mode.startswith(_EXPLICIT), switch=mode.removeprefix(_EXPLICIT))

    def holds(self, kwargs: Mapping[str, Any]) -> bool:
        """The same with these arguments of the template."""
        if self.by_effort:
            effort = kwargs.get("reasoning_effort")
            return self.default if effort is None else effort not in ("none", "no_think")
        if self.switch is None:
            return self.default
        said = kwargs.get(self.switch)
        return said is not False if self.default else said is True


def thinking_of(template: str | None) -> Thinking | None:
    """What a chat template says of it by SGLang's rules; None where they know nothing.

    What the rules cannot say, the format's parser does; a line of the log says why they cannot.
    """
    try:
        found = _load_rules().detect_reasoning_pattern(template)[1]
        if found is None:
            return None
        special, switch, default = found.special_case, found.toggle_param, found.default_enabled
    except Exception as exc:  # noqa: BLE001 - SGLang's rules may raise anything on a template
        if getattr(exc, "name", None) != "sglang":  # without it, nobody asks for this
            logger.warning(_UNKNOWN_THINKING, one_line(exc))
        return None
    if special is not None:
        return Thinking(default=special != "mistral", by_effort=special != "always")
    return Thinking(default=bool(default), switch=switch)


def _by_architecture(rules: Any, model: ModelTraits) -> Detected:
    """SGLang would load the checkpoint's config; it is lent the one that is loaded already."""
    config = SimpleNamespace(architectures=list(model.architectures), model_type=model.model_type)
    loading = dict.fromkeys(("model_path", "trust_remote_code", "revision", "model_config_parser"))
    with _lent(_HUB, get_config=lambda *_, **__: config):
        found = rules._architecture_auto_parsers(SimpleNamespace(**loading), _FLAGS)
    return Detected(found.get("tool_call_parser"), found.get("reasoning_parser"))


def _load_rules() -> Any:
    if importlib.util.find_spec("torch") is not None:
        return import_from_sglang(_RULES)
    with (
        _lent(f"{_SETTINGS}.muse_spark_hook", muse_spark_chat_template_default=None),
        _lent(f"{_SETTINGS}.overrides", declare_resolution=None, resolving_view=lambda args: args),
    ):
        return import_from_sglang(_RULES)


@contextmanager
def _lent(name: str, **members: Any) -> Iterator[None]:
    """For as long, importing `name` gives a module with these members."""
    module = ModuleType(name)
    vars(module).update(members)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
