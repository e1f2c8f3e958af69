"""One safetensors file: its header, read and checked before any data is.

What MUST hold, or the file is refused with one line naming file and tensor:

- 8 bytes of little-endian length L, at most 100 MB and within the file; then L bytes of UTF-8 JSON;
- one JSON object, beginning with ``{``, with no key twice and no deep nesting;
- each tensor has exactly ``dtype``, ``shape`` (whole numbers, at most 64 of them, whose product
  fits 63 bits) and ``data_offsets`` [begin, end];
- dtype size x shape = end - begin, and the spans tile the rest of the file exactly: no overlap,
  no hole, nothing out of range, no trailing byte. Scalars and zero-size tensors are fine;
- ``__metadata__`` maps text to text;
- a tensor's name is 1 to 4096 printable characters. It is only ever a name: ``/`` and ``..`` in it
  are harmless, because no tensor name becomes a path anywhere in trajkit.

Files are opened without following a link out of the checkpoint's own folder, and only if they are
regular files. Reads are plain ``preadv``: no mmap, so memory is bounded and measured. Nothing is
ever unpickled.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajkit.arrays import by_code
from trajkit.checkpoints.parse import MAX_NAME_CHARACTERS, parse_object
from trajkit.errors import FormatError, StorageError, Unsupported
from trajkit.remote.source import ByteSource, LocalFile
from trajkit.text import quoted, shown

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit for a header; held for index and side files as well."""
MAX_DIMENSIONS = 64  # numpy's limit

_FIELDS = {"dtype", "shape", "data_offsets"}
_INT64_MAX = 2**63 - 1

StoredTensor = tuple[str, str, tuple[int, ...], int, int]
"""(name in the file, dtype, shape, absolute byte offset, bytes)"""


class HalfWritten(FormatError):
    """A checkpoint that is not all there (yet): a cut or empty file, or a missing shard."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One safetensors file, its header read and checked."""

    name: str
    """relative to the checkpoint's folder, with ``/``"""
    path: Path
    header: bytes
    """the raw header JSON with its padding, without the 8 length bytes"""
    data_start: int
    """byte offset of the data: 8 + len(header)"""
    size: int
    """bytes of the whole file"""


def read_header(root: Path, name: str) -> tuple[CheckpointFile, list[StoredTensor]]:
    """Read the header of file `name` in folder `root`; its tensors come in offset order.

    Raises :class:`HalfWritten` where bytes are missing, :class:`FormatError` where the format is
    broken, :class:`Unsupported` for a dtype trajkit lacks, :class:`StorageError` if unreadable.
    """
    where = shown(root / name)
    with _open(root, name) as file:
        size = file.size
        if size < 8:
            found = "is empty" if size == 0 else f"is cut: 8 bytes of length expected, found {size}"
            raise HalfWritten(f"{where}: {found}")
        start = bytearray(8)
        read_into(file, memoryview(start), 0, where)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise FormatError(f"{where}: is a git-lfs pointer, not weights; run: git lfs pull")
        if start[:4] == b"PK\x03\x04" and 8 + length > size:
            raise FormatError(f"{where}: is a zip, as torch.save writes it, not safetensors")
        if length == 0:
            raise HalfWritten(f"{where}: header length is 0: the file was not finished")
        if length > MAX_HEADER_BYTES:
            raise FormatError(
                f"{where}: header length is {length} bytes, more than the {MAX_HEADER_BYTES} "
                "that safetensors allows; not a safetensors file?"
            )
        if 8 + length > size:
            raise HalfWritten(
                f"{where}: is cut in its header: {8 + length} bytes expected, found {size}"
            )
        header = bytearray(length)
        read_into(file, memoryview(header), 8, where)
    raw = bytes(header)
    tensors = check_header(raw, where, size)
    return CheckpointFile(name, root / name, raw, 8 + length, size), tensors


def check_header(raw: bytes, where: str, size: int | None = None) -> list[StoredTensor]:
    """Check that a header's tensors tile the data behind it exactly; they come in offset order.

    ``size`` is of the whole file; None where there is no file, and any end will do.
    """
    return _check_tensors(parse_object(raw, f"{where}: header"), where, 8 + len(raw), size)


def read_small(root: Path, name: str) -> bytes:
    """Read a whole small file (an index) of folder `root`; at most 100 MB."""
    where = shown(root / name)
    with _open(root, name) as file:
        size = file.size
        if size > MAX_HEADER_BYTES:
            raise FormatError(f"{where}: {size} bytes, more than the {MAX_HEADER_BYTES} allowed")
        if size == 0:
            raise HalfWritten(f"{where}: is empty")
        content = bytearray(size)
        read_into(file, memoryview(content), 0, where)
        return bytes(content)


def read_into(source: ByteSource, buffer: memoryview, offset: int, name: str = "the file") -> None:
    """Fill `buffer` (writable, contiguous) with the bytes of `source` from byte `offset` on.

    Raises :class:`HalfWritten` where the source ends first (it was cut while being read) and
    :class:`StorageError` where it cannot be read; `name` is what the message calls it.
    """
    if buffer.nbytes == 0:
        return
    view = buffer.cast("B")
    done = source.read_into(offset, view)
    if done < len(view):
        raise HalfWritten(
            f"{name}: ends before byte {offset + done + 1}, {offset + len(view)} expected; "
            "it was cut while being read"
        )


