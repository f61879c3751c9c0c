"""What an item of a worker's answer must look like before anything in it is used. Pure.

A worker is checked like a client: types, ranges, lengths, and agreement with itself. One that
sends what it cannot have sampled is a failed worker, whatever else it says: its tokens would be
stored, trained on, and sent to other workers, which die of ids outside the vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import orjson

from slime_router.errors import WorkerFailed
from slime_router.types import Finish, Speculation, VersionSpan, WeightVersion

Item: TypeAlias = dict[str, Any]  # one JSON object from a worker

MAX_LOGPROB = 0.1  # probabilities end at 1; more than this is not a rounding error
MIN_LOGPROB = -3.5e38  # float32 ends here
MAX_COUNT = 2**31 - 1
_COUNTS = range(MAX_COUNT + 1)
MAX_VERSION_LEN = 256  # characters
MAX_EMPTY_SPANS = 1000  # updates in which nothing was sampled
MAX_WORDS_LEN = 16 * 1024  # characters of a message or of a matched stop

_FINISHES = ("stop", "length", "abort")


def load_item(payload: bytes) -> Item:
    """One JSON object; `NaN` and infinities, which some workers write, are read as well.

    Raises:
        WorkerFailed: it is not one, or could not be written as JSON again.
    """
    try:
        item = orjson.loads(payload)
    except ValueError:
        item = _load_lenient(payload)
    if type(item) is not dict:
        raise WorkerFailed("The worker's answer is not one JSON object.")
    return item


def error_status(error: Any, *, is_stream: bool) -> int:
    """The status that an error in an answer of status 200 stands for.

    That is how SGLang refuses a request whose stream has begun; older ones name no status then, but
    say in a message why.

    Raises:
        WorkerFailed: nothing of SGLang's looks so: something before the worker wrote it.
    """
    known = error if isinstance(error, dict) else {}
    code = known.get("code")
    if type(code) is int and code >= 400:
        return code
    if not is_stream or code is not None or type(known.get("message")) is not str:
        raise WorkerFailed("The worker's answer is an error, and its status 200.")
    return 400


def _load_lenient(payload: bytes) -> Any:
    """By Python's own parser, which takes more; what it takes has to fit into strict JSON."""
    try:
        item = json.loads(payload.decode())
        orjson.dumps(item)  # no lone surrogates, no numbers beyond 64 bits
    except (ValueError, TypeError, RecursionError) as exc:
        raise WorkerFailed("The worker's answer is not JSON.") from exc
    return item


def check_ids(ids: Any, vocab_size: int) -> None:
    """Each of `ids` is an int in `[0, vocab_size)`.

    Raises:
        WorkerFailed: one is not, or `ids` is not a list.
    """
    if type(ids) is not list:
        raise WorkerFailed("The worker's output ids are not a list.")
    if not ids or (_are_all(ids, int) and min(ids) >= 0 and max(ids) < vocab_size):
        return
    wrong = next(token for token in ids if type(token) is not int or not 0 <= token < vocab_size)
    raise WorkerFailed(
        f"The worker sent {repr(wrong)[:40]} as a token of a vocabulary of {vocab_size}."
    )


def _are_all(values: Iterable[Any], kind: type) -> bool:
    """Whether there is a value and all have exactly this type, without a step for each."""
    return set(map(type, values)) == {kind}


def ids_of(entries: Any) -> list[Any]:
    """The ids beside logprobs, of a worker that sends no others.

    Raises:
        WorkerFailed: there are none.
    """
    if type(entries) is not list or not all(
        type(each) is list and len(each) > 1 for each in entries
    ):
        raise WorkerFailed("The worker's answer has no output ids.")
    return [each[1] for each in entries]


def check_shape(item: Item) -> Item:
    """The item's `meta_info`, once it and what an item always has are what they should be.

    Raises:
        WorkerFailed: something is missing or of another type.
    """
    meta = item.get("meta_info")
    if type(meta) is not dict:
        raise WorkerFailed("The worker's answer has no meta_info.")
    text = item.get("text")
    if text is not None and type(text) is not str:
        raise WorkerFailed("The worker's text is not a string.")
    return meta


