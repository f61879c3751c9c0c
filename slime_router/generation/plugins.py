"""Loads plug-ins by path: `package.module:name`, or slime's `package.module.name`.

Three forms are taken:

* an async generator function `(call, call_next)`: wraps generations;
* a class: constructed with a `PluginContext`, its instances wrap generations;
* a function marked with aiohttp's `@web.middleware`: wraps HTTP requests.

The radix tree can be named too, as in slime's guide. It is built in, so that adds nothing.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slime_router.config import Config
from slime_router.errors import NotFound, SetupError
from slime_router.generation.caching import RadixTreeMiddleware
from slime_router.generation.middleware import HttpPlugin, Middleware
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import TokenIds

logger = logging.getLogger(__name__)

SLIMES_RADIX_TREE = "slime.router.middleware_hub.radix_tree_middleware.RadixTreeMiddleware"


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a plug-in class is constructed with; all of it is ready to use.

    Sessions and turns are the router's own: read them, but change nothing.
    """

    config: Config
    tokenizer: Tokenizer
    template: ChatTemplate
    _store: TrajectoryStore = field(repr=False)

    def turn(self, turn_id: str) -> Turn | None:
        """The recorded turn; None if it was never recorded, or has been dropped."""
        return self._store.get(turn_id)

    def held_ids(self, turn_id: str) -> TokenIds:
        """The prompt and output tokens of a turn, shape `[tokens]`.

        Raises:
            NotFound: it was never recorded, or has been dropped.
        """
        if turn_id not in self._store:
            raise NotFound(f"There is no turn '{turn_id}'.")
        return self._store.held_ids(turn_id)

    def session(self, session_id: str) -> Session | None:
        """The session of a `call.session_id`; None if nothing was recorded in it yet."""
        return self._store.sessions.find(session_id)


@dataclass(frozen=True, slots=True)
class Plugins:
    """Loaded plug-ins, in the order they were named; the first is the outermost."""

    generation: tuple[Middleware, ...] = ()
    http: tuple[HttpPlugin, ...] = ()


def load_plugins(paths: Sequence[str], context: PluginContext) -> Plugins:
    """Import every plug-in.

    Raises:
        SetupError: one line that names the plug-in and what is wrong with it.
    """
    generation: list[Middleware] = []
    http: list[HttpPlugin] = []
    for path in paths:
        found = _named(path)
        if found is RadixTreeMiddleware:
            logger.info("%s: the radix tree is built in, nothing is added", path)
            continue
        if getattr(found, "__middleware_version__", 0) == 1:  # aiohttp's own mark
            http.append(found)
        else:
            generation.append(_as_middleware(path, found, context))
    return Plugins(tuple(generation), tuple(http))


def _named(path: str) -> Any:
    if path.replace(":", ".") == SLIMES_RADIX_TREE:  # slime need not be installed
        return RadixTreeMiddleware
    return _import(path)


def _import(path: str) -> Any:
    module_name, separator, name = path.partition(":")
    if not separator:
        module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise SetupError(f"plug-in {path!r}: expected package.module:name")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:  # a module may raise anything while it is imported
        raise _broken(path, exc) from exc
    try:
        return getattr(module, name)
    except AttributeError:
        raise SetupError(f"plug-in {path!r}: {module_name} has no {name!r}") from None


def _broken(path: str, exc: BaseException) -> SetupError:
    reason = " ".join(str(exc).split())  # one line, even if the message has several
    return SetupError(f"plug-in {path!r}: {type(exc).__name__}: {reason}")


def _as_middleware(path: str, found: Any, context: PluginContext) -> Middleware:
    if inspect.isclass(found):
        construct: Callable[[PluginContext], Any] = found
        try:
            found = construct(context)
        except (Exception, SystemExit) as exc:  # a plug-in's constructor may raise anything
            raise _broken(path, exc) from exc
    target: Callable[..., Any] = found if inspect.isfunction(found) else type(found).__call__
    if not callable(found) or not inspect.isasyncgenfunction(target):
        raise SetupError(
            f"plug-in {path!r}: expected an async generator (call, call_next), a class of them, "
            "or an aiohttp @web.middleware"
        )
    middleware: Middleware = found
    return middleware
