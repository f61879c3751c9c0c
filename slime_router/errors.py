"""The errors of the router: one tree, each with the HTTP status it becomes.

    RouterError
    ├── BadRequest 400            the client's mistake; names the field; changes nothing
    │   ├── ContextLengthExceeded
    │   ├── PayloadTooLarge 413
    │   ├── UnsupportedCoding 415
    │   └── HeadTooLarge      414 for a URL, 431 for headers
    ├── Unauthorized 401          no key, or not one that opens this
    ├── Forbidden 403             a web page, or a host, that may not ask
    ├── NotFound 404
    ├── MethodNotSupported 405
    ├── Conflict 409              the session is closed, or has that name or reward already
    ├── TooManyRequests 429
    │   └── SessionLimit          a session has all the turns or tokens that it may have
    ├── StorageFull 507           sessions that were not exported fill the store
    ├── NotSupported 501
    ├── NoWorker 503              nobody can take the request
    ├── Aborted 503               somebody asked for its end before its first token
    ├── OutOfDescriptors 503      the router has none for a connection to a worker
    ├── ShuttingDown 503          the router ends, and with it what still runs
    ├── StartingUp 503            the router still reads its journal
    ├── NotDurable 503            the journal cannot be written, and must be
    ├── WorkerRefused (4xx)       the worker's own answer to a bad request
    ├── WorkerFailed 502          died, or replied with something that is not an answer
    ├── WorkerTimeout 504
    └── SetupError                at start: ends the process with one line

They become error bodies in one place, in the form of the API at hand
(`slime_router.server.boundary`). `type` and `code` follow the OpenAI error object, whose four keys
SDKs read.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Self

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # of this process, of the system
MAX_REASON_LEN = 400  # characters of a foreign error message that are passed on


class RouterError(Exception):
    """Base of all. `param` is the dotted path of the field at fault, where there is one.

    `retry_after_s`: seconds after which a retry may succeed, where that is known.
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    is_misfit = False  # of a worker: no request could do better there
    is_final = False  # a retry cannot help: a header keeps SDKs from trying

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code

    def say_as(self, ours: str, theirs: str) -> bool:
        """Gives the field at fault the client's name, where it is `ours` or stands within it."""
        if self.param is None or not self.param.startswith(ours):
            return False
        said = theirs + self.param.removeprefix(ours)
        self.message = self.message.replace(f"'{self.param}'", f"'{said}'")
        self.param = said
        return True


class BadRequest(RouterError):
    """The request cannot be served as it is written. It had no effect."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(BadRequest):
    """The prompt, or the prompt and the wanted reply, do not fit the model's context."""

    code = "context_length_exceeded"

    @classmethod
    def of(cls, length: int, context_len: int, *, is_least: bool = False) -> Self:
        """The error for a prompt of `length` tokens, or at least of so many."""
        count = f"at least {length}" if is_least else f"{length}"
        return cls(
            f"This model's maximum context length is {context_len} tokens. The input ({count}"
            f" tokens) is longer than the model's context length ({context_len} tokens)."
        )


class PayloadTooLarge(BadRequest):
    """The body is longer than `--max-payload-size`."""

    status = 413
    code = "request_too_large"


class UnsupportedCoding(BadRequest):
    """The body is packed in a way that is not read; `read` lists those that are."""

    status = 415
    code = "unsupported_encoding"
    is_final = True

    def __init__(self, given: str, read: Sequence[str]) -> None:
        self.read = tuple(read)
        super().__init__(
            f"A body cannot be read with Content-Encoding {given[:80]!r}, "
            f"only with one of {', '.join(read)}.",
            param="content-encoding",
        )


class HeadTooLarge(BadRequest):
    """The URL (414) or the headers (431) are longer than the router reads."""

    status = 431
    code = "request_head_too_large"

    def __init__(self, message: str, *, status: int = 431, param: str | None = None) -> None:
        self.status = status
        super().__init__(message, param=param)