def check_writable(item: Item, meta: Item) -> None:
    """What nobody here reads can be passed on: it is JSON of a reasonable depth.

    Raises:
        WorkerFailed: it is not.
    """
    unread = {**meta, "output_token_logprobs": None}  # those are checked where they are read
    try:
        orjson.dumps({**item, "output_ids": None, "meta_info": unread})
    except TypeError as exc:  # deeper than orjson writes
        raise WorkerFailed("The worker's answer cannot be passed on.") from exc


def last(values: Any, count: int) -> Any:
    """The last ones of a list; none of what is not one."""
    return values[-count:] if type(values) is list and count else []


def count(meta: Item, name: str) -> int | None:
    """A number of tokens; None where the worker does not say it.

    Raises:
        WorkerFailed: it is not a number of tokens.
    """
    value = meta.get(name)
    if value is None or (type(value) is int and value in _COUNTS):
        return value
    raise WorkerFailed(f"The worker's {name} is not a number of tokens.")


def check_len(values: Any, ids: list[int], what: str) -> None:
    """`values` is a list with an entry for each of `ids`; `what` they are stands in the error.

    Raises:
        WorkerFailed: it is not.
    """
    if type(values) is not list or len(values) != len(ids):
        raise WorkerFailed(f"The worker's {what} are not those of {len(ids)} tokens.")


def logprobs(entries: Any, ids: list[int]) -> list[float | None]:
    """The logprobs of `ids`; None for one that is missing or not finite.

    Raises:
        WorkerFailed: they belong to other tokens, or are not log-probabilities.
    """
    if not entries:
        return [None] * len(ids)
    check_len(entries, ids, "logprobs")
    columns = list(zip(*entries, strict=False)) if _are_all(entries, list) else []
    if len(columns) < 2 or columns[1] != tuple(ids):
        raise WorkerFailed("The worker's logprobs belong to other tokens than its output.")
    found = list(columns[0])
    # Of NaN, `min` and `max` say nothing; a sum with one is one.
    is_usual = _are_all(found, float) and math.isfinite(sum(found))
    if is_usual and min(found) >= MIN_LOGPROB and max(found) <= MAX_LOGPROB:
        return found
    return [_finite(logprob) for logprob in found]


def top_logprobs(tokens: Any, ids: list[int], vocab_size: int) -> list[list[tuple[float, int]]]:
    """The likeliest tokens at each of `ids`, without those whose logprob is not finite.

    Raises:
        WorkerFailed: they are for another number of tokens, or are not log-probabilities.
    """
    check_len(tokens, ids, "top logprobs")
    return [_top(top, vocab_size) for top in tokens]


def _top(entries: Any, vocab_size: int) -> list[tuple[float, int]]:
    if entries is None:
        return []
    if type(entries) is not list or any(type(each) is not list for each in entries):
        raise WorkerFailed("The worker's top logprobs are not a list for each token.")
    if any(len(each) < 2 for each in entries):
        raise WorkerFailed("The worker's top logprobs lack their tokens.")
    check_ids([each[1] for each in entries], vocab_size)
    found = ((_finite(each[0]), each[1]) for each in entries)
    return [(logprob, token) for logprob, token in found if logprob is not None]


def masks(tokens: Any, ids: list[int], vocab_size: int) -> list[list[int]]:
    """What each of `ids` was sampled from: different ids, it among them.

    Raises:
        WorkerFailed: they are for another number of tokens, or cannot be that.
    """
    check_len(tokens, ids, "sampling masks")
    found: list[list[int]] = tokens
    for mask, token in zip(found, ids, strict=True):
        check_ids(mask, vocab_size)
        if len(set(mask)) != len(mask) or token not in mask:
            raise WorkerFailed("The worker's sampling mask does not hold its token once.")
    return found


def mask_logprobs(values: Any, ids: list[int]) -> list[float]:
    """The log-probability of each of `ids` among those of its mask.

    Raises:
        WorkerFailed: they are for another number of tokens, or are not log-probabilities.
    """
    check_len(values, ids, "sampling logprobs")
    found = [_finite(value) for value in values]
    if None in found:
        raise WorkerFailed("The worker sent a sampling logprob that is not finite.")
    return cast("list[float]", found)


