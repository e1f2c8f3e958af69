"""How one chunk of an array becomes bytes and comes back.

A chunk is compressed by a codec chosen by name and followed by its crc32c; both are part of the
Zarr v3 metadata, so that any Zarr reader undoes them. Measured on bf16 delta frames (DESIGN.md has
the table): ``sparse`` is smallest and fastest where few elements change, ``zstd`` elsewhere, ``lz4`` is
fast, ``pcodec`` is slow.

Blosc's own choice for zstd and lz4 is blocks of 32 KiB. With 512 KiB, a whole chunk of bf16, zstd
takes 0.6 to 0.7 of the time either way, and comes out 5 % smaller.

Decoding checks the crc32c first and raises :class:`FormatError`; damaged bytes are never returned.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numcodecs import blosc

from trajkit.arrays import Array
from trajkit.errors import FormatError, InvalidInput, Unsupported
from trajkit.parallel import Scratch

blosc.use_threads = False
"""On the main thread blosc would use all cores, and put blocks in the order they come ready in."""

_CRC_BYTES = 4
_BLOSC_HEADER_BYTES = 16


class Codec(Protocol):
    """A lossless coding of one chunk; safe to call from many threads at once."""

    def encode(self, chunk: Array) -> bytes:
        """The coded bytes of a contiguous 1-D array, checksum included."""

    def decode(self, coded: bytes, out: Array) -> None:
        """Fill ``out`` (contiguous, of the chunk's dtype and size) with the chunk."""

    def metadata(self, itemsize: int) -> list[dict[str, Any]]:
        """The Zarr v3 ``codecs`` list that undoes :meth:`encode` for elements of this size."""


def with_checksum(coded: bytes) -> bytes:
    """The bytes followed by their crc32c, little-endian, as Zarr's ``crc32c`` codec has it.

    >>> with_checksum(b"123456789")[-4:].hex()
    '839206e3'
    """
    return b"".join((coded, _crc(coded)))


def without_checksum(coded: bytes) -> Array:
    """The bytes before the crc32c, uint8 and not copied; :class:`FormatError` if it differs."""
    body, crc = np.frombuffer(coded, np.uint8)[:-_CRC_BYTES], coded[-_CRC_BYTES:]
    _check_crc(body, crc)
    return body


def _crc(body: bytes | Array) -> bytes:
    return struct.pack("<I", google_crc32c.value(body))


def _check_crc(body: Array, crc: bytes) -> None:
    if crc != _crc(body):
        raise FormatError("checksum (crc32c) does not match: the bytes on disk are damaged")


def _read_only(array: Array) -> Array:
    """The bytes of an array as google_crc32c takes them."""
    view = array.view(np.uint8)
    view.flags.writeable = False
    return view


def _bytes_codec(itemsize: int) -> dict[str, Any]:
    if itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True, slots=True)
class PlainCodec:
    """No compression: the little-endian bytes and their checksum."""

    def encode(self, chunk: Array) -> bytes:
        return b"".join((chunk.view(np.uint8).data, _crc(_read_only(chunk))))

    def decode(self, coded: bytes, out: Array) -> None:
        body = without_checksum(coded)
        _check_size(len(body), out)
        out.view(np.uint8)[:] = body

    def metadata(self, itemsize: int) -> list[dict[str, Any]]:
        return [_bytes_codec(itemsize), {"name": "crc32c"}]


@dataclass(frozen=True, slots=True)
class BloscCodec:
    """A blosc compressor behind a shuffle; equal chunks have equal bytes."""

    cname: str
    level: int
    shuffle: str
    block_bytes: int = 1 << 19
    """blosc compresses a chunk in blocks of this size, each on its own"""

    def encode(self, chunk: Array) -> bytes:
        return with_checksum(self.encode_body(chunk))

    def encode_body(self, chunk: Array) -> bytes:
        """As :meth:`encode`, without a checksum."""
        shuffle = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[self.shuffle]
        cname, size = self.cname.encode(), self.block_bytes
        coded: bytes = blosc.compress(
            chunk, cname, self.level, shuffle, size, typesize=chunk.itemsize
        )
        return coded

    def decode(self, coded: bytes, out: Array) -> None:
        self.decode_body(without_checksum(coded), out)

    def decode_body(self, body: Array, out: Array) -> None:
        """As :meth:`decode`, of bytes (uint8) whose checksum has been looked at."""
        if len(body) < _BLOSC_HEADER_BYTES:
            raise FormatError(f"a chunk of {len(body)} bytes is shorter than a blosc header")
        n_bytes, _, coded_bytes = body[4:_BLOSC_HEADER_BYTES].view("<u4").tolist()
        _check_size(n_bytes, out)
        if coded_bytes != len(body):  # blosc itself would read on beyond the end
            raise FormatError(f"a chunk of {len(body)} bytes claims to be {coded_bytes}")
        try:
            blosc.decompress(body, out)
        except (RuntimeError, ValueError) as error:
            raise FormatError(f"blosc cannot decompress the chunk: {error}") from error

    def metadata(self, itemsize: int) -> list[dict[str, Any]]:
        blosc_codec = {
            "name": "blosc",
            "configuration": {
                "typesize": itemsize,
                "cname": self.cname,
                "clevel": self.level,
                "shuffle": self.shuffle,
                "blocksize": self.block_bytes,
            },
        }
        return [_bytes_codec(itemsize), blosc_codec, {"name": "crc32c"}]


