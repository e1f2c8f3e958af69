"""Every byte of a store's fits against its checksums."""

from collections.abc import Iterator

import numpy as np

from trajkit.disk import canonical_json
from trajkit.errors import FormatError, NotFound, StorageError, Unsupported
from trajkit.fits.arrays import sums_arrays
from trajkit.fits.commit import MARKER
from trajkit.fits.kept import Fit, fit_names, read_fit
from trajkit.store.array import ZArray
from trajkit.store.documents import GROUP, check_content
from trajkit.store.store import Store


def check_fits(store: Store) -> Iterator[str]:
    """One line for every damaged thing in the store's fits; what is no fit is passed over."""
    names = fit_names(store)
    if names:
        yield from check_content(store.path / "fits" / "zarr.json", [GROUP])
    for name in names:
        try:
            fit = read_fit(store, name)
            faults = list(_check_fit(fit))
            while faults and not fit.is_current():  # another took its place while we read
                fit = read_fit(store, name)
                faults = list(_check_fit(fit))
        except NotFound:
            continue  # dropped meanwhile
        except (FormatError, StorageError, Unsupported) as error:
            faults = [str(error)]
        yield from faults


def _check_fit(fit: Fit) -> Iterator[str]:
    try:
        fit._table_bytes()
    except FormatError as error:
        yield str(error)
    if fit.record.arrays is not None:
        yield from check_content(fit.folder / "zarr.json", [MARKER])
    for dtype, arrays in fit.arrays.items():
        for inner in fit.record.inner_groups():
            yield from check_content(fit.folder / dtype / inner / "zarr.json", [GROUP])
        keeps = fit.record.found.sums is not None
        sums = sums_arrays(fit.folder, fit.store.vectors[dtype]) if keeps else {}
        for array in (*arrays.values(), *sums.values()):
            place = array.path.relative_to(fit.folder).as_posix()
            faults = list(_check_array(array))
            yield from faults
            if not faults and array.row_digest() != fit.record.found.digests.get(place):
                yield f"{array.path}: intact, but not of this fit; run trajkit fit again"


def _check_array(array: ZArray) -> Iterator[str]:
    yield from check_content(array.path / "zarr.json", [canonical_json(array.metadata())])
    for s, path in enumerate(array.shard_paths(0)):
        try:
            array.check_shard(0, s)
            chunk = np.empty(array.chunk, array.dtype)
            for k in range(
                s * array.shard_chunks, min((s + 1) * array.shard_chunks, array.n_chunks)
            ):
                array.read_chunk(0, k, chunk)
        except FormatError as error:
            text = str(error)
            yield text if str(path) in text else f"{path}: {text}"
