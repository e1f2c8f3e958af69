"""The Triton kernels: right in the interpreter, and well compiled ahead of time; no GPU needed.

On a machine with a CUDA device the same checks run on it (marker ``gpu``).
"""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

HERE = Path(__file__).resolve().parent
ARCHITECTURES = (80, 90, 100)
CODES = {"bfloat16": ("u16", 16), "float16": ("u16", 16), "float32": ("u32", 0)}
"""a dtype's codes as Triton's signature has them, and SHIFT"""


def run_checks(device: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """gpu_checks.py in a process of its own: triton reads the choice when it is imported."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), **environment}
    command = [sys.executable, str(HERE / "gpu_checks.py"), device]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_kernels_equal_the_reference_in_the_interpreter() -> None:
    done = run_checks("cpu", TRITON_INTERPRET="1")
    if (
        "only 0-dimensional arrays can be converted" in done.stderr
        and "interpreter.py" in done.stderr
    ):
        pytest.skip("this triton's interpreter cannot read scalars of this numpy (3.6 with 2.4)")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.stdout.count("holds:") == 26


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_equal_the_reference_on_the_device() -> None:
    done = run_checks("cuda")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.stdout.count("holds:") == 26


def compile_ahead(
    kernel: object,
    signature: dict[str, str],
    constants: dict[str, object],
    arch: int,
    fusion: bool = True,
) -> dict[str, object]:
    """The kernel's code for an architecture; all sizes and pointers told to be multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trajkit.kernels.gpu.prepare import NUM_WARPS, max_registers

    names = kernel.arg_names
    full = {name: "constexpr" if name in constants else signature[name] for name in names}
    # as a launch has them for the store's chunks of 262,144 elements; T is any number
    numbers = ("n_frames", "few", "threshold", "noise_low", "noise_high")
    aligned = [name for name in signature if name not in numbers]
    source = ASTSource(
        kernel,
        full,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", arch, 32)
    options = {
        "num_warps": NUM_WARPS,
        "maxnreg": max_registers(str(constants["DTYPE"])),
        "enable_fp_fusion": fusion,
    }
    return triton.compile(source, target=target, options=options).asm


def assemble(ptx: str, path: Path) -> tuple[int, int]:
    """Registers a thread and bytes spilled, from the ptxas that triton carries."""
    from triton.backends.nvidia.compiler import get_ptxas

    arch = re.search(r"\.target (\w+)", ptx)
    assert arch is not None
    try:
        ptxas = get_ptxas(int(re.sub(r"\D", "", arch[1])))
    except TypeError:  # triton before 3.7 takes no architecture
        ptxas = get_ptxas()
    ptxas = ptxas[0] if isinstance(ptxas, tuple) else ptxas.path
    path.write_text(ptx)
    command = [ptxas, "-v", "-arch", arch[1], str(path), "-o", str(path.with_suffix(".cubin"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert registers is not None
    assert len(spills) == 2
    return int(registers[1]), sum(map(int, spills))


def common_constants(dtype: str) -> dict[str, object]:
    from trajkit.kernels.gpu.prepare import block_elements

    shift = CODES[dtype][1]
    return {
        "BLOCK": block_elements(dtype),
        "DTYPE": dtype,
        "SHIFT": shift,
        "PAIRED": shift == 16,
        "ROUNDED": False,
    }


def check_frames_kernel(ptx: str, path: Path, what: str) -> None:
    """16 bytes a load of frames, nothing spilled; prints the registers a thread."""
    registers, spilled = assemble(ptx, path)
    loads = Counter(re.findall(r"ld\.global[.:\w]*", ptx))
    wide = sum(
        n for load, n in loads.items() if re.search(r"v4\.b32|v2\.b64|v4\.u32|v2\.u64", load)
    )
    said = f"{what}: {registers} registers a thread, {spilled} bytes spilled, {wide} wide loads"
    print(said)
    assert spilled == 0, what
    assert wide >= 1, f"{what}: {dict(loads)}"
    # a frame's codes are never read piecemeal
    assert not any(re.search(r"\.(u16|b16|u8|b8)$", load) and "v" not in load for load in loads)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", CODES)
def test_one_pass_fit_compiles_without_spills_and_with_wide_loads(
    dtype: str, arch: int, tmp_path: Path
) -> None:
    from trajkit.kernels.formats import FORMATS
    from trajkit.kernels.gpu.frames import _fit_frames_kernel

    code = CODES[dtype][0]
    signature = {
        "codes_ptr": f"*{code}",
        "row_stride": "i32",
        "frames_ptr": "*i32",
        "groups_ptr": "*fp64",
        "design_ptr": "*fp64",
        "few": "i32",
        **dict.fromkeys(("slope_ptr", "mean_ptr", "rsq_ptr"), "*fp32"),
        "flags_ptr": "*u8",
        **dict.fromkeys(("dw_ptr", "drift_t_ptr"), "*fp32"),
        "out_bits_ptr": f"*{code}",
        **dict.fromkeys(("n_elements", "n_load", "n_frames"), "i32"),
    }
    form = FORMATS[dtype]
    constants = {**common_constants(dtype), "E_MIN": form.e_min, "MANTISSA": form.mantissa}
    ptx = compile_ahead(_fit_frames_kernel, signature, constants, arch)["ptx"]
    check_frames_kernel(ptx, tmp_path / "fit.ptx", f"fit_frames {dtype} sm_{arch}")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", CODES)
def test_accumulation_compiles_without_spills_and_with_wide_loads(
    dtype: str, arch: int, tmp_path: Path
) -> None:
    from trajkit.kernels.gpu.frames import _accumulate_frames_kernel

    code = CODES[dtype][0]
    signature = {
        "codes_ptr": f"*{code}",
        "row_stride": "i32",
        "frames_ptr": "*i32",
        "groups_ptr": "*fp64",
        **dict.fromkeys((f"{n}_ptr" for n in ("s_d", "s_ud", "s_dd", "q", "p", "v")), "*fp64"),
        **dict.fromkeys((f"y_{n}_ptr" for n in ("first", "min", "max")), "*fp32"),
        "bits_last_ptr": f"*{code}",
        "changes_ptr": "*u16",
        "distinct_ptr": "*u8",
        "slots_ptr": f"*{code}",
        "slots_stride": "i32",
        "invalid_ptr": "*u8",
        **dict.fromkeys(("n_elements", "n_load", "n_frames"), "i32"),
    }
    for fresh, rounded in ((True, False), (False, False), (True, True), (False, True)):
        if rounded and (dtype == "bfloat16" or arch != 90):
            continue
        constants = {**common_constants(dtype), "FRESH": fresh, "GROUP": 64, "ROUNDED": rounded}
        ptx = compile_ahead(_accumulate_frames_kernel, signature, constants, arch)["ptx"]
        registers, spilled = assemble(ptx, tmp_path / "accumulate.ptx")
        what = f"accumulate_frames {dtype} sm_{arch} {'fresh' if fresh else 'continued'}"
        what += ", rounded" if rounded else ""
        print(f"{what}: {registers} registers a thread, {spilled} spilled")
        assert spilled == 0, what
        assert re.search(r"ld\.global[.:\w]*(v4\.b32|v2\.b64|v4\.u32|v2\.u64)", ptx), what


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_extrapolation_rounds_the_product_and_the_sum(arch: int, tmp_path: Path) -> None:
    """The machine code has no fused multiply-add: CUDA 12.9 once made one in spite of the flag."""
    from trajkit.kernels.gpu.extrapolate import _extrapolate_pair_kernel

    signature = {
        **dict.fromkeys(("a_ptr", "b_ptr", "hold_ptr"), "*u16"),
        "rsq_ptr": "*fp32",
        "flags_ptr": "*u8",
        "out_ptr": "*u16",
        "counts_ptr": "*i64",
        "beta_ptr": "*fp64",
        "held_flags": "i32",
        "threshold": "fp32",
        **dict.fromkeys(("noise_low", "noise_high", "n_elements"), "i32"),
    }
    constants = {
        **dict.fromkeys(("BY_RSQ", "BY_FLAGS"), True),
        "STOCHASTIC": False,
        "BLOCK": 1024,
        "DTYPE": "bfloat16",
        "SHIFT": 16,
    }
    code = compile_ahead(_extrapolate_pair_kernel, signature, constants, arch, fusion=False)
    cubin = tmp_path / "pair.cubin"
    cubin.write_bytes(code["cubin"])
    nvdisasm = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    done = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True)
    operations = Counter(re.findall(r"\b(FFMA2?|FMUL2?|FADD2?)\b", done.stdout))
    assert operations["FADD"] + operations["FADD2"] > 0, operations
    assert operations["FFMA"] + operations["FFMA2"] == 0, operations


def test_the_api_needs_no_triton() -> None:
    code = "\n".join(
        (
            "import sys",
            "sys.modules['triton'] = sys.modules['torch'] = sys.modules['numba'] = None",
            "from trajkit.kernels import api",
            "import numpy as np",
            "sums = api.new_sums(2, 'float32', 1.0, 1.0)",
            "codes = np.float32([[1, 2], [3, 5]]).view('u4')",
            "api.accumulate_frames(codes, np.ones(2, bool), [0, 2], sums, backend='reference')",
            "assert api.solve(sums, backend='reference').slope.tolist() == [1.0, 1.5]",
        )
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)}
    )
