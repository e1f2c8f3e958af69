"""Room for the process where the system allows few addresses."""

import ctypes
import resource

_ROOMY_BYTES = 8 << 30
_M_ARENA_MAX = -8
"""of glibc's malloc.h"""


def spare_address_space() -> bool:
    """Under a limit on the address space (``ulimit -v``) let all threads share one heap.

    glibc reserves 64 MiB or more of addresses for each thread that asks for memory, and of 1 GiB
    the interpreter's libraries take 700 MiB: what is then refused makes OpenBLAS abort. True where
    it was done; to be called before there are threads.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= _ROOMY_BYTES:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, 1))