class Unauthorized(RouterError):
    """The request has no key, or not one that opens this route. Messages never contain a key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    is_final = True


class Forbidden(RouterError):
    """Nobody may ask this from where the request comes from, whatever its key."""

    status = 403
    type = "permission_error"
    code = "forbidden_origin"
    is_final = True


class NotFound(RouterError):
    """No such thing."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotSupported(RouterError):
    """The path is served, but not with this method; `allowed` lists those that are."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_supported"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__(f"{method[:40]} is not served here; {', '.join(allowed)} is.")


class NotSupported(RouterError):
    """The router cannot do this, and a retry will not change that."""

    status = 501
    type = "invalid_request_error"
    code = "not_supported"
    is_final = True


class OnlyHttp(NotSupported):
    """A websocket of the Responses API: at this status Codex goes on over HTTP, at once."""

    status = 426


class TooManyRequests(RouterError):
    """A limit on concurrent requests is reached; the client may try again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


SESSION_CLOSED = "session_closed"


class Conflict(RouterError):
    """The session, or whatever was asked for, is in a state in which this cannot be done."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"
    is_final = True


class SessionLimit(TooManyRequests):
    """The session has all the turns or tokens that it was opened for."""

    code = "session_limit_exceeded"
    is_final = True


class StorageFull(RouterError):
    """Sessions that were not exported fill the store; they can still be."""

    status = 507
    code = "storage_full"
    is_final = True


class NoWorker(RouterError):
    """No worker is registered, or none can take a request.

    `is_temporary`: this may change by itself; `is_paused`: it will when generation is continued;
    `is_full`: it will when a request at one of them ends.
    """

    status = 503
    type = "service_unavailable_error"
    code = "no_available_workers"

    def __init__(
        self,
        message: str,
        *,
        is_temporary: bool = False,
        is_paused: bool = False,
        is_full: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.is_temporary = is_temporary
        self.is_paused = is_paused
        self.is_full = is_full


class Aborted(RouterError):
    """The generation was aborted before its first token; a retry would begin what is to end."""

    status = 503
    type = "service_unavailable_error"
    code = "upstream_error"
    is_final = True


class OutOfDescriptors(RouterError):
    """The router has no file descriptor for a connection to a worker; that is no worker's fault."""

    status = 503
    type = "service_unavailable_error"
    code = "out_of_descriptors"


class ShuttingDown(RouterError):
    """The grace period of a shutdown is over. Another router, or this one later, may serve it."""

    status = 503
    type = "service_unavailable_error"
    code = "shutting_down"


class StartingUp(RouterError):
    """The router still reads its journal; the message says how far it is."""

    status = 503
    type = "service_unavailable_error"
    code = "starting_up"


class NotDurable(RouterError):
    """The journal cannot be written, and what is not in it may not go out."""

    status = 503
    type = "service_unavailable_error"
    code = "journal_failed"


class WorkerRefused(RouterError):
    """A worker answered with a 4xx (or 503 when its queue is full).

    `body` is its answer as it came: `/generate` passes it on untouched.
    """

    type = "invalid_request_error"
    code = "invalid_value"

    def __init__(self, message: str, *, status: int, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class MasksRefused(WorkerRefused):
    """A worker cannot say what it samples from; without being asked for that, it may serve."""


class WorkerFailed(RouterError):
    """A worker died while answering, or its answer cannot be read."""

    status = 502
    code = "upstream_error"


class WorkerTimeout(RouterError):
    """A worker did not answer within `--request-timeout-secs`."""

    status = 504
    code = "upstream_timeout"


class SetupError(RouterError):
    """The router cannot start. The message is one line that names what is missing."""


def printable(text: str) -> str:
    """`text` with escapes for line ends, control characters, and what is not a character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(exc: Exception) -> str:
    """What a foreign error says, on one line and short enough for a message of ours."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= MAX_REASON_LEN else text[: MAX_REASON_LEN - 3] + "..."
