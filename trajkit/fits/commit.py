"""A fit put into the store whole, in one rename, and taken out of it again.

The arrays of every fit go to a new folder in the fit's own, which readers meet only once the
record that names it has taken the place of the record before. So an open fit finds its own arrays
or none, never those of another; and a writer killed at any instant leaves the old fit or the new.
"""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from trajkit.arrays import DTYPES
from trajkit.disk import canonical_json, disk_errors, replace_file, sync_directory
from trajkit.errors import AlreadyExists
from trajkit.fits.kept import EARLIER_TABLE, TABLE, Fit, check_fit_name, is_fit, no_fit
from trajkit.fits.record import ARRAYS_FOLDER, FitRecord
from trajkit.store.documents import GROUP, group_document
from trajkit.store.lock import ResultsLock
from trajkit.store.store import Store

MARKER = canonical_json(group_document({"format": "trajkit-fit-arrays"}))
"""the ``zarr.json`` of a folder of arrays: written first and removed last, so that it says whose
the folder is"""
_RECORD = "zarr.json"


@contextmanager
def new_arrays(store: Store, name: str) -> Iterator[Path]:
    """A new folder for the arrays of a fit, to be used under the lock and then committed.

    What earlier fits of the name left behind when they were killed is removed first; this folder
    too, where the ``with`` block ends in an error before its commit.

    Raises:
        AlreadyExists: something that is no fit has the fit's place.
    """
    home = _claim_home(store, name)
    folder = home / f"arrays-{secrets.token_hex(8)}"
    try:
        with disk_errors(home):
            _remove_leftovers(home)
            folder.mkdir()
        replace_file(folder / _RECORD, MARKER)
        yield folder
    except BaseException:
        with suppress(OSError):
            if folder.is_dir() and not _is_named(home, folder):
                _remove_arrays(folder)
            (home / f"{_RECORD}.part").unlink(missing_ok=True)
            home.rmdir()
        raise


def commit_fit(store: Store, folder: Path, record: FitRecord, table: bytes) -> Fit:
    """Write the table and the record, and remove the arrays of the fit that was there before."""
    home = folder.parent
    found = replace(record.found, table_sha256=hashlib.sha256(table).hexdigest())
    record = replace(record, found=found, arrays=folder.name)
    groups = [folder / d / inner for d in record.asked.dtypes for inner in record.inner_groups()]
    with disk_errors(home):
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
            replace_file(group / _RECORD, GROUP)
        replace_file(folder / TABLE, table)
        for place in (home, home.parent):
            sync_directory(place)
        replace_file(home / _RECORD, canonical_json(record.document()))
        _remove_leftovers(home)
        _remove_earlier_forms(home)
    return Fit(store, home, record)


def drop_fit(store: Store, name: str) -> int:
    """Remove a fit, in one step for whoever reads; returns the bytes that were freed.

    Raises:
        NotFound: there is none of that name. Locked: another writer holds the store.
    """
    home = store.path / "fits" / check_fit_name(name)
    with ResultsLock(store.path), disk_errors(home):
        if is_fit(home):
            before = bytes_of(home)
            (home / _RECORD).unlink()
            sync_directory(home)
        elif home.is_dir() and not home.is_symlink() and _leftovers(home):
            before = bytes_of(home)  # of a fit, or of a removal, that was killed
        else:
            raise no_fit(store, name)
        _remove_leftovers(home)
        _remove_earlier_forms(home)
        (home / f"{_RECORD}.part").unlink(missing_ok=True)
        with suppress(OSError):  # something that is not ours is in it
            home.rmdir()
    return before - (bytes_of(home) if home.is_dir() else 0)


def bytes_of(home: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(p.lstat().st_size for p in home.rglob("*") if not p.is_dir())


def _claim_home(store: Store, name: str) -> Path:
    """The fit's own folder, made where it is missing."""
    fits = store.path / "fits"
    home = fits / check_fit_name(name)
    for place in (fits, home):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise AlreadyExists(
                f"{place}: expected a folder that trajkit made, found another thing"
            )
    if (home / _RECORD).exists() and not is_fit(home):
        raise AlreadyExists(f"{home}: not a fit that trajkit made; give the fit another --name")
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        if not (fits / _RECORD).is_file():
            replace_file(fits / _RECORD, GROUP)
    return home


def _is_named(home: Path, folder: Path) -> bool:
    """Whether the record in force names this folder of arrays."""
    try:
        return folder.name.encode() in (home / _RECORD).read_bytes()
    except FileNotFoundError:
        return False


def _leftovers(home: Path) -> list[Path]:
    """Folders of arrays that no record names: killed writers leave them."""
    found = []
    for path in home.iterdir():
        if not re.fullmatch(ARRAYS_FOLDER, path.name) or path.is_symlink() or not path.is_dir():
            continue
        inner = {p.name for p in path.iterdir()}
        marked = _RECORD in inner and (path / _RECORD).read_bytes() == MARKER
        if (marked or inner <= {f"{_RECORD}.part"}) and not _is_named(home, path):
            found.append(path)
    return found


def _remove_leftovers(home: Path) -> None:
    for folder in _leftovers(home):
        _remove_arrays(folder)


def _remove_arrays(folder: Path) -> None:
    """Remove a folder that trajkit made, its marker last."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _RECORD:
            path.unlink()
    (folder / _RECORD).unlink(missing_ok=True)
    folder.rmdir()


def _remove_earlier_forms(home: Path) -> None:
    """Remove what earlier versions kept in the fit's folder, or beside it: their arrays."""
    for dtype in DTYPES:
        folder = home / dtype
        if folder.is_dir() and not folder.is_symlink() and _is_group(folder):
            _remove_arrays(folder)
            (home / EARLIER_TABLE).unlink(missing_ok=True)
    known = {*DTYPES, EARLIER_TABLE, _RECORD, f"{_RECORD}.part", f"{EARLIER_TABLE}.part"}
    for kind in ("part", "old"):
        folder = home.with_name(f".{home.name}.{kind}")
        if folder.is_symlink() or not folder.is_dir():
            continue
        if {p.name for p in folder.iterdir()} <= known:
            shutil.rmtree(folder)


def _is_group(folder: Path) -> bool:
    """Whether a folder is a Zarr group as trajkit writes it."""
    try:
        return bool(json.loads((folder / _RECORD).read_bytes()) == json.loads(GROUP))
    except (OSError, ValueError):
        return False
