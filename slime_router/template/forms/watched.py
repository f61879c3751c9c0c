"""A text that notes what a template asks of it, and where it is printed.

A template is a program. What it does with a text, it does through the text's methods and operators,
through filters, tests and calls. Here each of them answers as for the text itself, and the question
is noted: texts that give the same answers are printed in the same places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.filters import do_trim
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# The number of a text, a function that takes it, and more arguments.
Question = tuple[int, Callable[..., object], tuple[object, ...]]

_ASKED = ("startswith", "endswith", "__contains__", "__eq__", "__ne__")
_STRIPS = ("strip", "lstrip", "rstrip")
# Of Python's own machinery. All other methods would show what the text is.
_KEPT = frozenset(
    ("__class__", "__delattr__", "__dir__", "__doc__", "__getattribute__", "__getnewargs__",
     "__getstate__", "__init__", "__init_subclass__", "__new__", "__reduce__", "__reduce_ex__",
     "__setattr__", "__sizeof__", "__str__", "__subclasshook__")
)  # fmt: skip
# Filters that give back what they get, or look at it through its methods alone.
_OPEN_FILTERS = frozenset(
    ("count", "d", "default", "items", "length", "list", "rejectattr", "selectattr", "string")
)  # fmt: skip
_SEARCHED = "searched"
# What comes out differently each time, and what makes plain texts of watched ones.
_UNFIT = re.compile("random|lipsum|autoescape")
# Tests that ask for the type alone: any text stands for all.
_TYPE_TESTS = frozenset(
    ("boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none",
     "number", "sequence", "string", "true", "undefined")
)  # fmt: skip


class Log:
    """What one rendering has asked of the texts of its messages, which have numbers.

    `is_whole` is false once more of a text was seen than the answers say.
    """

    def __init__(self) -> None:
        self.answers: dict[Question, object] = {}
        self.is_whole = True

    def watch(self, number: int, text: str) -> Watched:
        """The text with this number, to be given to a template."""
        return _made((number,), text, self)


class Watched(str):
    """The text of a message, or one that a template has put together of some.

    `_parts` are the template's own texts, and the numbers of those that it was given. A sandbox
    shows no such names to a template, for which a text has no others than Python gives it.
    """

    __slots__ = ("_log", "_parts")
    _log: Log
    _parts: tuple[str | int, ...]

    def _ask(self, function: Callable[..., object], *args: object) -> object:
        """What the function says of the text, noted if that is one which the template was given."""
        answer = function(str.__str__(self), *args)
        number, *more = self._parts
        if more or type(number) is not int or not all(map(_is_plain, args)):
            self._log.is_whole = False
        else:
            self._log.answers[number, function, args] = answer
        return answer

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other))

    def __radd__(self, other: str) -> str:
        return joined((other, self))

    def __bool__(self) -> bool:
        return any(type(part) is str for part in self._parts) or bool(self._ask(bool))


def parts_of(text: str) -> tuple[str | int, ...]:
    """What a text is made of: the template's own texts, and the numbers of those it was given."""
    return text._parts if isinstance(text, Watched) else (text,)


def joined(texts: Iterable[object]) -> str:
    """The texts in a row, watched if one of them is."""
    row = list(map(str, texts))
    log = next((text._log for text in row if isinstance(text, Watched)), None)
    text = "".join(row)
    if log is None:
        return text
    parts: list[str | int] = []
    for each in row:
        parts += parts_of(each)
    return _made(tuple(part for part in parts if part != ""), text, log)


def _made(parts: tuple[str | int, ...], text: str, log: Log) -> Watched:
    """The text that these parts make."""
    made = Watched(text)
    made._parts, made._log = parts, log
    return made