def _finite(logprob: Any) -> float | None:
    if logprob is None:
        return None
    if type(logprob) is float or type(logprob) is int:
        if MIN_LOGPROB <= logprob <= MAX_LOGPROB:
            return float(logprob)
        if type(logprob) is float and not math.isfinite(logprob):
            return None
    raise WorkerFailed(f"The worker sent {repr(logprob)[:40]} as a log-probability.")


def version(value: Any) -> WeightVersion | None:
    """A weight version; None where the worker has none.

    Raises:
        WorkerFailed: it is neither a short string nor an int.
    """
    if value is None or (type(value) is str and len(value) <= MAX_VERSION_LEN):
        return value
    if type(value) is int and abs(value) <= MAX_COUNT:
        return value
    raise WorkerFailed("The worker's weight version is neither a short string nor an int.")


def version_spans(spans: Any, output_len: int) -> tuple[VersionSpan, ...]:
    """Which weights sampled which of the `output_len` tokens, in order.

    Weights without a name are left out.

    Raises:
        WorkerFailed: the spans overlap, or reach beyond the output.
    """
    if not spans:
        return ()
    if type(spans) is not list or any(type(span) is not dict for span in spans):
        raise WorkerFailed("The worker's weight versions are not spans of tokens.")
    if len(spans) > output_len + MAX_EMPTY_SPANS:
        raise WorkerFailed("The worker's weight versions do not fit its output.")
    read = []
    end = 0
    for span in spans:
        start, begun = _place(span, "start"), end
        name, end = version(span.get("version")), _place(span, "end")
        if not begun <= start <= end <= output_len:
            raise WorkerFailed("The worker's weight versions do not fit its output.")
        if name is not None:
            read.append(VersionSpan(name, start, end))
    return tuple(read)


def _place(span: Item, name: str) -> int:
    found = count(span, name)
    if found is None:
        raise WorkerFailed(f"The worker's span of a weight version has no {name}.")
    return found


def finish(reason: Any) -> Finish | None:
    """Why the worker ended; None while it goes on.

    Raises:
        WorkerFailed: the reason is unknown, or carries what it cannot.
    """
    if reason is None:
        return None
    kind = reason.get("type") if type(reason) is dict else reason
    if type(reason) is not dict or kind not in _FINISHES:
        raise WorkerFailed(f"The worker ended with an unknown reason, {repr(kind)[:40]}.")
    status, matched = reason.get("status_code"), reason.get("matched")
    if status is not None and not (type(status) is int and 100 <= status <= 599):
        raise WorkerFailed("The worker's status_code is not a status of HTTP.")
    if type(matched) is str:
        words(reason, "matched")
    return Finish(
        type=kind,
        matched=matched if type(matched) in (int, str) else None,
        message=words(reason, "message"),
        status_code=status,
    )


def base64_text(meta: Item, name: str) -> str | None:
    """Routed experts, or what an indexer chose, as the worker wrote them; None where it has none.

    Raises:
        WorkerFailed: they are not a string.
    """
    text = meta.get(name)
    if text is None or type(text) is str:
        return text
    raise WorkerFailed(f"The worker's {name} are not base64.")


def words(values: Item, name: str) -> str | None:
    """A text of the worker, of limited length; None where there is none.

    Raises:
        WorkerFailed: it is not a string, or too long.
    """
    value = values.get(name)
    if value is None or (type(value) is str and len(value) <= MAX_WORDS_LEN):
        return value
    raise WorkerFailed(
        f"The worker's {name} is not a string of at most {MAX_WORDS_LEN} characters."
    )


def speculation(meta: Item) -> Speculation | None:
    """What speculative decoding did so far; None where the worker does not count it.

    Raises:
        WorkerFailed: a count is not a number of tokens.
    """
    verifications = count(meta, "spec_verify_ct")
    if verifications is None:
        return None
    return Speculation(
        verifications,
        count(meta, "spec_num_proposed_drafts") or 0,
        count(meta, "spec_num_correct_drafts") or 0,
    )
