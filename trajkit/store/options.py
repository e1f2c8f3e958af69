"""Options with which a store can be made."""

from trajkit.arrays import DTYPES
from trajkit.errors import InvalidInput
from trajkit.store.codecs import codec_by_name


def check_options(
    codec: str | None, keyframes: int | None, dtype: str | None, poll_seconds: float = 1.0
) -> None:
    """Refuse options that no store can be made with."""
    if codec is not None:
        codec_by_name(codec)
    if keyframes is not None and keyframes < 1:
        raise InvalidInput(f"keyframes must be 1 or more, not {keyframes}")
    if not 0 <= poll_seconds < float("inf"):
        raise InvalidInput(f"poll_seconds must be 0 or more, not {poll_seconds}")
    if dtype is not None and not (dtype in DTYPES and DTYPES[dtype].is_float):
        raise InvalidInput(f"dtype must be a floating-point type such as bfloat16, not {dtype!r}")
