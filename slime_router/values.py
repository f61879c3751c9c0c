"""Values: frozen dataclasses that are made, and changed, as fast as open ones.

A frozen dataclass sets each field by a call of `object.__setattr__`, which takes nine times as long
as a plain assignment, and a request makes dozens of values with up to thirty fields. Here a value
has an open subclass while its fields are set, and the frozen class from then on.

To a type checker these are `dataclass` and `replace` of `dataclasses`. They behave alike, but a
subclass must be a value, too.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

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
            sealed = dataclasses.dataclass(frozen=True, slots=True, init=False, **options)(cls)
            opened = _opened(sealed)
            known = {"sealed_": sealed, "opened_": opened, "new_": object.__new__}
            sealed.__new__ = _maker(sealed, known)
            sealed.__reduce__ = _reduced
            sealed._copied = _copier(sealed, known)
            return sealed

        return made

    def _opened(sealed):
        """A subclass whose instances can be written to."""
        # Both, or either would go through Python.
        ours = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
        return type(sealed.__name__, (sealed,), {"__slots__": (), **ours})

    # Code for all fields, as `dataclasses` makes some: a loop over them would take as long as it.

    def _maker(sealed, known):
        known, by_place, by_name, sets = dict(known, unset_=object()), ["cls_"], [], []
        for each in dataclasses.fields(sealed):
            name = given = each.name
            parameter = name
            if each.default is not dataclasses.MISSING:
                known[f"default_{name}"] = each.default
                parameter = f"{name}=default_{name}"
            elif each.default_factory is not dataclasses.MISSING:
                known[f"default_{name}"] = each.default_factory
                parameter = f"{name}=unset_"
                given = f"default_{name}() if {name} is unset_ else {name}"
            (by_name if each.kw_only else by_place).append(parameter)
            sets.append(f"self_.{name} = {given}")
        parameters = ", ".join([*by_place, *(["*", *by_name] if by_name else [])])
        return _function(f"__new__({parameters})", sets, known)

    def _copier(sealed, known):
        sets = [f"self_.{each.name} = old_.{each.name}" for each in dataclasses.fields(sealed)]
        changes = ["for name_ in changes_:", "    setattr(self_, name_, changes_[name_])"]
        return _function("copied(old_, changes_)", [*sets, *changes], dict(known))

    def _function(head, sets, known):
        steps = ["self_ = new_(opened_)", *sets, "self_.__class__ = sealed_", "return self_"]
        exec("\n    ".join([f"def {head}:", *steps]), known)
        return known[head.partition("(")[0]]

    def _reduced(self):
        """For `copy` and `pickle`."""
        names = [each.name for each in dataclasses.fields(self)]
        return _made, (type(self), {name: getattr(self, name) for name in names})

    def _made(kind, fields):
        return kind(**fields)

    def replace(given, /, **changes):
        """A copy of a value, or of another dataclass, with these fields changed.

        Raises:
            TypeError: it has no such field.
        """
        copied = vars(type(given)).get("_copied")
        if copied is None:
            return dataclasses.replace(given, **changes)
        try:
            return copied(given, changes)
        except AttributeError as exc:
            raise TypeError(str(exc)) from None
