"""Codecs: every bit pattern comes back, and no damaged byte does."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajkit.errors import FormatError, InvalidInput, Unsupported
from trajkit.store.codecs import CODECS, codec_by_name, with_checksum, without_checksum

WIDTHS = ("uint8", "uint16", "uint32", "uint64")
NAMES = sorted(CODECS)


@given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(WIDTHS),
    n=st.sampled_from([1, 2, 7, 63, 1000, 4097]),
    spread=st.sampled_from([0, 1, 8, 64]),
    seed=st.integers(0, 2**32),
)
def test_every_chunk_comes_back(name: str, dtype: str, n: int, spread: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chunk = rng.integers(0, 2 ** min(spread, 8 * np.dtype(dtype).itemsize), n, "uint64")
    chunk = chunk.astype(dtype)
    codec = codec_by_name(name)
    out = np.full(n, 170, dtype)
    codec.decode(codec.encode(chunk), out)
    np.testing.assert_array_equal(out, chunk)


EQUAL_BYTES = """
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from trajkit.store.codecs import CODECS, codec_by_name

chunk = np.zeros(1 << 18, "uint64")
chunk[: 1 << 15] = np.random.default_rng(5).integers(0, 1 << 40, 1 << 15)
with ThreadPoolExecutor(1) as pool:
    for codec in map(codec_by_name, CODECS):
        elsewhere = pool.submit(codec.encode, chunk).result()
        assert all(codec.encode(chunk) == elsewhere for _ in range(30)), codec
"""


def test_equal_chunks_have_equal_bytes() -> None:
    """On the main thread too, where blosc would spread a chunk's blocks over threads of its own.

    In a process of its own: zarr, which other tests import, keeps blosc from that as well.
    """
    subprocess.run([sys.executable, "-c", EQUAL_BYTES], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_is_refused(name: str) -> None:
    codec = codec_by_name(name)
    coded = codec.encode(np.arange(40, dtype=np.uint16))
    out = np.empty(40, np.uint16)
    for bit in range(8 * len(coded)):
        damaged = bytearray(coded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="crc32c"):
            codec.decode(bytes(damaged), out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0, 1, 4, 12, 20])
def test_short_chunks_are_refused(name: str, kept: int) -> None:
    codec = codec_by_name(name)
    out = np.empty(40, np.uint16)
    whole = codec.encode(np.arange(40, dtype=np.uint16))
    for short in (whole[:kept], with_checksum(whole[:kept])):  # the second has a valid checksum
        with pytest.raises(FormatError):
            codec.decode(short, out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [39, 41])
def test_a_chunk_of_another_size_is_refused(name: str, n: int) -> None:
    codec = codec_by_name(name)
    coded = codec.encode(np.arange(40, dtype=np.uint16))
    with pytest.raises(FormatError, match=r"40|80|78|82|pco"):
        codec.decode(coded, np.empty(n, np.uint16))


@pytest.mark.parametrize("name", NAMES)
def test_many_threads_share_a_codec(name: str) -> None:
    codec = codec_by_name(name)
    rng = np.random.default_rng(1)
    chunks = [rng.integers(0, 3, 30_000, np.uint16) for _ in range(12)]

    def there_and_back(chunk: np.ndarray) -> bool:
        out = np.empty_like(chunk)
        codec.decode(codec.encode(chunk), out)
        return np.array_equal(out, chunk)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, chunks))


def test_the_checksum_is_crc32c_little_endian() -> None:
    coded = with_checksum(b"123456789")  # the check value of the CRC catalogue: 0xe3069283
    assert coded == b"123456789\x83\x92\x06\xe3"
    assert without_checksum(coded).tobytes() == b"123456789"


def test_unknown_and_missing_codecs_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="unknown codec 'zip': choose from zstd, lz4, sparse"):
        codec_by_name("zip")
    monkeypatch.setitem(sys.modules, "pcodec", None)
    with pytest.raises(Unsupported, match=r"pip install 'trajkit\[pcodec\]'"):
        codec_by_name("pcodec").encode(np.arange(3, dtype=np.uint16))