DENSE, SPARSE = b"\0", b"\1"
"""the first byte of a sparse codec's chunk: blosc's bytes follow, or it is the sparse form's own"""
_scratch = Scratch()


@dataclass(frozen=True, slots=True)
class SparseCodec:
    """Gaps and values of the elements that changed (:mod:`trajkit.kernels.sparse`), chunk by chunk.

    A chunk of which more than a third changed, such as a key frame's, or which bit-shuffled zstd is
    cheaper for than half of it, is a zero and then blosc's bytes. zarr-python reads it by the codec
    that :mod:`trajkit.integrations.zarr` registers.
    """

    dense: BloscCodec = BloscCodec("zstd", 1, "bitshuffle")

    def encode(self, chunk: Array) -> bytes:
        return with_checksum(self.encode_body(chunk))

    def encode_body(self, chunk: Array) -> bytes:
        """As :meth:`encode`, without a checksum."""
        from trajkit.kernels.cpu.sparse import encode_sparse

        coded = encode_sparse(chunk, _scratch.array)
        if coded is not None and 2 * len(coded) <= chunk.nbytes:
            return coded
        return DENSE + self.dense.encode_body(chunk)

    def decode(self, coded: bytes, out: Array) -> None:
        self.decode_body(without_checksum(coded), out)

    def decode_body(self, body: Array, out: Array) -> None:
        """As :meth:`decode`, of bytes (uint8) whose checksum has been looked at."""
        from trajkit.kernels.cpu.sparse import decode_sparse

        kind = body[:1].tobytes()
        if kind == DENSE:
            self.dense.decode_body(body[1:], out)
        elif kind != SPARSE:
            raise FormatError(
                f"a chunk of {len(body)} bytes in neither of the sparse codec's forms"
            )
        elif not decode_sparse(body, out, _scratch.array):
            raise FormatError(
                f"a sparse chunk of {len(body)} bytes does not fit {out.size} elements of "
                f"{out.itemsize} bytes: counts, gaps or sizes in it are wrong"
            )

    def metadata(self, itemsize: int) -> list[dict[str, Any]]:
        sparse = {"name": "trajkit.sparse", "configuration": {"itemsize": itemsize}}
        return [_bytes_codec(itemsize), sparse, {"name": "crc32c"}]


@dataclass(frozen=True, slots=True)
class PcodecCodec:
    """Pcodec (optional package ``pcodec``): smallest, slowest; only zarr-python reads it.

    Eight-bit elements are allowed: a delta frame of float8 or bool compresses as well as any.
    """

    level: int = 8

    def encode(self, chunk: Array) -> bytes:
        config = _pcodec().ChunkConfig(compression_level=self.level, enable_8_bit=True)
        return with_checksum(_pcodec().standalone.simple_compress(chunk, config))

    def decode(self, coded: bytes, out: Array) -> None:
        body = without_checksum(coded).tobytes()
        try:
            progress = _pcodec().standalone.simple_decompress_into(body, out)
        except (RuntimeError, ValueError, TypeError) as error:
            raise FormatError(f"pcodec cannot decompress the chunk: {error}") from error
        _check_size((progress.n_processed + (not progress.finished)) * out.itemsize, out)

    def metadata(self, itemsize: int) -> list[dict[str, Any]]:
        del itemsize  # pcodec writes the element type into its own header
        pcodec = {"name": "numcodecs.pcodec", "configuration": {"level": self.level}}
        return [pcodec, {"name": "crc32c"}]


def _pcodec() -> Any:
    try:
        import pcodec
    except ImportError as error:
        raise Unsupported(
            "codec 'pcodec' needs the package pcodec: pip install 'trajkit[pcodec]'"
        ) from error
    return pcodec


def _check_size(n_bytes: int, out: Array) -> None:
    if n_bytes != out.nbytes:
        raise FormatError(f"a chunk holds {n_bytes} bytes where {out.nbytes} were expected")


CODECS: dict[str, Callable[[], Codec]] = {
    "zstd": lambda: BloscCodec("zstd", 1, "bitshuffle"),
    "lz4": lambda: BloscCodec("lz4", 5, "bitshuffle"),
    "sparse": SparseCodec,
    "pcodec": PcodecCodec,
    "none": PlainCodec,
}
"""The codecs a store can be created with, by name."""


def codec_by_name(name: str) -> Codec:
    """The codec of that name; raises :class:`InvalidInput` for an unknown one."""
    try:
        return CODECS[name]()
    except KeyError:
        raise InvalidInput(f"unknown codec {name!r}: choose from {', '.join(CODECS)}") from None
