"""Write the corpus of malformed safetensors and index files: python tests/make_malformed.py DIR.

Each case is a folder DIR/NAME/checkpoint-7/ that a reader must refuse with one line holding the
case's phrases. Provenance: all written here, from the rules of safetensors' format page and from
what a reader must survive: lengths beyond the file, overlaps, paths and links that leave the
folder, names that rewrite a terminal.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
DATA = bytes(range(24))


@dataclass(frozen=True)
class Case:
    name: str
    write: Callable[[Path], None]
    phrases: tuple[str, ...]
    """all of them are in the refusal"""


CASES: list[Case] = []


def pack(header: bytes | str | dict, data: bytes = DATA, length: int | None = None) -> bytes:
    """The bytes of a safetensors file with any header at all."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def whole(name: str, content: bytes, *phrases: str) -> None:
    """A case of one file, model.safetensors, which the message must name."""
    phrases = ("model.safetensors", *phrases)
    CASES.append(Case(name, lambda d: (d / "model.safetensors").write_bytes(content), phrases))


def tensor(name: str, info: object, phrase: str) -> None:
    """A case of one bad tensor entry, after a good one; the message must name the bad one."""
    header = {"good": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "bad/../one": info}
    whole(name, pack(header), 'tensor "bad/../one"', phrase)


def bad(name: str, phrase: str, **fields: object) -> None:
    """A case of a tensor entry with some fields replaced."""
    tensor(name, F32 | fields, phrase)


def named(name: str, tensor_name: str) -> None:
    """A case of a bad tensor name."""
    whole(name, pack({tensor_name: F32}), "printable characters")


