"""A fit written beside its place and put there whole."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from trajkit.disk import canonical_json, disk_errors, replace_file, sync_directory
from trajkit.fits.kept import Fit
from trajkit.fits.record import FitRecord
from trajkit.store.documents import GROUP
from trajkit.store.store import Store


def prepare_fit(store: Store, name: str) -> Path:
    """An empty folder beside the fit's place to write it into."""
    part = store.path / "fits" / f".{name}.part"
    with disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    return part


def commit_fit(store: Store, part: Path, record: FitRecord, table: bytes) -> Fit:
    """Write the record and the table, and rename the finished fit into its place."""
    target = store.path / "fits" / record.name
    record = replace(record, table_sha256=hashlib.sha256(table).hexdigest())
    groups = [part / d / inner for d in record.dtypes for inner in record.inner_groups()]
    with disk_errors(part):
        for folder in (*groups, part.parent):
            folder.mkdir(exist_ok=True)
            replace_file(folder / "zarr.json", GROUP)
        replace_file(part / "tensors.parquet", table)
        replace_file(part / "zarr.json", canonical_json(record.document()))
        old = target.with_name(f".{record.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        part.rename(target)
        sync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    return Fit(store, target, record)
