"""The numbers of a JSON list of token ids, read from its digits by vector operations.

A parser makes an object of each number, and guesses wrong at nearly each one where it ends. Here
all numbers of a stretch of text are read in the same dozen steps: the eight bytes before each comma
are one word, whose digits are added up in pairs, then fours, then eights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRETCH_LEN = 2**16  # bytes that are read at a time: what is made of them fits into a CPU's cache
MAX_DIGITS = 7  # no vocabulary has more than ten million tokens

_COMMA, _ZERO = np.uint8(ord(",")), np.uint8(ord("0"))
_SPACES = b" \t\n\r"
_LEAD = b"0000000,"  # before the first number, so that eight bytes stand before its end
_ZEROS = np.uint64(0x3030303030303030)
_PAIRS = np.uint64(10 * 2**8 + 1)
_FOURS = np.uint64(100 * 2**16 + 1)
_EIGHTS = np.uint64(10_000 * 2**32 + 1)
_BYTES_OF_PAIRS = np.uint64(0x00FF00FF00FF00FF)
_HALVES_OF_FOURS = np.uint64(0x0000FFFF0000FFFF)


def read_ids(text: bytes) -> NDArray[np.int32] | None:
    """The numbers of a list without its brackets, int32 `[numbers]`.

    None if JSON would not have it so, or if it has anything but numbers of up to `MAX_DIGITS`
    digits: no sign, no fraction, no space but one after a comma and at both ends.
    """
    plain = text.strip(_SPACES)
    if b" " in plain:
        plain = plain.replace(b", ", b",")
    runs = []
    at = 0
    while (end := plain.find(b",", at + STRETCH_LEN)) >= 0:
        runs.append(_read(plain[at:end]))
        at = end + 1
    runs.append(_read(plain[at:]))
    found = [run for run in runs if run is not None]
    if len(found) < len(runs):
        return None
    return found[0] if len(found) == 1 else np.concatenate(found)


def _read(text: bytes) -> NDArray[np.int32] | None:
    raw = b"%b%b," % (_LEAD, text)
    codes = np.frombuffer(raw, np.uint8)
    is_comma = codes == _COMMA
    ends = np.flatnonzero(is_comma)
    lens = np.diff(ends) - 1
    if not 1 <= int(lens.min()) <= int(lens.max()) <= MAX_DIGITS:
        return None
    if int(np.count_nonzero(codes - _ZERO <= 9)) + len(ends) != len(raw):
        return None
    leads = is_comma[:-2] & (codes[1:-1] == _ZERO) & ~is_comma[2:]  # as in 007
    if bool(leads.any()):
        return None
    words = np.ndarray((len(raw) - 7,), np.dtype("<u8"), buffer=raw, strides=(1,))[ends[1:] - 8]
    words ^= _ZEROS
    others = ((8 - lens) * 8).astype(np.uint64)  # bits of what stands before each number
    words >>= others
    words <<= others
    words = words * _PAIRS >> np.uint64(8) & _BYTES_OF_PAIRS
    words = words * _FOURS >> np.uint64(16) & _HALVES_OF_FOURS
    words = words * _EIGHTS >> np.uint64(32)
    return words.astype(np.int32)
