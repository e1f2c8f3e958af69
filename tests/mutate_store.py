"""Stores changed by an attacker, every digest made right again: python mutate_store.py FIRST COUNT.

Makes a small store, then COUNT mutants of it with the seeds FIRST, FIRST + 1, ...: one value in one
document, shard index, record, table, chunk or gzip replaced by something hostile, and every checksum
and digest above it computed anew. Each command then gives data that is right or one line: never a
traceback, a signal, more than a few seconds or gigabytes, a byte outside its folder, a control
character. Prints a line a mutant; the exit code is 1 where one did otherwise.

Provenance: all written here, from the list of what a hostile reading of trajkit found.
"""

import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import safetensors
from store_series import any_bits, drift, write_checkpoint

import trajkit
from trajkit.errors import TrajkitError
from trajkit.evidence.backtest import backtest
from trajkit.evidence.movement import measure_evidence
from trajkit.reports.info import describe_store
from trajkit.store.store import Store

SECONDS = 60
"""a mutant may take, all commands together: a busy machine's share of what takes two"""
MEMORY_BYTES = 8 << 30
SCRIPT = "<script>hostile()</script>"
DEEP = "@deep@"
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 255, 2**31, 2**32 + 1, 2**53 + 1, 10**12, 2**63 - 1),
    *(2**63, 2**64 - 1, 2**70, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320, float("inf")),
    *(float("nan"), "", "x", "x" * 300, "x" * 5000, "a\nb", "\x1b[2J\x1b]0;owned\x07", "\ud800"),
    *("\u202egnp", "../evil", "//{box}/evil", "/{box}/evil", "a//b", ".", "..", "zarr.json"),
    *("model.safetensors", "config.json", "config.json/x", SCRIPT, "a\0b", "bfloat16", "int64"),
    *("none", "pcodec", "sparse", [], {}, [[]], [None], [1, 2], ["a"], {"a": 1}, [[["x"]]], DEEP),
]
STEPS = (10, 20, 30, 40, 50)


def make_store(folder: Path) -> Path:
    """A store of five sharded checkpoints of three dtypes, with a fit that keeps its sums."""
    rng = np.random.default_rng(0)
    first = {
        "model.embed_tokens.weight": any_bits(rng, "float32", (30, 8)) * 0 + 1,
        "model.norm.weight": rng.standard_normal(17).astype(np.float32),
        "model.layers.0.mlp.weight": rng.standard_normal((40, 9)).astype(np.float16),
        "model.ids": rng.integers(0, 99, 11),
    }
    for step, state in zip(STEPS, drift(rng, first, len(STEPS)), strict=True):
        place = folder / "ckpts" / f"checkpoint-{step}"
        history = [{"step": s, "reward": s / 9, "loss": 1 / s} for s in range(1, step, 4)]
        write_checkpoint(
            place, state, 2, {"format": "pt"}, config={"architectures": ["X"]},
            trainer_state={"log_history": history},
        )  # fmt: skip
    store = folder / "store"
    trajkit.ingest(folder / "ckpts", store, keyframes=3)
    trajkit.fit(str(store), keep_sums=True)
    backtest(store)
    measure_evidence(store)
    return store


