"""How functions are compiled, and where compiled code is kept."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,  # no reference counts: nothing is allocated, and counting took a third of the time
}


def compiled(function: Function) -> Function:
    """Compile on first use, for each combination of types; keep the code between processes."""
    return _kept(numba.njit(**_OPTIONS)(function))


def compiled_fused(function: Function) -> Function:
    """As :func:`compiled`, but a * b + c may be rounded once: for sums, not for extrapolation."""
    return _kept(numba.njit(**_OPTIONS, fastmath={"contract"})(function))


def compiled_reordered(function: Function) -> Function:
    """As :func:`compiled`, but sums may be added up in any order: for reductions to one number."""
    return _kept(numba.njit(**_OPTIONS, fastmath={"reassoc", "nsz"})(function))


def _kept(dispatcher: Any) -> Any:
    """The dispatcher with a cache; what it does for ``cache=True``."""
    dispatcher._cache = _Cache(dispatcher.py_func)
    return dispatcher


class _Cache(FunctionCache):  # type: ignore[misc]
    """Compiled code on disk, valid for the sources of all kernels.

    numba looks at the file of the function itself, not at what it calls, nor at the constants it
    takes from elsewhere: after a change in one file it would go on with the old code from another.
    """

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return super()._index_key(sig, codegen), _digest_sources()


@functools.cache
def _digest_sources() -> str:
    """A digest of everything that compiled functions are made of."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@intrinsic  # type: ignore[untyped-decorator]
def inlined(typingctx: Any) -> Any:
    """Make LLVM inline the function that calls this: handing over its arrays costs 10 ns a call."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return context.get_dummy_value()

    return types.void(), codegen
