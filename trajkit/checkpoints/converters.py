"""Which tool turns checkpoints that are not safetensors into ones that are.

trajkit never unpickles, so ``.pt``, ``.bin``, ``.distcp`` and ZeRO shards are recognised by their
names only; the trainers' own converters read them.
"""

import os
import re
from pathlib import Path

from trajkit.checkpoints.header import is_folder
from trajkit.text import shown

_CONVERTERS = (
    (
        r"model_world_size_[0-9]+_rank_[0-9]+\.pt",
        "FSDP shards of verl",
        "python -m verl.model_merger merge --backend fsdp --local_dir {at} "
        "--target_dir {at}/huggingface",
    ),
    (
        r"dist_ckpt",
        "Megatron shards of verl",
        "python -m verl.model_merger merge --backend megatron --local_dir {at} "
        "--target_dir {at}/huggingface",
    ),
    (
        r"zero_to_fp32\.py|.*(optim|model)_states\.pt|.*zero_pp_rank_.*",
        "DeepSpeed ZeRO shards",
        "python zero_to_fp32.py . OUT --safe_serialization (the script lies beside the shards)",
    ),
    (
        r"pytorch_model_fsdp.*",
        "FSDP shards of accelerate",
        "accelerate merge-weights {at}/{part} OUT",
    ),
    (
        r"model_optim_rng\.pt|mp_rank_[0-9_]+|common\.pt",
        "Megatron shards",
        "Megatron-Bridge's examples/conversion/convert_checkpoints.py export, or slime's "
        "tools/convert_torch_dist_to_hf.py",
    ),
    (
        r".*\.distcp",
        "torch.distributed.checkpoint shards",
        "torchtitan's scripts/checkpoint_conversion/convert_to_hf.py, NeMo-RL's "
        "examples/converters/convert_dcp_to_hf.py, or python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch {at} OUT.pt",
    ),
    (
        r"(pytorch|adapter|diffusion_pytorch)_model.*\.bin",
        "pickled weights",
        "transformers' from_pretrained, then save_pretrained(OUT, safe_serialization=True)",
    ),
    (
        r"(?!training_args|optimizer|scheduler|rng_state|scaler|random_states|data|trainer_state)"
        r".*\.(pt|pth|bin|ckpt)",
        "pickled weights",
        "torch.load(FILE, weights_only=True), then safetensors.torch.save_file",
    ),
)
"""(name of a file or folder, what it is, how to convert it), most telling first"""
_DEPTH = 4
_MAX_ENTRIES = 20_000


def conversion(path: Path) -> str | None:
    """Say which other format lies at `path` and what converts it; None if there is none.

    >>> print(conversion(Path("run/pytorch_model_fsdp.bin")))
    only FSDP shards of accelerate (pytorch_model_fsdp.bin), which trajkit never loads; convert \
first: accelerate merge-weights run/pytorch_model_fsdp.bin OUT
    """
    root, names = (path, _names_below(path)) if is_folder(path) else (path.parent, [path.name])
    for pattern, what, tool in _CONVERTERS:
        known = re.compile(pattern)
        for name in names:
            parts = name.split("/")
            for i, part in enumerate(parts):
                if known.fullmatch(part):
                    how = tool.format(at=shown(root.joinpath(*parts[:i])), part=shown(part))
                    return (
                        f"only {what} ({shown(name)}), which trajkit never loads; "
                        f"convert first: {how}"
                    )
    return None


def _names_below(folder: Path) -> list[str]:
    """List what lies below a folder, nearest first, to a bounded depth and number."""
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        below = os.path.relpath(parent, folder)
        depth = 0 if below == "." else below.count("/") + 1
        names += [os.path.normpath(f"{below}/{name}") for name in sorted(files)]
        folders.sort()
        if depth >= _DEPTH or len(names) > _MAX_ENTRIES:
            folders.clear()
    return sorted(names, key=lambda name: name.count("/"))
