"""Packed bodies: every coding in small steps, what is corrupt, and what unpacks to too much."""

from __future__ import annotations

import gzip
import random
import sys
import zlib
from collections.abc import Callable

import pytest

from slime_router.edge.codings import (
    CODINGS,
    FREE_LEN,
    MAX_MEMBERS,
    MAX_RATIO,
    STEP_LEN,
    Unpacker,
    coding_of,
)
from slime_router.errors import BadRequest, PayloadTooLarge, UnsupportedCoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NO_LIMIT = 2**40
TEXT = random.Random(1).randbytes(3 * STEP_LEN) + b"x" * 5 * STEP_LEN


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}


def unpack(coding: str, *pieces: bytes, max_len: int = NO_LIMIT) -> bytes:
    unpacker = Unpacker(coding, max_len)
    made = []
    for piece in pieces:
        for step in unpacker.feed(piece):
            assert len(step) <= STEP_LEN
            made.append(step)
    unpacker.finish()
    return b"".join(made)


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_is_read_in_steps_however_it_arrives(coding):
    packed = PACKERS[coding](TEXT)
    assert unpack(coding, packed) == TEXT
    assert unpack(coding, *(packed[i : i + 997] for i in range(0, len(packed), 997))) == TEXT
    assert unpack(coding, PACKERS[coding](b"")) == b""
    assert unpack(coding) == b""


def test_deflate_is_read_without_its_header_too():
    assert unpack("deflate", raw_deflate(TEXT)) == TEXT


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_several_streams_are_one_body(coding):
    pack = PACKERS[coding]
    assert unpack(coding, pack(b"ab") + pack(b"cd"), pack(b"ef")) == b"abcdef"
    with pytest.raises(BadRequest, match="streams"):
        unpack(coding, pack(b"") * (MAX_MEMBERS + 1))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("harm", ["other", "cut", "flipped", "tail"])
def test_what_is_corrupt_is_the_clients_mistake(coding, harm):
    packed = PACKERS[coding](TEXT)
    broken = {
        "other": b"zzzz",
        "cut": packed[:-3],
        "flipped": packed[: len(packed) // 2] + b"\xff\x00" * 40 + packed[len(packed) // 2 :],
        "tail": packed + b"\xffzz",
    }[harm]
    with pytest.raises(BadRequest) as caught:
        unpack(coding, broken)
    assert (caught.value.status, caught.value.param) == (400, "content-encoding")


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_may_not_unpack_beyond_the_limit(coding):
    packed = PACKERS[coding](TEXT)
    assert unpack(coding, packed, max_len=len(TEXT)) == TEXT
    with pytest.raises(PayloadTooLarge):
        unpack(coding, packed, max_len=len(TEXT) - 1)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_given_up_early(coding):
    """The ratio counts as soon as there is more than a small body's worth."""
    bomb = PACKERS[coding](b"\0" * 4 * FREE_LEN)
    steps: list[int] = []
    with pytest.raises(BadRequest, match="times its length"):
        steps.extend(map(len, Unpacker(coding, NO_LIMIT).feed(bomb)))
    assert sum(steps) <= FREE_LEN + MAX_RATIO * len(bomb)
    small = PACKERS[coding](b"\0" * (FREE_LEN // 2))
    assert len(unpack(coding, small)) == FREE_LEN // 2


def test_a_frame_may_not_ask_for_a_huge_window():
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(TEXT * 8) + packer.flush()
    with pytest.raises(BadRequest):
        unpack("zstd", packed)


def test_names_of_codings():
    assert [coding_of(name) for name in ("", "identity", " GZip ", "x-gzip", "zstd")] == [
        None,
        None,
        "gzip",
        "gzip",
        "zstd",
    ]
    assert coding_of("identity, deflate") == "deflate"
    for name in ("br", "gzip, gzip", "gzip;q=1", "*", "\udcff"):
        with pytest.raises(UnsupportedCoding, match="gzip, deflate, zstd"):
            coding_of(name)
