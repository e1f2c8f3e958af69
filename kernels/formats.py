"""The floating-point formats of checkpoints, bit by bit, with numpy alone.

ml_dtypes knows these formats too, but is not there on every machine a kernel runs on; the tests
compare the two for every bit pattern. Axis letters: N elements.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger[Any]]
"""bit patterns: uint8, uint16, uint32 or uint64"""


@dataclass(frozen=True, slots=True)
class Format:
    """One floating-point format.

    >>> FORMATS["bfloat16"].bits, FORMATS["bfloat16"].e_min
    (dtype('uint16'), -126)
    """

    name: str
    """numpy's or ml_dtypes' name"""
    kind: int
    """a small integer for compiled code to switch on"""
    width: int
    """bits an element"""
    mantissa: int
    """stored bits of the significand; the ulp at \\|w\\| in [2^e, 2^(e+1)) is 2^(e - mantissa)"""
    bias: int
    """exponent bias; the smallest normal number is 2^(1 - bias)"""
    max_finite: int
    """bit pattern of the largest finite number"""

    @property
    def bits(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The unsigned dtype that carries the bits."""
        return np.dtype(f"uint{self.width}")

    @property
    def work(self) -> np.dtype[np.floating[Any]]:
        """The dtype that holds every value exactly: float32, or float64 for float64."""
        return np.dtype(np.float64 if self.width == 64 else np.float32)

    @property
    def e_min(self) -> int:
        """The exponent of the smallest normal number; below it the ulp no longer shrinks."""
        return 1 - self.bias


FORMATS = {
    f.name: f
    for f in (
        Format("bfloat16", 0, 16, 7, 127, 0x7F7F),
        Format("float16", 1, 16, 10, 15, 0x7BFF),
        Format("float8_e4m3fn", 2, 8, 3, 7, 0x7E),
        Format("float8_e5m2", 3, 8, 2, 15, 0x7B),
        Format("float32", 4, 32, 23, 127, 0x7F7FFFFF),
        Format("float64", 5, 64, 52, 1023, 0x7FEFFFFFFFFFFFFF),
    )
}
"""Every format a line can be fitted to, by name."""


def format_of(dtype: str) -> Format:
    """The format of that name; raises NotImplementedError for anything a line cannot be fitted to.

    >>> format_of("int8")
    Traceback (most recent call last):
    NotImplementedError: no line is fitted to dtype 'int8'; supported: bfloat16, float16, ...
    """
    try:
        return FORMATS[dtype]
    except KeyError:
        raise NotImplementedError(
            f"no line is fitted to dtype {dtype!r}; supported: {', '.join(FORMATS)}"
        ) from None


