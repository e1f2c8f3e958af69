"""How functions are compiled, and where compiled code is kept."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import types
from numba.core.caching import FunctionCache, NullCache
from numba.extending import intrinsic

from trajkit.kernels.compiling import tell_compiling, tell_unkept

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
    """The dispatcher with a cache; what it does for ``cache=True``, where there is a place for one."""
    try:
        dispatcher._cache = _Cache(dispatcher.py_func)
    except RuntimeError:  # a read-only installation, and no home to write to
        dispatcher._cache = _NoCache()
    return dispatcher


class _NoCache(NullCache):  # type: ignore[misc]
    """Compiles in every process anew, and says so."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        tell_compiling(kept=False)


class _Cache(FunctionCache):  # type: ignore[misc]
    """Compiled code on disk, valid for the sources of all kernels.

    numba looks at the file of the function itself, not at what it calls, nor at the constants it
    takes from elsewhere: after a change in one file it would go on with the old code from another.

    A cache may be cut short by a kill or a full disk, and may refuse to be written. Neither is an
    error: what cannot be read is compiled again, what cannot be written is not kept.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            kept = super().load_overload(sig, target_context)
        except Exception:  # half a pickle raises anything
            self._forget()
            kept = None
        if kept is None:
            tell_compiling(kept=True)
        return kept

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            tell_unkept(error.strerror or str(error))

    def _forget(self) -> None:
        """Begin the function's index anew, so that saving does not meet the damage again."""
        try:
            self.flush()
        except OSError as error:
            tell_unkept(error.strerror or str(error))

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
