"""Fields that an API does not know: ignored, named, or refused (`--strict-fields`)."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

from slime_router.api.known.names import UNENFORCED
from slime_router.choices import StrictFields
from slime_router.errors import BadRequest

logger = logging.getLogger(__name__)

HEADER = "x-slime-unknown-fields"
MAX_NAMED = 20  # in a header
MAX_NAME_LEN = 80
MAX_LOGGED = 200  # names: each is logged once


class Strictness:
    """Looks at the names of a body's fields.

    With `warn`, a reply has a header that names the unknown ones, and the log names each once; with
    `refuse`, the first one is a 400. In each mode the log names the fields of vLLM that no worker
    keeps to: a client that sends one expects something of it.
    """

    def __init__(self, mode: StrictFields) -> None:
        self._mode = mode
        self._logged: set[str] = set()

    def __repr__(self) -> str:
        return f"<Strictness {self._mode}>"

    def check(
        self, body: Mapping[str, Any], known: Collection[str], headers: MutableMapping[str, str]
    ) -> None:
        """Checks a body against the names that its API knows; an API without names takes any.

        Raises:
            BadRequest: a field is unknown, and that is not allowed.
        """
        if not known:
            return
        if not UNENFORCED.isdisjoint(body):
            self._log(sorted(name for name in UNENFORCED if body.get(name)))
        if self._mode == "ignore":
            return
        unknown = [name for name in body if name not in known]
        if not unknown:
            return
        if self._mode == "refuse":
            raise _refusal(unknown[0], known)
        shown = [_printable(name) for name in unknown[:MAX_NAMED]]
        headers[HEADER] = ", ".join(shown)
        self._log(shown)

    def _log(self, names: Sequence[str]) -> None:
        """Each name once."""
        new = [name for name in names if name not in self._logged]
        new = new[: MAX_LOGGED - len(self._logged)]
        if new:
            self._logged.update(new)
            logger.warning("fields that nobody here knows are ignored: %s", ", ".join(new))


def _refusal(name: str, known: Collection[str]) -> BadRequest:
    close = difflib.get_close_matches(name[:MAX_NAME_LEN], known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    shown = _printable(name)
    return BadRequest(
        f"The field '{shown}' is unknown.{hint}", param=shown, code="unknown_parameter"
    )


def _printable(name: str) -> str:
    """The name in a form that is safe in a header."""
    return name[:MAX_NAME_LEN].encode("unicode_escape").decode().replace(",", "\\x2c")