def is_folder(path: Path) -> bool:
    """Tell whether `path` is a folder; what cannot be reached is none (``Path`` would raise)."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def find_file(root: Path, name: str) -> tuple[Path, int]:
    """Find the regular file root/name, refusing a link that leaves the checkpoint's own folder.

    Gives its real path and its size in bytes. `root` itself may be a link: it is the path the user
    gave. One way out is allowed: files of a snapshot in Hugging Face's download cache are links to
    the ``blobs`` beside ``snapshots``.
    """
    where = shown(root / name)
    try:
        real = Path(os.path.realpath(root / name, strict=True))
        home = Path(os.path.realpath(root, strict=True))
        status = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise HalfWritten(f"{where}: the file is missing") from None
    except (OSError, ValueError) as error:  # a ring of links, a name too long, a NUL
        raise StorageError(f"{where}: cannot be reached: {shown(error)}") from error
    cache = [p.parent / "blobs" for p in home.parents if p.name == "snapshots"]
    if not real.is_relative_to(home) and real.parent not in cache:
        raise FormatError(
            f"{where}: is a link that leaves the checkpoint folder; pass {shown(real)} itself "
            "(or its folder), or put a copy in the link's place (cp -L)"
        )
    if not stat.S_ISREG(status.st_mode):  # to open a pipe or a device could hang
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "something else"
        raise FormatError(f"{where}: expected a file, found {found}")
    return real, status.st_size


def _open(root: Path, name: str) -> LocalFile:
    """Open a regular file inside `root`."""
    real = find_file(root, name)[0]
    try:
        return LocalFile.open(real, shown(root / name))
    except OSError as error:
        raise StorageError(f"{shown(root / name)}: cannot be opened: {error.strerror}") from error


def _check_tensors(
    header: dict[str, Any], where: str, data_start: int, size: int | None
) -> list[StoredTensor]:
    """Check that a parsed header's tensors tile the data exactly; they come in offset order."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{where}: __metadata__ must map text to text")
    tensors = [_check_tensor(name, info, where, data_start) for name, info in header.items()]
    tensors.sort(key=lambda tensor: tensor[3:])  # a zero-size tensor before its neighbour
    cursor, last = data_start, None
    for name, _, _, begin, n_bytes in tensors:
        if begin != cursor:
            fault = "overlaps" if begin < cursor else "leaves a hole after"
            raise FormatError(
                f"{where}: tensor {quoted(name)} {fault} {_named(last)}: expected begin "
                f"{cursor - data_start}, found {begin - data_start}"
            )
        if n_bytes:
            cursor, last = begin + n_bytes, name
    if size is None:
        return tensors
    if cursor > size:
        raise HalfWritten(
            f"{where}: is cut: {cursor} bytes expected (the end of {_named(last)}), found {size}"
        )
    if cursor < size:
        raise FormatError(
            f"{where}: {size - cursor} trailing bytes after {_named(last)}: {cursor} bytes "
            f"expected, found {size}"
        )
    return tensors


def _named(tensor: str | None) -> str:
    """Name the tensor that ends where the next should begin."""
    return "the header" if tensor is None else f"tensor {quoted(tensor)}"


def _check_tensor(name: str, info: Any, where: str, data_start: int) -> StoredTensor:
    """Check one tensor's header entry field by field."""
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise FormatError(
            f"{where}: tensor name {quoted(name)}: expected 1 to {MAX_NAME_CHARACTERS} "
            "printable characters"
        )

    def refuse(expected: str, found: object) -> FormatError:
        return FormatError(
            f"{where}: tensor {quoted(name)}: expected {expected}, found {quoted(found)}"
        )

    if not isinstance(info, dict) or info.keys() != _FIELDS:
        found = sorted(info) if isinstance(info, dict) else info
        raise refuse("the fields dtype, shape and data_offsets", found)
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(code, str):
        raise refuse("a dtype", code)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise refuse(f"a shape of at most {MAX_DIMENSIONS} dimensions", shape)
    if not all(type(n) is int and 0 <= n <= _INT64_MAX for n in shape):  # True is no int here
        raise refuse("a shape of whole numbers from 0 to 2^63 - 1", shape)
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and 0 <= n <= _INT64_MAX for n in offsets)
        or offsets[0] > offsets[1]
    ):
        raise refuse("data_offsets [begin, end] with 0 <= begin <= end < 2^63", offsets)
    try:
        dtype = by_code(code if len(code) < 20 else shown(code))
    except Unsupported as error:
        raise Unsupported(f"{where}: tensor {quoted(name)}: {error}") from None
    n_bytes = extent = dtype.itemsize
    for n in shape:
        n_bytes *= n
        extent *= n or 1  # [2^40, 2^40, 0] holds nothing, yet no array can have that shape
    if extent > _INT64_MAX:
        raise refuse("a shape whose size fits 63 bits", shape)
    if offsets[1] - offsets[0] != n_bytes:
        raise refuse(f"data_offsets {n_bytes} bytes apart for {code} {quoted(shape)}", offsets)
    return name, dtype.name, tuple(shape), data_start + offsets[0], n_bytes
