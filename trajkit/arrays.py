"""The array type, and the element types of safetensors with the integers that carry their bits."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from trajkit.errors import Unsupported


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    >>> DTYPES["bfloat16"].bits
    dtype('uint16')
    >>> by_code("F8_E4M3").name
    'float8_e4m3fn'
    """

    name: str
    """numpy's or ml_dtypes' name, used throughout trajkit and in the store"""
    code: str
    """safetensors' name for it"""
    scalar: np.dtype[np.generic]
    """the numpy dtype that gives the bits their value"""

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return self.scalar.itemsize

    @property
    def bits(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned integer dtype of the same width."""
        return np.dtype(f"uint{8 * self.itemsize}")

    @property
    def is_float(self) -> bool:
        """Whether the elements are real numbers that a line can be fitted to."""
        return self.name.startswith(("float", "bfloat"))


def _dtype(name: str, code: str) -> DType:
    return DType(name, code, np.dtype(getattr(ml_dtypes, name, name)))


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        _dtype("bfloat16", "BF16"),
        _dtype("float16", "F16"),
        _dtype("float32", "F32"),
        _dtype("float64", "F64"),
        _dtype("float8_e4m3fn", "F8_E4M3"),
        _dtype("float8_e5m2", "F8_E5M2"),
        _dtype("int8", "I8"),
        _dtype("int16", "I16"),
        _dtype("int32", "I32"),
        _dtype("int64", "I64"),
        _dtype("uint8", "U8"),
        _dtype("uint16", "U16"),
        _dtype("uint32", "U32"),
        _dtype("uint64", "U64"),
        _dtype("bool", "BOOL"),
    )
}
"""Every supported dtype, by name."""

_BY_CODE = {d.code: d for d in DTYPES.values()}


def by_code(code: str) -> DType:
    """The dtype of a safetensors header code; raises :class:`Unsupported` for one trajkit lacks."""
    try:
        return _BY_CODE[code]
    except KeyError:
        raise Unsupported(
            f"safetensors dtype {code!r} is not supported; supported: {', '.join(_BY_CODE)}"
        ) from None


Array = np.ndarray[Any, np.dtype[Any]]
