"""What must hold of the Triton kernels, on whatever device they run.

Run as a script under ``TRITON_INTERPRET=1`` (``python gpu_checks.py cpu``) it checks them in
Triton's interpreter; tests/test_kernels_gpu.py does that in a process of its own, and on a real
device where there is one. Needs torch, triton and numpy alone. Axis letters: T checkpoints, N
elements.
"""

import sys
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch

from trajkit.kernels import reference
from trajkit.kernels.gate import OPEN, Gate
from trajkit.kernels.gpu import launch as gpu
from trajkit.kernels.gpu.prepare import new_solution
from trajkit.kernels.gpu.worker import GpuArithmetic, GpuWorker
from trajkit.kernels.rounding import Mode, Rounding
from trajkit.kernels.state import new_sums
from trajkit.kernels.steps import span_units

EXACT_NAMES = ("y_first", "y_min", "y_max", "bits_last", "changes", "distinct", "slots", "invalid")


def make_series(
    dtype: str, n_frames: int, n: int, key_every: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [T, N], key marks [T] and uneven steps [T] of walks, static and invalid ones too."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 2e-4, (n_frames, n)), axis=0) + rng.normal(0, 0.05, n)
    walk[:, ::7] = walk[0, ::7]  # static
    walk = walk.astype(np.float32)
    if n > 40:
        walk[n_frames // 2, 11] = np.nan
        walk[-1, 13] = np.inf
        walk[::2, 17], walk[1::2, 17] = 0.0, -0.0
    bits = to_bits(walk, dtype)
    is_key = np.arange(n_frames) % key_every == 0
    codes = bits.copy()
    one = bits.dtype.type(1)
    delta = bits[1:] - bits[:-1]
    sign = delta >> bits.dtype.type(8 * bits.itemsize - 1)
    zigzag = (delta << one) ^ (np.zeros_like(delta) - sign)
    codes[1:] = np.where(is_key[1:, None], bits[1:], zigzag)
    return codes, is_key, np.cumsum(rng.integers(1, 9, n_frames)).astype(np.float64)


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """The unsigned bits of float32 values rounded to the dtype."""
    rounded = torch.from_numpy(values).to(getattr(torch, dtype))
    unsigned = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[rounded.element_size()]
    return rounded.view(unsigned).numpy()


def on(device: str, array: np.ndarray) -> torch.Tensor:
    """An array on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def off(value: Any) -> np.ndarray:
    """A tensor back in numpy."""
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def poison(record: Any) -> Any:
    """Fill every array of a record with NaN, or ones: a kernel that leaves a hole fails."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, torch.Tensor) and value.numel():
            filler = float("nan") if value.dtype.is_floating_point else 1
            value.copy_(torch.full(value.shape, filler).to(value.dtype))
    return record


def check_sums(
    device: str,
    dtype: str,
    n_frames: int,
    n: int,
    cuts: tuple[int, ...],
    distinct_in: str | None = None,
) -> None:
    """Sums and solution equal the reference's, whatever the batches."""
    codes, is_key, steps = make_series(dtype, n_frames, n, key_every=5 if n_frames > 5 else 99)
    x_ref, x_unit = span_units(steps)
    expected = new_sums(n, dtype, x_ref, x_unit, distinct_in)
    reference.accumulate_frames(codes, is_key, steps, expected)
    sums = poison(gpu.new_sums(n, dtype, x_ref, x_unit, device, distinct_in))
    for start, stop in zip((0, *cuts), (*cuts, n_frames), strict=True):
        part = slice(start, stop)
        gpu.accumulate_frames(on(device, codes[part]), is_key[part], steps[part], sums)
    compare_sums(sums, expected)
    solution = gpu.solve(sums, min_range=3e-4, out=poison(new_solution(n, dtype, device)))
    compare_solutions(solution, reference.solve(expected, min_range=3e-4, few=4))
    if not cuts:
        filters = {"min_range": 3e-4, "distinct_in": distinct_in}
        once = gpu.fit_frames(on(device, codes), is_key, steps, dtype, **filters)
        compare_solutions(once, reference.solve(expected, min_range=3e-4, few=4))


def compare_sums(sums: Any, expected: Any) -> None:
    """Exact where values are only moved; float32 partial sums of at most 64 terms elsewhere."""
    valid = expected.invalid == 0
    np.testing.assert_array_equal(off(sums.invalid), expected.invalid)
    for name in EXACT_NAMES:
        if name != "invalid":
            got, want = off(getattr(sums, name)), getattr(expected, name)
            # once there are four distinct values, which ones they were is nobody's business
            these = valid & (expected.distinct < 4) if name == "slots" else valid
            np.testing.assert_array_equal(got[..., these], want[..., these], err_msg=name)
    # each of 64 float32 additions is off by 2^-24 of the sum of sizes; S_dd and S_d bound them
    size = np.sqrt(expected.count * expected.s_dd[valid]) + 1e-30
    bound = 64 * 2.0**-24
    for name, scale in (
        ("s_d", size),
        ("s_ud", size),
        ("s_dd", expected.s_dd[valid] + 1e-30),
        ("q", expected.q[valid] + 1e-30),
        ("p", np.sqrt(expected.s_du2 * expected.q[valid]) + 1e-30),
        ("v", expected.v[valid] + 1e-30),
    ):
        error = np.abs(off(getattr(sums, name))[valid] - getattr(expected, name)[valid])
        assert (error <= bound * scale).all(), (name, (error / scale).max())


def compare_solutions(solution: Any, expected: Any) -> None:
    """The line within float32 rounding of the reference's; flags and last bits exact."""
    np.testing.assert_array_equal(off(solution.flags), expected.flags)
    np.testing.assert_array_equal(off(solution.bits_last), expected.bits_last)
    for name in ("slope", "mean", "rsq"):
        got, want = off(getattr(solution, name)), getattr(expected, name)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=name)
    finite = np.isfinite(expected.slope)
    largest = max(np.abs(expected.slope[finite]).max(initial=0), 1e-30)
    assert np.abs(off(solution.slope) - expected.slope)[finite].max(initial=0) <= 1e-5 * largest
    np.testing.assert_allclose(off(solution.mean), expected.mean, rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(off(solution.rsq), expected.rsq, atol=2e-5)
    # Both divide by a residual sum that is 1 - R² of the whole, or 1 / (1 + t²) of V at least:
    # where that is 1 %, the 64 * 2^-24 of the sums is 0.04 %, with factors for numerators and roots
    for name, sure in (
        ("dw", ~(expected.rsq >= 0.99)),
        ("drift_t", ~(np.abs(expected.drift_t) >= 10)),
    ):
        got, want = off(getattr(solution, name))[sure], getattr(expected, name)[sure]
        np.testing.assert_allclose(got, want, rtol=4e-3, atol=1e-4, err_msg=name)


def check_worker(device: str) -> None:
    """A worker gives what the launchers give, in one go and in batches, from kept sums too."""
    codes, is_key, steps = make_series("bfloat16", 12, 300, key_every=5)
    expected = new_sums(300, "bfloat16", *span_units(steps))
    reference.accumulate_frames(codes, is_key, steps, expected)
    wanted = reference.solve(expected, min_range=0.0, few=4)
    worker = GpuWorker(12, 320, "bfloat16", device)
    worker.codes_TN[:, :300] = codes
    compare_solutions(worker.fit(300, is_key, steps), wanted)
    worker.begin(300, *span_units(steps))
    for start in (0, 5, 10):
        part = slice(start, start + 5)
        rows = codes[part]
        worker.codes_TN[: len(rows), :300] = rows
        worker.accumulate(is_key[part], steps[part])
        worker.begin(300, *span_units(steps), kept=worker.sums())
    compare_solutions(worker.solve(), wanted)


def check_wide_rows(device: str, dtype: str) -> None:
    """Padded rows are read 16 bytes a thread, whatever lies in the padding."""
    n, n_padded, n_frames = 1500, 1536, 70
    codes, is_key, steps = make_series(dtype, n_frames, n, key_every=30)
    padded = np.random.default_rng(1).integers(0, 99, (n_frames, n_padded)).astype(codes.dtype)
    padded[:, :n] = codes
    rows = torch.empty((n_frames, n_padded), dtype=on(device, codes).dtype, device=device)
    rows.copy_(on(device, padded))
    assert gpu.rows_are_wide(rows, n)
    assert gpu.rows_are_wide(rows[3:], n)
    assert not gpu.rows_are_wide(rows[:, 1:], n)
    assert not gpu.rows_are_wide(rows[-1:, :n].clone(), n)
    expected = new_sums(n, dtype, *span_units(steps))
    reference.accumulate_frames(codes, is_key, steps, expected)
    sums = poison(gpu.new_sums(n, dtype, *span_units(steps), device))
    for part in (slice(0, 66), slice(66, None)):
        gpu.accumulate_frames(rows[part], is_key[part], steps[part], sums)
    compare_sums(sums, expected)
    few = poison(new_solution(n, dtype, device))
    gpu.fit_frames(rows[:50], is_key[:50], steps[:50], dtype, out=few)
    compare_solutions(few, reference.fit_frames(codes[:50], is_key[:50], steps[:50], dtype))


def check_extrapolation(device: str, dtype: str) -> None:
    """Counts and bits equal the reference's, bit for bit, in all roundings."""
    n = 1500
    codes, is_key, steps = make_series(dtype, 9, n, key_every=99)
    sums = new_sums(n, dtype, *span_units(steps))
    reference.accumulate_frames(codes, is_key, steps, sums)
    fit = reference.solve(sums, min_range=0.0, few=4)
    first, last, move = codes[0], fit.bits_last, partial(on, device)
    modes: tuple[Mode, ...] = ("nearest", "stochastic")
    for rounding in modes:
        for base, dx in (("last", 123.0), ("mean", 77.5)):
            gate = Gate(fit.rsq, fit.flags, 3, 0.3)
            options: dict[str, Any] = {"dx": dx, "rounding": Rounding(rounding, 7, 2**33 + 5)}
            arrays = (last, fit.slope, fit.mean)
            want, got = np.empty_like(last), on(device, np.full_like(last, 1))
            counts = reference.extrapolate_line(
                base, *arrays, dtype, gate=gate, out_bits=want, **options
            )
            tensors, there = [on(device, a) for a in arrays], gate.moved_by(move)
            found = gpu.extrapolate_line(base, *tensors, dtype, gate=there, out_bits=got, **options)
            assert found == counts, (base, rounding, found, counts)
            np.testing.assert_array_equal(off(got), want)
            there_and_back = np.zeros_like(last)
            found = GpuArithmetic(dtype, device).extrapolate_line(
                base, *arrays, dtype, gate=gate, out_bits=there_and_back, **options
            )
            assert found == counts, (base, rounding, found, counts)
            np.testing.assert_array_equal(there_and_back, want)
        for gated in (False, True):
            gate = Gate(fit.rsq, fit.flags, 35, 0.3) if gated else OPEN
            want, got = np.empty_like(last), on(device, np.full_like(last, 1))
            options = {"rounding": Rounding(rounding, 3, 17)}
            counts = reference.extrapolate_pair(
                first, last, 1.7, last, dtype, gate=gate, out_bits=want, **options
            )
            tensors, there = [on(device, a) for a in (first, last)], gate.moved_by(move)
            found = gpu.extrapolate_pair(
                *tensors, 1.7, tensors[1], dtype, gate=there, out_bits=got, **options
            )
            assert found == counts, (gated, rounding, found, counts)
            np.testing.assert_array_equal(off(got), want)
            there_and_back = np.zeros_like(last)
            found = GpuArithmetic(dtype, device).extrapolate_pair(
                first, last, 1.7, last, dtype, gate=gate, out_bits=there_and_back, **options
            )
            assert found == counts, (gated, rounding, found, counts)
            np.testing.assert_array_equal(there_and_back, want)


def check_tiny_and_huge(device: str) -> None:
    """Squares beyond float32's range do not spoil R²."""
    steps = np.arange(20.0)
    rng = np.random.default_rng(3)
    for scale in (1e-30, 1e-22, 1e20, 1e30):
        values = (scale * (1 + 0.1 * steps[:, None] + rng.normal(0, 0.3, (20, 70)))).astype("f4")
        expected = new_sums(70, "float32", *span_units(steps))
        is_key = np.ones(20, bool)
        reference.accumulate_frames(values.view("u4"), is_key, steps, expected)
        want = reference.solve(expected, min_range=0.0, few=4)
        got = gpu.fit_frames(on(device, values.view("u4")), is_key, steps, "float32")
        np.testing.assert_allclose(off(got.rsq), want.rsq, atol=2e-5, err_msg=str(scale))
        np.testing.assert_allclose(off(got.slope), want.slope, rtol=1e-4, err_msg=str(scale))


def run_all(device: str) -> int:
    """Every check, its name printed when it holds; the number of checks."""
    cases: list[tuple[Any, ...]] = [
        (check_sums, "bfloat16", n_frames, n, ())
        for n_frames, n in ((1, 63), (2, 500), (3, 1), (17, 1025), (64, 100), (65, 130))
    ]
    cases += [
        (check_sums, "bfloat16", 65, 300, (1, 2, 40)),
        (check_sums, "bfloat16", 17, 2050, (5, 6)),
        (check_sums, "float16", 17, 1000, (9,)),
        (check_sums, "float32", 3, 1025, ()),
        (check_sums, "float32", 17, 600, (3, 11)),
        (check_sums, "float32", 65, 63, ()),
        (check_sums, "float8_e4m3fn", 9, 300, ()),
        (check_sums, "float8_e5m2", 9, 300, ()),
        (check_sums, "float32", 40, 300, (), "bfloat16"),
        (check_sums, "float32", 70, 300, (1, 3, 65), "bfloat16"),
        (check_sums, "float16", 17, 1000, (9,), "bfloat16"),
        (check_sums, "float8_e4m3fn", 9, 300, (), "bfloat16"),
        (check_extrapolation, "bfloat16"),
        (check_extrapolation, "float16"),
        (check_extrapolation, "float32"),
        (check_wide_rows, "bfloat16"),
        (check_wide_rows, "float16"),
        (check_wide_rows, "float32"),
        (check_worker,),
        (check_tiny_and_huge,),
    ]
    for check, *arguments in cases:
        check(device, *arguments)
        print("holds:", check.__name__, *arguments, flush=True)
    return len(cases)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(run_all(sys.argv[1]), "checks")
