"""What is kept of a recorded step beside its bits: the files that restoring it writes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from trajkit.arrays import DTYPES
from trajkit.checkpoints.record import SourceRecord
from trajkit.checkpoints.shards import make_header
from trajkit.store.store import Store

FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"


class Description:
    """One safetensors file with every tensor of a store, and the model's side files.

    Args:
        store: its tensors; of its last step those side files are kept that are not given.
        dtypes: in which the model has each tensor, where the store says that it was converted.
        side_files: by name.
    """

    def __init__(
        self, store: Store, dtypes: Mapping[str, str], side_files: Mapping[str, bytes]
    ) -> None:
        self.side_files = side_files
        self.assets = last_assets(store)
        """side files that the store has already: name -> (file there, sha256)"""
        self._header = describe_file(store, dtypes if store.commit.cast else {})
        self._packed: tuple[str, bytes] | None = None

    @property
    def has_config(self) -> bool:
        """Whether there is a config.json, without which no library loads a restored step."""
        return "config.json" in self.side_files or "config.json" in self.assets

    def pack(self, keep: Callable[[str, bytes], tuple[str, str]]) -> tuple[str, bytes]:
        """The record's name and bytes; side files are handed to ``keep`` the first time only."""
        if self._packed is None:
            kept = {name: keep(name, content) for name, content in self.side_files.items()}
            self._packed = replace(self._header, assets={**self.assets, **kept}).pack()
        return self._packed


def describe_file(store: Store, dtypes: Mapping[str, str]) -> SourceRecord:
    """The record of one file that holds every tensor of a store.

    Args:
        store: its tensors.
        dtypes: of those that the file has in another dtype. Wider ones lie first, so that each
            begins where its dtype may.
    """
    infos = [replace(i, dtype=dtypes.get(i.name, i.dtype)) for i in store.tensors.values()]
    infos.sort(key=lambda info: -DTYPES[info.dtype].itemsize)
    adapter = all(info.name.startswith("base_model.model.") for info in infos)
    header = make_header([(info.name, info) for info in infos], {"format": "pt"})
    return SourceRecord(((ADAPTER_FILE if adapter else FILE, header),), None)


def last_assets(store: Store) -> dict[str, tuple[str, str]]:
    """The side files of a store's last step; none where there is no step."""
    if not store.commit.frames:
        return {}
    kept = SourceRecord.read(store.path, store.commit.frames[-1].source)
    return {name: asset for name, asset in kept.assets.items() if Path(name).name == name}
