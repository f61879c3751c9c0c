"""Values: frozen dataclasses that are made, and changed, as fast as open ones.

A frozen dataclass sets each field by a call of `object.__setattr__`, which takes nine times as long
as a plain assignment, and a request makes dozens of values with up to thirty fields. Here a value
is of an open subclass while its fields are set, and of the frozen class from then on.

To a type checker these are `dataclass` and `replace` of `dataclasses`. They behave alike.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["replace", "value"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value
    from dataclasses import replace
else:

    def value(*, frozen, slots, **options):
        """`dataclass`, for values only: both `frozen` and `slots` have to be true.

        Raises:
            TypeError: one of them is not, or the class has a `__post_init__`.
        """
        if not (frozen and slots):
            raise TypeError("a value is frozen and has slots")

        def made(cls):
            if hasattr(cls, "__post_init__"):
                raise TypeError("a value has no __post_init__")
            sealed = dataclasses.dataclass(frozen=True, slots=True, **options)(cls)
            opened = _opened(sealed)
            sealed.__new__ = lambda cls, *_, **__: object.__new__(opened if cls is sealed else cls)
            sealed.__setstate__ = _restorer(sealed)
            sealed._copied = _copier(sealed, opened)
            return sealed

        return made

    def _opened(sealed):
        """A subclass whose instances can be written to until their `__init__` has run."""

        def seal(self):
            self.__class__ = sealed

        fields = [(each.name, Any, _unbound(each)) for each in dataclasses.fields(sealed)]
        plain = dataclasses.make_dataclass(
            sealed.__name__, fields, namespace={"__post_init__": seal}
        )
        ours = {"__slots__": (), "__init__": plain.__init__, "__post_init__": seal}
        # Both, or either would go through Python.
        open_to_all = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
        return type(sealed.__name__, (sealed,), ours | open_to_all)

    def _unbound(field):
        return dataclasses.field(
            default=field.default, default_factory=field.default_factory, kw_only=field.kw_only
        )

    def _copier(sealed, opened):
        """Code for all fields, as `dataclasses` makes some: a loop would take as long as it."""
        names = [each.name for each in dataclasses.fields(sealed)]
        lines = ["def copied(self, changes):", "    new = made(opened)"]
        lines += [f"    new.{name} = self.{name}" for name in names]
        lines += ["    for name in changes:", "        setattr(new, name, changes[name])"]
        lines += ["    new.__class__ = sealed", "    return new"]
        known = {"made": object.__new__, "opened": opened, "sealed": sealed}
        exec("\n".join(lines), known)
        return known["copied"]

    def _restorer(sealed):
        """For `copy` and `pickle`, which run no `__init__`."""
        names = [each.name for each in dataclasses.fields(sealed)]

        def restored(self, state):
            for name, value in zip(names, state, strict=True):
                object.__setattr__(self, name, value)
            self.__class__ = sealed

        return restored

    def replace(given, /, **changes):
        """A copy of a value, or of another dataclass, with these fields changed.

        Raises:
            TypeError: it has no such field.
        """
        copied = vars(type(given)).get("_copied")  # not one that it inherits
        if copied is None:
            return dataclasses.replace(given, **changes)
        try:
            return copied(given, changes)
        except AttributeError as exc:
            raise TypeError(str(exc)) from None