def watching(compiled: Template, source: str) -> Template | None:
    """The same template for texts that are watched; None where some of it cannot be.

    `compiled` is what `transformers` made of `source`.
    """
    environment = compiled.environment
    if type(environment) is not ImmutableSandboxedEnvironment or _UNFIT.search(source):
        return None
    ours: Any = environment.overlay()
    ours.concat = joined
    ours.filters = {name: _filter(name, each) for name, each in ours.filters.items()}
    ours.filters["trim"] = _trimmed
    ours.filters[_SEARCHED] = _searched
    ours.tests = {name: _test(name, each) for name, each in ours.tests.items()}
    ours.call = _caller(environment)
    ours.intercepted_binops = frozenset("%")  # `'%s' % (text,)` asks nothing of the text
    ours.call_binop = _formatting
    tree = ours.parse(source)
    for compare in tree.find_all(nodes.Compare):
        left = compare.expr
        for operand in compare.ops:
            right = operand.expr
            if operand.op in ("in", "notin"):  # where both are texts, the right one alone is asked
                operand.expr = nodes.Filter(right, _SEARCHED, [left], [], None, None)
            left = right
    tree.set_environment(ours)
    template = Template.from_code(ours, ours.compile(tree), ours.make_globals(None))
    template.root_render_func.__globals__["str_join"] = joined  # Jinja's `~`
    return template


def _searched(where: Any, what: Any) -> Any:
    """A filter that notes what is looked for in `where`, and gives that back."""
    if isinstance(where, str):
        _show(what)
    return where


def _formatting(_context: Any, _operator: str, left: Any, right: Any) -> Any:
    _show((left, right))
    return left % right


def _filter(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    if name in _OPEN_FILTERS:
        return inner

    @wraps(inner)  # with what it says of the arguments that it wants of Jinja
    def filtered(*args: Any, **kwargs: Any) -> Any:
        given = [list(each) if isinstance(each, Iterator) else each for each in args]
        _show(given)
        _show(kwargs)
        made = inner(*given, **kwargs)
        if hasattr(made, "__html__"):  # compared with a watched text, it is asked first
            raise ValueError("a comparison with marked text cannot be watched")
        return made

    return filtered


def _trimmed(value: Any, chars: str | None = None) -> Any:
    """Jinja's `trim`, which may get a watched text for the characters."""
    _show(chars)
    return do_trim(value, chars)


def _test(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)
    def tested(value: Any, *args: Any) -> Any:
        if name in _TYPE_TESTS:
            return inner("text" if isinstance(value, Watched) else value, *args)
        _show((value, args))
        return inner(value, *args)

    return tested


def _caller(environment: ImmutableSandboxedEnvironment) -> Callable[..., Any]:
    def call(context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        is_own = isinstance(called, Macro) or (
            isinstance(called, type) and issubclass(called, Namespace)
        )
        if not (is_own or isinstance(getattr(called, "__self__", None), Watched)):
            _show((args, kwargs))
        return environment.call(context, called, *args, **kwargs)

    return call


def _show(value: object) -> None:
    """Notes that all of the watched texts in a value can be seen.

    Raises:
        ValueError: it is an iterator: looking into it would use it up.
    """
    if isinstance(value, Watched):
        value._log.is_whole = False
    elif isinstance(value, Mapping):
        _show(list(value.values()))
    elif isinstance(value, Iterator):
        raise ValueError("an iterator can be read only once")
    elif isinstance(value, Iterable) and not isinstance(value, str | range):
        for each in value:
            _show(each)


def _is_plain(argument: object) -> bool:
    if type(argument) is tuple:
        return all(map(_is_plain, argument))
    return argument is None or type(argument) is str


def _asking(name: str) -> Callable[..., object]:
    method = getattr(str, name)

    def ask(self: Watched, *args: object) -> object:
        if name in ("__eq__", "__ne__") and not isinstance(args[0], str):
            return NotImplemented
        return self._ask(method, *args)

    return ask


def _stripping(name: str) -> Callable[..., object]:
    method = getattr(str, name)

    def is_bare(text: str, *args: object) -> bool:
        return bool(method(text, *args) == text)

    def strip(self: Watched, *args: object) -> object:
        if not self._ask(is_bare, *args):
            self._log.is_whole = False
        return self

    return strip


def _showing(name: str) -> Callable[..., object]:
    method = getattr(str, name)

    def show(self: Watched, *args: object, **kwargs: object) -> object:
        self._log.is_whole = False
        return method(self, *args, **kwargs)

    return show


def _watch_all() -> None:
    for name in vars(str).keys() - vars(Watched).keys() - _KEPT:
        make = _asking if name in _ASKED else _stripping if name in _STRIPS else _showing
        setattr(Watched, name, make(name))
    for name in (*_ASKED, "__hash__"):  # some of which every class has
        setattr(Watched, name, _asking(name) if name in _ASKED else _showing(name))


_watch_all()
