"""Loads plug-ins by path: `package.module:name`, or slime's `package.module.name`.

Three forms are taken:

* an async generator function `(call, call_next)`: wraps generations;
* a class: constructed with the running `Gateway`, its instances wrap generations;
* a function marked with aiohttp's `@web.middleware`: wraps HTTP requests.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slime_router.errors import SetupError
from slime_router.generation.middleware import Middleware


@dataclass(frozen=True, slots=True)
class Plugins:
    """Loaded plug-ins, in the order in which they were named; the first is the outermost."""

    generation: tuple[Middleware, ...] = ()
    http: tuple[Any, ...] = ()


def load_plugins(paths: Sequence[str], gateway: object) -> Plugins:
    """Import every plug-in.

    Raises:
        SetupError: one line that names the plug-in and what is wrong with it.
    """
    generation: list[Middleware] = []
    http: list[Any] = []
    for path in paths:
        found = _import(path)
        if getattr(found, "__middleware_version__", 0) == 1:  # aiohttp's own mark
            http.append(found)
        else:
            generation.append(_as_middleware(path, found, gateway))
    return Plugins(tuple(generation), tuple(http))


def _import(path: str) -> Any:
    module_name, separator, name = path.partition(":")
    if not separator:
        module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise SetupError(f"plug-in {path!r}: expected package.module:name")
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:  # a plug-in's module may raise anything while it is imported
        raise _broken(path, exc) from exc
    try:
        return getattr(module, name)
    except AttributeError:
        raise SetupError(f"plug-in {path!r}: {module_name} has no {name!r}") from None


def _broken(path: str, exc: Exception) -> SetupError:
    reason = " ".join(str(exc).split())  # one line, whatever the exception says
    return SetupError(f"plug-in {path!r}: {type(exc).__name__}: {reason}")


def _as_middleware(path: str, found: Any, gateway: object) -> Middleware:
    if inspect.isclass(found):
        construct: Callable[[object], Any] = found
        try:
            found = construct(gateway)
        except Exception as exc:  # a plug-in's constructor may raise anything
            raise _broken(path, exc) from exc
    target: Callable[..., Any] = found if inspect.isfunction(found) else type(found).__call__
    if not callable(found) or not inspect.isasyncgenfunction(target):
        raise SetupError(
            f"plug-in {path!r}: expected an async generator (call, call_next), a class of them, "
            "or an aiohttp @web.middleware"
        )
    middleware: Middleware = found
    return middleware
