"""Keys as clients send them: which headers carry them, and what a key may look like."""

from __future__ import annotations

from collections.abc import Iterator

from multidict import MultiMapping

from slime_router.errors import SetupError

KEY_HEADERS = ("authorization", "x-api-key", "api-key")
SESSION_KEY_PREFIX = "session:"  # of an API key that names a session
MAX_KEY_LEN = 4096

_BEARER, *_PLAIN = KEY_HEADERS


def sent_keys(headers: MultiMapping[str]) -> Iterator[str]:
    """Every key that a request presents, whichever header carries it."""
    for value in headers.getall(_BEARER, ()):
        scheme, _, text = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            yield text.strip()
    for name in _PLAIN:
        yield from (value.strip() for value in headers.getall(name, ()))


def check_header_value(value: str, where: str) -> None:
    """Raises SetupError if the value cannot be sent as a header's: every request would fail."""
    if not value or not value.isascii() or not value.isprintable() or len(value) > MAX_KEY_LEN:
        raise SetupError(f"{where}: must be 1 to {MAX_KEY_LEN} printable ASCII characters")


def check_key(key: object, where: str) -> None:
    """Raises SetupError if no client could send this key, or if it would mean something else."""
    if not isinstance(key, str) or not key:
        raise SetupError(f"{where}: the key is empty or not a string")
    is_fit = key.isascii() and key.isprintable() and " " not in key and len(key) <= MAX_KEY_LEN
    if not is_fit:
        raise SetupError(f"{where}: a key is at most {MAX_KEY_LEN} ASCII characters, no spaces")
    if key.startswith(SESSION_KEY_PREFIX):
        raise SetupError(f"{where}: what begins with '{SESSION_KEY_PREFIX}' names a session")