# The file itself
whole("empty-file", b"", "is empty")
whole("seven-bytes", b"\x10" * 7, "8 bytes of length expected, found 7")
whole("length-only", pack(b"", b""), "header length is 0")
whole("all-zeros", bytes(4096), "header length is 0")
whole("length-past-the-file", pack({"a": F32}, length=5000), "is cut in its header")
whole("length-over-100MB", pack({"a": F32}, length=100_000_001), "100000000 that safetensors")
whole("length-2-to-the-63", pack({"a": F32}, length=2**63), "9223372036854775808 bytes")
whole("length-all-ones", b"\xff" * 64, "18446744073709551615 bytes")
whole("git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs")
whole("a-pickle", b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system", "bytes")
whole("a-zip-like-torch", b"PK\x03\x04" + bytes(60), "torch.save")

# The header as JSON
whole("not-json", pack("{'a': 1}"), "is not JSON")
whole("cut-json", pack('{"a":{"dtype":"F32","shape":[2,3],"data_off'), "is not JSON")
whole("two-objects", pack("{}{}"), "is not JSON")
whole("not-utf8", pack(b'{"\xff\xfe":1}'), "is not JSON")
whole("utf16", pack("{}".encode("utf-16")), "expected a JSON object")
whole("byte-order-mark", pack(b"\xef\xbb\xbf{}"), "expected a JSON object")
whole("leading-space", pack(" " + json.dumps({"a": F32})), "expected a JSON object")
whole("nul-padding", pack(json.dumps({"a": F32}) + "\0\0\0"), "is not JSON")
whole("array", pack("[1, 2]"), "expected a JSON object")
whole("number", pack("7"), "expected a JSON object")
whole("null", pack("null"), "expected a JSON object")
whole("nan", pack('{"a": NaN}'), "is not JSON")
whole("infinity", pack('{"a": {"shape": [-Infinity]}}'), "is not JSON")
whole("raw-newline-in-name", pack('{"a\nb": {}}'), "is not JSON")
whole("5000-digits", pack('{"a":' + "9" * 5000 + "}"), "is not JSON")
whole("deep-arrays", pack('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), "nested too deeply")
whole("deep-objects", pack('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply")
whole("nine-million-values", pack(b'{"a":[' + b"0," * 9_000_000 + b"0]}"), "JSON values")
whole("tensor-twice", pack('{"a":%s,"a":%s}' % ((json.dumps(F32),) * 2)), 'key "a" occurs twice')
whole(
    "field-twice",
    pack('{"a":{"dtype":"F32","dtype":"BF16","shape":[2,3],"data_offsets":[0,24]}}'),
    'key "dtype" occurs twice',
)
whole("metadata-twice", pack('{"__metadata__":{},"__metadata__":{}}'), "occurs twice")
whole("no-tensor", pack({}, b""), "holds no tensor")
whole("only-metadata", pack({"__metadata__": {"format": "pt"}}, b""), "holds no tensor")
whole("metadata-array", pack({"__metadata__": ["pt"], "a": F32}), "__metadata__ must map")
whole("metadata-null", pack({"__metadata__": None, "a": F32}), "__metadata__ must map")
whole("metadata-number", pack({"__metadata__": {"step": 3}, "a": F32}), "__metadata__ must map")
whole("metadata-nested", pack({"__metadata__": {"x": {"y": "z"}}, "a": F32}), "__metadata__ must")

# One tensor's entry
tensor("entry-null", None, "expected the fields dtype, shape and data_offsets, found null")
tensor("entry-array", [1, 2], "expected the fields")
tensor("entry-text", "F32", "expected the fields")
tensor("entry-empty", {}, "expected the fields")
for field in F32:
    tensor(f"no-{field}", {k: v for k, v in F32.items() if k != field}, "expected the fields")
bad("extra-field", "expected the fields", strides=[3, 1])
bad("dtype-number", "expected a dtype, found 32", dtype=32)
bad("dtype-array", "expected a dtype", dtype=["F32"])
bad("dtype-unknown", "'FLOAT' is not supported", dtype="FLOAT")
bad("dtype-lower-case", "'f32' is not supported", dtype="f32")
bad("dtype-four-bits", "'F4' is not supported", dtype="F4")
bad("dtype-endless", "is not supported", dtype="F" * 100_000)
bad("shape-text", "expected a shape", shape="23")
bad("shape-object", "expected a shape", shape={"0": 2})
bad("shape-null", "expected a shape", shape=None)
bad("shape-negative", "whole numbers", shape=[-2, -3])
bad("shape-bool", "whole numbers", shape=[True, 6])
bad("shape-float", "whole numbers", shape=[2.0, 3])
bad("shape-text-inside", "whole numbers", shape=["2", 3])
bad("shape-nested", "whole numbers", shape=[[2], 3])
bad("shape-2-to-the-64", "whole numbers", shape=[2**64])
bad("shape-overflows-to-24", "63 bits", shape=[2**32, 2**31, 3])
bad("shape-overflows-beside-zero", "63 bits", shape=[2**40, 2**40, 0], data_offsets=[0, 0])
bad("shape-of-65-dimensions", "at most 64 dimensions", shape=[1] * 65)
bad("offsets-null", "expected data_offsets", data_offsets=None)
bad("offsets-one", "expected data_offsets", data_offsets=[24])
bad("offsets-three", "expected data_offsets", data_offsets=[0, 12, 24])
bad("offsets-text", "expected data_offsets", data_offsets=["0", "24"])
bad("offsets-bool", "expected data_offsets", data_offsets=[False, 24])
bad("offsets-float", "expected data_offsets", data_offsets=[0.0, 24.0])
bad("offsets-negative", "expected data_offsets", data_offsets=[-24, 0])
bad("offsets-reversed", "expected data_offsets", data_offsets=[24, 0])
bad("offsets-2-to-the-64", "expected data_offsets", data_offsets=[2**64, 2**64 + 24])
bad("span-too-small", "24 bytes apart", data_offsets=[0, 23])
bad("span-too-large", "24 bytes apart", data_offsets=[0, 25])
bad("span-of-other-dtype", "48 bytes apart", dtype="F64")
bad("hole-before", "leaves a hole after the header", data_offsets=[8, 32])
bad("far-away", "leaves a hole", data_offsets=[2**62, 2**62 + 24])
named("name-empty", "")
named("name-newline", "model\nRestored 12 steps: ok")
named("name-nul", "model\0.weight")
named("name-escape", "\x1b[2J\x1b]0;owned\x07")
named("name-delete", "model\x7f")
named("name-right-to-left", "model.\u202ethgiew")
named("name-line-separator", "a\u2028b")
named("name-surrogate", "model.\ud800")
named("name-endless", "x" * 5000)

# Several tensors
U8 = {"dtype": "U8", "shape": [4]}
A, B = (U8 | {"data_offsets": [i, i + 4]} for i in (0, 4))
whole("overlap", pack({"a": A, "b": U8 | {"data_offsets": [3, 7]}}, bytes(7)), '"b" overlaps')
whole("same-bytes-twice", pack({"a": A, "b": A}, bytes(4)), '"b" overlaps')
whole("hole-between", pack({"a": A, "b": U8 | {"data_offsets": [5, 9]}}, bytes(9)), "leaves a hole")
whole("one-byte-short", pack({"a": A, "b": B}, bytes(7)), "is cut")
whole("no-data", pack({"a": A, "b": B}, b""), "is cut")
whole("one-byte-more", pack({"a": A, "b": B}, bytes(9)), "1 trailing bytes")
whole("another-file-behind", pack({"a": A}, bytes(4) + pack({"a": A})), "trailing bytes")


# Folders
def folder(name: str, phrase: str) -> Callable[[Callable[[Path], None]], None]:
    """A case of a folder, written by the decorated function."""
    return lambda write: CASES.append(Case(name, write, (phrase,)))


def two_shards(root: Path, weight_map: object = None, index: bytes | None = None) -> None:
    """A good sharded checkpoint, then with another weight_map or index."""
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, key in zip(shards, "ab", strict=True):
        (root / shard).write_bytes(pack({key: A}, bytes(4)))
    if weight_map is None:
        weight_map = dict(zip("ab", shards, strict=True))
    if index is None:
        index = json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}).encode()
    (root / "model.safetensors.index.json").write_bytes(index)


def index(name: str, content: bytes | str, phrase: str) -> None:
    """A case of a whole bad index."""
    raw = content.encode() if isinstance(content, str) else content
    CASES.append(Case(name, lambda d: two_shards(d, index=raw), (phrase,)))


def places(name: str, shard: object, phrase: str) -> None:
    """A case of an index that places tensor b somewhere bad."""
    good = "model-00001-of-00002.safetensors"
    CASES.append(Case(name, lambda d: two_shards(d, {"a": good, "b": shard}), (phrase,)))


index("index-empty", b"", "is empty")
index("index-not-json", "weight_map: a", "expected a JSON object")
index("index-cut", '{"metadata": {}, "weight_map": {"a": "model-0', "is not JSON")
index("index-array", "[]", "expected a JSON object")
index("index-not-utf8", b'{"weight_map": {"\xff": "a.safetensors"}}', "is not JSON")
index("index-without-map", '{"metadata": {}}', "expected a weight_map")
index("index-map-empty", '{"weight_map": {}}', "expected a weight_map")
index("index-map-array", '{"weight_map": ["a.safetensors"]}', "expected a weight_map")
index("index-map-null", '{"weight_map": null}', "expected a weight_map")
index("index-key-twice", '{"weight_map": {"a": "x.safetensors", "a": "y"}}', "occurs twice")
index("index-deep", '{"weight_map":' + "[" * 99_999 + "]" * 99_999 + "}", "nested too deeply")
places("shard-number", 7, "expected a file name, found 7")
places("shard-null", None, "expected a file name, found null")
places("shard-array", ["a.safetensors"], "expected a file name")
places("shard-empty-name", "", "expected the name of a .safetensors file")
places("shard-dot", ".", "expected the name of a .safetensors file")
places("shard-parent", "../secret.safetensors", "leaves the checkpoint folder")
places("shard-parent-inside", "x/../../secret.safetensors", "leaves the checkpoint folder")
places("shard-absolute", "/etc/secret.safetensors", "leaves the checkpoint folder")
places("shard-backslash", "..\\secret.safetensors", "leaves the checkpoint folder")
places("shard-drive", "C:secret.safetensors", "leaves the checkpoint folder")
places("shard-url", "file:///etc/secret.safetensors", "leaves the checkpoint folder")
places("shard-doubled-name", "./model-00002-of-00002.safetensors", "the name of a .safetensors")
places("shard-pickle", "pytorch_model-00002-of-00002.bin", "the name of a .safetensors file")
places("shard-passwd", "passwd", "the name of a .safetensors file")
places("shard-nul", "model\0.safetensors", "the name of a .safetensors file")
places("shard-newline", "model\n.safetensors", "the name of a .safetensors file")
places("shard-missing", "model-00009-of-00009.safetensors", "is missing; model.safetensors.index")
places("shard-endless", "x" * 5000 + ".safetensors", "missing")
places("wrong-shard", "model-00001-of-00002.safetensors", 'tensor "b" in model-00001')


@folder("shard-holds-more", 'does not list tensor "extra"')
def _(root: Path) -> None:
    two_shards(root)
    shard = pack({"b": A, "extra": B}, bytes(8))
    (root / "model-00002-of-00002.safetensors").write_bytes(shard)


@folder("shard-holds-less", 'places tensor "c" in model-00002-of-00002.safetensors, which does not')
def _(root: Path) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    two_shards(root, {"a": shards[0], "b": shards[1], "c": shards[1]})


@folder("tensor-in-two-shards", 'tensor "a" is in two files')
def _(root: Path) -> None:
    two_shards(root)
    (root / "model-00002-of-00002.safetensors").write_bytes(pack({"a": A, "b": B}, bytes(8)))


@folder("tensor-in-two-shards-no-index", 'tensor "a" is in two files')
def _(root: Path) -> None:
    for i in (1, 2):
        (root / f"model-0000{i}-of-00002.safetensors").write_bytes(pack({"a": A}, bytes(4)))


@folder("shard-is-a-folder", "expected a file, found a folder")
def _(root: Path) -> None:
    two_shards(root)
    (root / "model-00002-of-00002.safetensors").unlink()
    (root / "model-00002-of-00002.safetensors").mkdir()


@folder("file-is-a-folder", "expected a file, found a folder")
def _(root: Path) -> None:
    (root / "model.safetensors").mkdir()


@folder("index-is-a-folder", "expected a file, found a folder")
def _(root: Path) -> None:
    (root / "model.safetensors.index.json").mkdir()


@folder("file-is-a-pipe", "expected a file, found something else")
def _(root: Path) -> None:
    os.mkfifo(root / "model.safetensors")


@folder("link-out", "is a link that leaves the checkpoint folder; pass ")
def _(root: Path) -> None:
    _secret(root)
    (root / "model.safetensors").symlink_to("../secret.safetensors")


@folder("link-out-of-a-shard", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    _secret(root)
    two_shards(root)
    (root / "model-00002-of-00002.safetensors").unlink()
    (root / "model-00002-of-00002.safetensors").symlink_to(root.parent / "secret.safetensors")


@folder("link-out-of-a-subfolder", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    _secret(root)
    (root / "sub").symlink_to(root.parent)
    two_shards(root, {"a": "model-00001-of-00002.safetensors", "b": "sub/secret.safetensors"})


@folder("link-out-by-two-links", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    _secret(root)
    (root / "inner.bin").symlink_to("../secret.safetensors")
    (root / "model.safetensors").symlink_to("inner.bin")


@folder("link-out-of-the-index", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    two_shards(root)
    (root / "model.safetensors.index.json").rename(root.parent / "secret.json")
    (root / "model.safetensors.index.json").symlink_to("../secret.json")


@folder("link-out-of-the-config", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    (root / "model.safetensors").write_bytes(pack({"a": F32}))
    (root / "config.json").symlink_to("/etc/hostname")


@folder("config-is-a-pipe", "config.json: expected a file, found something else")
def _(root: Path) -> None:
    (root / "model.safetensors").write_bytes(pack({"a": F32}))
    os.mkfifo(root / "config.json")


@folder("tokenizer-links-to-nothing", "tokenizer.json: the file is missing")
def _(root: Path) -> None:
    (root / "model.safetensors").write_bytes(pack({"a": F32}))
    (root / "tokenizer.json").symlink_to("gone.json")


@folder("link-to-a-device", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    (root / "model.safetensors").symlink_to("/dev/zero")


@folder("link-to-blobs-elsewhere", "is a link that leaves the checkpoint folder")
def _(root: Path) -> None:
    (root.parent / "blobs").mkdir(exist_ok=True)
    (root.parent / "blobs" / "0").write_bytes(pack({"a": F32}))
    (root / "model.safetensors").symlink_to("../blobs/0")


@folder("link-to-itself", "cannot be reached")
def _(root: Path) -> None:
    (root / "model.safetensors").symlink_to("model.safetensors")


@folder("link-to-nothing", "the file is missing")
def _(root: Path) -> None:
    (root / "model.safetensors").symlink_to("gone.safetensors")


@folder("config-of-200MB", "more than the 100000000 allowed")
def _(root: Path) -> None:
    (root / "model.safetensors").write_bytes(pack({"a": F32}))
    with (root / "tokenizer.json").open("wb") as file:
        file.truncate(200_000_000)


@folder("index-of-200MB", "more than the 100000000 allowed")
def _(root: Path) -> None:
    two_shards(root)
    with (root / "model.safetensors.index.json").open("wb") as file:
        file.truncate(200_000_000)


@folder("model-and-adapter", "holds both model.safetensors and adapter_model.safetensors")
def _(root: Path) -> None:
    for name in ("model", "adapter_model"):
        (root / f"{name}.safetensors").write_bytes(pack({"a": F32}))


@folder("model-and-index", "which does not name it")
def _(root: Path) -> None:
    two_shards(root)
    (root / "model.safetensors").write_bytes(pack({"a": F32}))


@folder("model-and-shards", "no index says which count")
def _(root: Path) -> None:
    two_shards(root)
    (root / "model.safetensors.index.json").unlink()
    (root / "model.safetensors").write_bytes(pack({"a": F32}))


@folder("two-indexes", "holds 2 indexes")
def _(root: Path) -> None:
    for name in ("first", "second"):
        (root / f"{name}.safetensors.index.json").write_text("{}")


@folder("two-sets-of-shards", "shards of several sets")
def _(root: Path) -> None:
    for name in ("model-00001-of-00001", "model-00001-of-00002", "model-00002-of-00002"):
        (root / f"{name}.safetensors").write_bytes(pack({"a": F32}))


@folder("shard-2-of-3-missing", "shard 2 of 3 is missing")
def _(root: Path) -> None:
    for i in (1, 3):
        (root / f"model-0000{i}-of-00003.safetensors").write_bytes(pack({"a": F32}))


@folder("shard-0-of-1", "shard 1 of 1 is missing")
def _(root: Path) -> None:
    (root / "model-00000-of-00001.safetensors").write_bytes(pack({"a": F32}))


@folder("a-billion-shards", "shard 2 of 999999999 is missing")
def _(root: Path) -> None:
    (root / "model-1-of-999999999.safetensors").write_bytes(pack({"a": F32}))


@folder("one-shard-by-two-names", "3 files claim to be the 2 shards")
def _(root: Path) -> None:
    for name in ("model-1-of-00002", "model-00001-of-00002", "model-00002-of-00002"):
        (root / f"{name}.safetensors").write_bytes(pack({"a": F32}))


@folder("slices-of-ranks", "consolidate them first")
def _(root: Path) -> None:
    for rank in (1, 2):
        name = f"shard-0000{rank}-model-00001-of-00001.safetensors"
        (root / name).write_bytes(pack({"a": F32}))


@folder("nothing-there", "no weights; looked for model.safetensors")
def _(root: Path) -> None:
    (root / "config.json").write_text("{}")


def _secret(root: Path) -> None:
    """A good file beside the checkpoint folder, which nobody may read through the checkpoint."""
    (root.parent / "secret.safetensors").write_bytes(pack({"b": A}, bytes(4)))


def write_case(case: Case, parent: Path) -> Path:
    """Write one case below `parent`; returns the folder to open."""
    root = parent / "checkpoint-7"
    root.mkdir(parents=True)
    case.write(root)
    return root


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for case in CASES:
        write_case(case, target / case.name)
    sys.stdout.write(f"{len(CASES)} malformed checkpoints in {target}\n")
