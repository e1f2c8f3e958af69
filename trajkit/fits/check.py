"""Every byte of a store's fits against its checksums."""

from collections.abc import Iterator

import numpy as np

from trajkit.disk import canonical_json
from trajkit.errors import FormatError, NotFound
from trajkit.fits.arrays import sums_arrays
from trajkit.fits.kept import fit_names, read_fit
from trajkit.store.array import ZArray
from trajkit.store.documents import GROUP, check_content
from trajkit.store.store import Store


def check_fits(store: Store) -> Iterator[str]:
    """One line for every damaged thing in the store's fits."""
    names = fit_names(store)
    if names:
        yield from check_content(store.path / "fits" / "zarr.json", [GROUP])
    for name in names:
        try:
            fit = read_fit(store, name)
            fit._table_bytes()
        except (FormatError, NotFound) as error:
            yield str(error)
            continue
        for dtype, arrays in fit.arrays.items():
            for inner in fit.record.inner_groups():
                yield from check_content(fit.path / dtype / inner / "zarr.json", [GROUP])
            sums = sums_arrays(fit.path, store.vectors[dtype]) if fit.record.sums else {}
            for array in (*arrays.values(), *sums.values()):
                place = array.path.relative_to(fit.path).as_posix()
                faults = list(_check_array(array))
                yield from faults
                if not faults and array.row_digest() != fit.record.digests.get(place):
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