def dump(document: Any) -> bytes:
    """A document as trajkit spells it, as far as it can be spelt so."""
    options: dict[str, Any] = {"indent": 1, "sort_keys": True}
    try:
        content = (json.dumps(document, ensure_ascii=False, **options) + "\n").encode()
    except UnicodeEncodeError:
        content = (json.dumps(document, **options) + "\n").encode()
    return content.replace(f'"{DEEP}"'.encode(), b"[" * 5000 + b"]" * 5000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def crc32c(content: bytes | bytearray) -> bytes:
    return struct.pack("<I", google_crc32c.value(bytes(content)))


def places(value: Any, trail: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document; of long lists, the first few items."""
    yield trail
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*trail, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 6)):
            yield from places(value[i], (*trail, i))


@cache
def bomb() -> bytes:
    """A little gzip that unpacks to more than a record may hold."""
    return gzip.compress(b'{"files":"' + b" " * (300 << 20), 1)


class Mutant:
    """One copy of the store, changed in one place."""

    def __init__(self, store: Path, box: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.box = box
        self.path = box / "store"
        shutil.copytree(store, self.path)
        self.what = ""

    def make(self) -> None:
        """Change one thing, and make everything above it right again."""
        kinds: list[Callable[[], None]] = [
            *([self.root] * 3),
            *([self.table] * 2),
            *([self.source] * 5),
            *([self.fit] * 4),
            *([self.kept] * 4),
            *([self.shard] * 3),
            *(
                self.array_metadata,
                self.fit_table,
                self.parquet,
                self.asset,
                self.gzip,
                self.special,
            ),
        ]
        kind = self.draw.choice(kinds)
        self.what = kind.__name__
        kind()

    def change(self, document: Any) -> Any:
        """The document with one place of it replaced, removed, doubled or renamed."""
        spots = list(places(document))
        trail = self.draw.choice(spots)
        value = self.value()
        self.what += f" {'.'.join(map(str, trail))} <- {value!r:.60}"
        if not trail:
            return value
        parent = document
        for key in trail[:-1]:
            parent = parent[key]
        last = trail[-1]
        match self.draw.randrange(8):
            case 0 if isinstance(parent, dict):
                del parent[last]
                self.what += " removed"
            case 1 if isinstance(parent, dict):
                parent[str(value)[:80]] = parent.pop(last)
                self.what += " renamed"
            case 2 if isinstance(parent, list):
                parent.append(parent[last])
                self.what += " doubled"
            case 3 if isinstance(parent, list):
                del parent[last]
                self.what += " removed"
            case 4 if isinstance(parent[last], int):
                parent[last] += self.draw.choice([-1, 1, 2**32, 10**12])
                self.what += " nudged"
            case _:
                parent[last] = value
        return document

    def value(self) -> Any:
        value = self.draw.choice(VALUES)
        return value.replace("{box}", str(self.box)) if isinstance(value, str) else value

    def seal(self, root: Any) -> None:
        """Write the root, its digest right."""
        attributes = root.get("attributes") if isinstance(root, dict) else None
        if isinstance(attributes, dict):
            attributes.pop("sha256", None)
            attributes["sha256"] = sha256(dump(attributes))
        (self.path / "zarr.json").write_bytes(dump(root))

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_bytes())

    def root(self) -> None:
        document = self.read("zarr.json")
        document["attributes"] = self.change(document["attributes"])
        self.seal(document)

    def table(self) -> None:
        document = self.read("tensors/zarr.json")
        document["attributes"] = self.change(document["attributes"])
        content = dump(document)
        (self.path / "tensors" / "zarr.json").write_bytes(content)
        root = self.read("zarr.json")
        root["attributes"]["tensors_sha256"] = sha256(content)
        self.seal(root)

    def put_source(self, content: bytes) -> None:
        """Make this the source record of all checkpoints."""
        name = sha256(content)[:16]
        (self.path / "assets" / f"source-{name}.json.gz").write_bytes(content)
        root = self.read("zarr.json")
        root["attributes"]["sources"] = [name] * len(STEPS)
        self.seal(root)

    def source_document(self) -> Any:
        name = self.read("zarr.json")["attributes"]["sources"][-1]
        raw = (self.path / "assets" / f"source-{name}.json.gz").read_bytes()
        return json.loads(gzip.decompress(raw))

    def source(self) -> None:
        """The source record, a header in it, or the index in it."""
        record = self.source_document()
        part = self.draw.choice(["record", "header", "header", "index"])
        self.what += f" {part}"
        if part == "record":
            record = self.change(record)
        elif part == "header":
            pair = self.draw.choice(record["files"])
            pair[1] = dump(self.change(json.loads(pair[1]))).decode()
        else:
            record["index"][1] = dump(self.change(json.loads(record["index"][1]))).decode()
        self.put_source(gzip.compress(dump(record), mtime=0))

    def gzip(self) -> None:
        """Something else where gzip is expected."""
        good = gzip.compress(dump(self.source_document()), mtime=0)
        self.put_source(
            self.draw.choice(
                [
                    b"",
                    b"x",
                    good[:-9],
                    good[:40],
                    good + b"x",
                    good + good,
                    good[:60] + b"\0" * 9,
                    bomb(),
                ]
            )
        )

    def kept(self) -> None:
        """The backtest, the evidence or the metrics."""
        name = self.draw.choice(["backtest", "evidence", "metrics"])
        self.what += f" {name}"
        document = self.read(f"{name}/zarr.json")
        document["attributes"] = attributes = self.change(document["attributes"])
        if isinstance(attributes, dict):
            attributes.pop("sha256", None)
            attributes["sha256"] = sha256(dump(attributes))
        (self.path / name / "zarr.json").write_bytes(dump(document))

    def fit(self) -> None:
        path = self.path / "fits" / "default" / "zarr.json"
        document = json.loads(path.read_bytes())
        document["attributes"] = self.change(document["attributes"])
        self.seal_fit(document)

    def seal_fit(self, document: Any) -> None:
        attributes = document["attributes"]
        if isinstance(attributes, dict):
            attributes.pop("sha256", None)
            attributes["sha256"] = sha256(dump(attributes))
        (self.path / "fits" / "default" / "zarr.json").write_bytes(dump(document))

    def fit_table(self) -> None:
        """The table of a fit: other bytes, other columns, other values, more rows."""
        (path,) = self.path.glob("fits/default/**/tensors.json.gz")
        content = bytearray(path.read_bytes())
        columns = json.loads(gzip.decompress(content))
        column = self.draw.choice(list(columns))
        match self.draw.randrange(7):
            case 0:
                at = self.draw.randrange(len(content))
                content[at] ^= 1 << self.draw.randrange(8)
            case 1:
                del content[self.draw.randrange(len(content)) :]
            case 2:
                del columns[column]
            case 3:
                columns = self.change(columns)
            case 4:
                columns[column] = columns[column] * 3
            case 5:
                columns[column] = [SCRIPT] * len(columns[column])
            case _:
                columns[column] = [None] * len(columns[column])
        if content == path.read_bytes():
            content = bytearray(gzip.compress(dump(columns), mtime=0))
        self.put_table(path, bytes(content), column)

    def parquet(self) -> None:
        """The table of a fit as an earlier trajkit kept it: other bytes, columns and rows."""
        import polars as pl

        (earlier,) = self.path.glob("fits/default/**/tensors.json.gz")
        table = trajkit.open(self.path).fits["default"].summary()
        earlier.unlink()
        path = earlier.with_name("tensors.parquet")
        column = self.draw.choice(table.columns)
        match self.draw.randrange(6):
            case 0 | 1:
                table.write_parquet(path)
            case 2:
                table.drop(column).write_parquet(path)
            case 3:
                table.with_columns(pl.lit(SCRIPT).alias(column)).write_parquet(path)
            case 4:
                pl.concat([table] * 3).write_parquet(path)
            case _:
                table.with_columns(pl.lit(None).alias(column)).write_parquet(path)
        content = bytearray(path.read_bytes())
        match self.draw.randrange(4):
            case 0:
                content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
            case 1:
                del content[self.draw.randrange(len(content)) :]
        self.put_table(path, bytes(content), column)

    def put_table(self, path: Path, content: bytes, column: str) -> None:
        self.what += f" {column}"
        path.write_bytes(content)
        document = self.read("fits/default/zarr.json")
        document["attributes"]["table_sha256"] = sha256(content)
        self.seal_fit(document)

    def asset(self) -> None:
        """A config.json that holds anything, its digest in the record right."""
        content = dump(self.change({"architectures": ["XForCausalLM"], "_name_or_path": "a/b"}))
        (self.path / "assets" / "config.json").write_bytes(content)
        record = self.source_document()
        record["assets"]["config.json"][1] = sha256(content)
        self.put_source(gzip.compress(dump(record), mtime=0))

    def array_metadata(self) -> None:
        path = self.draw.choice(sorted(self.path.rglob("zarr.json")))
        self.what += f" {path.relative_to(self.path)}"
        path.write_bytes(dump(self.change(json.loads(path.read_bytes()))))

    def shard(self) -> None:
        """A shard's index, a chunk's header or its size, checksums right."""
        shards = [p for p in sorted(self.path.rglob("c/**/*")) if p.is_file()]
        path = self.draw.choice(shards)
        self.what += f" {path.relative_to(self.path)}"
        content = bytearray(path.read_bytes())
        offset, n_bytes = struct.unpack("<QQ", content[-20:-4])
        match self.draw.randrange(4):
            case 0:
                values = [
                    0,
                    1,
                    4,
                    n_bytes - 1,
                    n_bytes + 1,
                    2**31,
                    2**32,
                    2**63,
                    2**64 - 2,
                    2**64 - 1,
                ]
                pair = [offset, n_bytes]
                pair[self.draw.randrange(2)] = self.draw.choice(values)
                content[-20:-4] = struct.pack("<QQ", *pair)
            case 1:
                at = self.draw.randrange(min(n_bytes - 4, 24))
                content[at] = self.draw.choice([0, 1, 2, 127, 128, 255])
            case 2:
                at = self.draw.randrange(n_bytes - 4)
                content[at] ^= 1 << self.draw.randrange(8)
            case _:
                other = self.draw.choice(shards)
                content = bytearray(other.read_bytes())
                self.what += f" <- {other.relative_to(self.path)}"
                n_bytes = 0
        if 4 < n_bytes <= len(content) - 20:
            content[n_bytes - 4 : n_bytes] = crc32c(content[: n_bytes - 4])
        content[-4:] = crc32c(content[-20:-4])
        path.write_bytes(content)

    def special(self) -> None:
        """A pipe, a link to a device, a folder or nothing in place of a file."""
        path = self.draw.choice([p for p in sorted(self.path.rglob("*")) if p.is_file()])
        path.unlink()
        kind = self.draw.randrange(5)
        self.what += f" {path.relative_to(self.path)} kind {kind}"
        match kind:
            case 0:
                os.mkfifo(path)
            case 1:
                path.symlink_to("/dev/zero")
            case 2:
                path.symlink_to(path)
            case 3:
                path.mkdir()


class TooLongError(BaseException):
    """A command did not end in time."""


class WrongError(Exception):
    """A command gave something else than right data or one line."""


def one_line(error: TrajkitError) -> None:
    """Check that an error is one line of what a terminal shows."""
    if not str(error).isprintable() or not 5 < len(str(error)) < 3000:
        raise WrongError(f"not one line: {str(error)!r:.300}") from error


def run_commands(mutant: Mutant, originals: Path, thorough: bool) -> int:
    """Every command on the mutant; how many gave data."""
    path, box = mutant.path, mutant.box

    def info() -> None:
        describe_store(Store.open(path))

    def verify() -> None:
        for damage in trajkit.verify(path).bad:
            if not damage.what.isprintable():
                raise WrongError(f"verify says {damage.what!r:.300}")

    def read() -> None:
        traj = trajkit.open(path)
        for name, info in list(traj.tensors.items()):
            step = int(traj.steps[-1])
            array = traj.read(name, step)
            if array.nbytes > 10**7:
                raise WrongError(f"{name} has {array.nbytes} bytes")
            traj.trajectory(name, (0,) * len(info.shape)) if info.size else None

    def restore() -> None:
        traj = trajkit.open(path)
        step = int(traj.steps[-1])
        trajkit.restore(traj, step, box / "restored")
        if step in STEPS:
            check_restored(box / "restored", originals / f"checkpoint-{step}")

    def extrapolate() -> None:
        trajkit.extrapolate(str(path), 90, box / "made")

    def two_point() -> None:
        trajkit.extrapolate(str(path), 90, box / "pair", estimator="two-point")

    def report() -> None:
        result = trajkit.report(str(path), box / "report")
        if SCRIPT in Path(result.path).read_text():
            raise WrongError("the report holds a script of the store's")

    def fit() -> None:
        trajkit.fit(str(path))

    def auto() -> None:
        trajkit.extrapolate(str(path), 60, box / "auto", estimator="auto")

    commands = [info, verify, read, restore, extrapolate, two_point]
    if mutant.what.startswith("kept"):
        commands.append(auto)
    if thorough or mutant.what.startswith(("fit", "parquet", "kept")):
        commands.append(report)
    good = 0
    for command in (*commands, fit):
        try:
            command()
            good += 1
        except TrajkitError as error:
            one_line(error)
        except WrongError:
            raise
        except BaseException as error:
            raise WrongError(f"{command.__name__}: {type(error).__name__}") from error
    return good


def check_restored(found: Path, original: Path) -> None:
    """Every tensor of the original is there, bit for bit."""

    def tensors(folder: Path) -> dict[str, Any]:
        files = sorted(folder.rglob("*.safetensors"))
        return {n: t for f in files for n, t in safetensors.deserialize(f.read_bytes())}

    if tensors(found) != tensors(original):
        raise WrongError("restore wrote another checkpoint")


def check_box(box: Path, canary: bytes) -> None:
    """Nothing lies beside what the commands were to write."""
    allowed = {"store", "restored", "made", "pair", "auto", "report", "canary"}
    found = {p.name for p in box.iterdir()}
    if not found <= allowed:
        raise WrongError(f"written outside: {sorted(found - allowed)}")
    if (box / "canary").read_bytes() != canary:
        raise WrongError("the canary changed")


def main(first: int, count: int) -> int:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def too_long(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder)
        canary = b"as it was"
        data, wrong = 0, []
        for seed in range(first, first + count):
            box = folder / f"box-{seed}"
            box.mkdir()
            (box / "canary").write_bytes(canary)
            mutant = Mutant(store, box, seed)
            mutant.make()
            print(f"seed {seed}: {mutant.what!r}", flush=True)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                data += run_commands(mutant, folder / "ckpts", thorough=seed % 10 == 0)
                check_box(box, canary)
            except WrongError as error:
                print(f"seed {seed}: WRONG: {error}", flush=True)
                traceback.print_exception(error)
                wrong.append(seed)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            shutil.rmtree(box)
    print(f"{count} mutants, {data} times data; wrong: {wrong or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