def _e4m3_table() -> NDArray[np.float32]:
    """All 256 values of float8_e4m3fn: no infinities, NaN where all seven low bits are set."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    size = np.where(
        exponent == 0,
        np.ldexp(fraction / 8, -6),
        np.ldexp(1 + fraction / 8, exponent - 7),
    )
    size[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code >> 7, -size, size).astype(np.float32)


_E4M3 = _e4m3_table()


def values_of(bits_N: Bits, dtype: str) -> NDArray[np.floating[Any]]:
    """The numbers that bit patterns stand for, exactly: float32 (float64 for float64), [N].

    >>> values_of(np.array([0x3F80, 0xC000], np.uint16), "bfloat16")
    array([ 1., -2.], dtype=float32)
    """
    match dtype:
        case "bfloat16":
            return (bits_N.astype(np.uint32) << np.uint32(16)).view(np.float32)
        case "float16":
            return bits_N.view(np.float16).astype(np.float32)
        case "float8_e4m3fn":
            return _E4M3[bits_N]
        case "float8_e5m2":  # the upper byte of a float16
            return (bits_N.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
        case "float32" | "float64":
            return bits_N.view(dtype)
        case _:
            raise NotImplementedError(f"no values for dtype {dtype!r}")


def bits_of(
    values_N: NDArray[np.floating[Any]], dtype: str, noise_N: NDArray[np.uint32] | None = None
) -> tuple[Bits, NDArray[np.bool_]]:
    """Numbers rounded once into a format: their bit patterns, and where that is a finite number.

    Without ``noise_N``: to nearest, ties to even. With it (uint32, uniform): up with the
    probability of the fraction that is cut off, so that the expectation is the number itself
    (to 2^-32 ulp). float32 and float64 numbers need no rounding into their own format.

    With e the number's exponent, m = mantissa and s = 23 - m + max(e_min - e, 0), the pattern is

        (max(e - e_min, 0) << m) + ((significand + add) >> s)

    where add is half - 1 + (the bit that stays last), or s bits of noise. A carry runs from
    the significand into the exponent, and from the subnormals into the normals, by itself.

    Args:
        values_N: float32 [N] (float64 for float64).
        dtype: a name in :data:`FORMATS`.
        noise_N: None, or uint32 [N].

    Returns:
        bits [N], and bool [N]: False where the number is NaN, infinite, or rounds beyond the
        largest finite number (the bits are then meaningless).

    >>> bits_of(np.array([1.0, 3.0e38, np.inf], np.float32), "float16")[1]
    array([ True, False, False])
    """
    form = format_of(dtype)
    if form.width >= 32:
        return values_N.astype(form.work, copy=False).view(form.bits), np.isfinite(values_N)
    raw = values_N.astype(np.float32, copy=False).view(np.uint32).astype(np.int64)
    sign, field, fraction = raw >> 31, (raw >> 23) & 0xFF, raw & 0x7FFFFF
    significand = np.where(field == 0, fraction, fraction | 0x800000)
    exponent = np.maximum(field, 1) - 127
    shift = 23 - form.mantissa + np.maximum(form.e_min - exponent, 0)
    if noise_N is None:
        shift = np.minimum(shift, 26)  # a half of 2^25 is above any significand: all round to 0
        add = (np.int64(1) << (shift - 1)) - 1 + ((significand >> shift) & 1)
    else:  # beyond 32 bits of noise the significand is cut instead
        significand >>= np.clip(shift - 32, 0, 63)
        shift = np.minimum(shift, 32)
        add = noise_N.astype(np.int64) >> (32 - shift)
    size = (np.maximum(exponent - form.e_min, 0) << form.mantissa) + ((significand + add) >> shift)
    finite = (field != 0xFF) & (size <= form.max_finite)
    size = np.where(finite, size, 0)
    return (size | (sign << (form.width - 1))).astype(form.bits), finite


def round_to_bfloat16(values_N: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Bit patterns [N] of numbers rounded to bfloat16, to nearest even; float64 by way of float32.

    Beyond the largest finite number: infinity. NaN: any pattern.

    >>> round_to_bfloat16(np.array([1.0, 1.0 + 2**-8, 3.4e38])).tolist() == [0x3F80, 0x3F80, 0x7F80]
    True
    """
    with np.errstate(over="ignore"):
        raw_N = values_N.astype(np.float32, copy=False).view(np.uint32)
    odd_N = (raw_N >> np.uint32(16)) & np.uint32(1)
    return ((raw_N + np.uint32(0x7FFF) + odd_N) >> np.uint32(16)).astype(np.uint16)


def ulp_of(values_N: NDArray[np.floating[Any]], dtype: str) -> NDArray[np.float64]:
    """The spacing of a format's numbers at \\|w\\|, float64 [N]: 2^(max(e, e_min) - mantissa).

    For float64 the exponent stops at -970, where the spacing is the smallest normal float64.

    >>> ulp_of(np.array([0.02, 0.0]), "bfloat16")
    array([1.22070312e-04, 9.18354962e-41])
    """
    form = format_of(dtype)
    e_min = max(form.e_min, -1022 + form.mantissa)
    e_N = np.frexp(np.abs(np.asarray(values_N, dtype=np.float64)))[1] - 1
    e_N = np.where(np.asarray(values_N) == 0, e_min, np.maximum(e_N, e_min))
    ulps_N: NDArray[np.float64] = np.ldexp(1.0, e_N - form.mantissa)
    return ulps_N


def has_whole_blocks(block: int, n: int) -> bool:
    """Whether ``n`` codes are whole blocks of bit planes of a size that kernels take.

    A block is a multiple of 256 elements, so that no tile of a kernel lies in two.

    >>> has_whole_blocks(512, 1024), has_whole_blocks(1000, 2000), has_whole_blocks(512, 1000)
    (True, False, False)
    """
    return block > 0 and block % 256 == 0 and n % block == 0
