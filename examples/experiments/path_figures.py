"""What trajkit says of one controlled run: recorded, fitted, its movement and its outputs measured.

Two stores a run, in a folder that is removed: bfloat16 as checkpoints are published, and float32, where
no rounding hides or makes anything. Figures of R² are over all elements that changed, unless said.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # examples/, for the task

from adder import load_model, probability_correct
from lean_training import Setting, train

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = ROOT / "data" / "adder-grpo" / "checkpoint-0"
PROBES = ROOT / "data" / "adder-grpo-probes.jsonl"


def run_setting(
    setting: Setting,
    base: Path = BASE,
    *,
    device: str = "cpu",
    probes: Path | None = PROBES,
) -> dict[str, Any]:
    """Train one setting and measure its path; JSON types. ``probes`` None leaves the outputs out."""
    import torch

    import trajkit

    began = time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    model, tokenizer = load_model(base)
    model = model.to(device).train()
    numbers: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        narrow, wide = (Path(folder) / f"{name}.zarr" for name in ("bf16", "fp32"))
        with (
            trajkit.Recorder(narrow, setting.every, tokenizer=tokenizer) as kept,
            trajkit.Recorder(wide, setting.every, None, tokenizer=tokenizer) as exact,
        ):

            def watch(step: int, model: Any, metrics: dict[str, float]) -> None:
                numbers.extend(metrics.values())
                kept.record(step, model, metrics=metrics)
                exact.record(step, model)

            start = probability_correct(model, tokenizer)
            train(model, tokenizer, setting, watch)
        trained = time.process_time()
        found = {
            "p_start": start,
            "p_correct": probability_correct(model.eval(), tokenizer),
            "mean_reward": float(np.mean(numbers[-50:])) if numbers else None,
            **{f"bf16_{key}": value for key, value in weight_figures(narrow).items()},
            **{f"fp32_{key}": value for key, value in weight_figures(wide).items()},
        }
        if probes is not None:
            found |= output_figures(narrow, probes, device)
    done = time.process_time()
    asked = {k: v if v not in (math.inf, -math.inf) else str(v) for k, v in asdict(setting).items()}
    return {
        "setting": asked,
        **{k: _rounded(v) for k, v in found.items()},
        "training_seconds": round(trained - began, 1),
        "measuring_seconds": round(done - trained, 1),
    }


def weight_figures(store: Path) -> dict[str, Any]:
    """R² and the drift's t of all elements beside their nulls, and the movement of the whole model."""
    import trajkit

    fit = trajkit.fit(store, paper=True)
    told = fit.describe()
    moved = trajkit.measure_evidence(store).overall
    cosines = [c for c in moved["cosine"] if c is not None]
    paper = told["paper"] or {}
    return {
        "median_rsq": told["median_rsq"],
        "null_median_rsq": told["null_median_rsq"],
        "above": told["share_above_threshold"],
        "null_above": told["null_above_threshold"],
        "paper_median_rsq": paper.get("median_rsq"),
        "paper_kept": paper.get("share_kept"),
        "t_above_2": told["share_drift_t_above_2"],
        "null_t_above_2": told["null_share_drift_t_above_2"],
        "drifting": told["drift_share"],
        "verdict": told["verdict"],
        "cosine": float(np.mean(cosines)) if cosines else None,
        "growth": moved["growth"],
        "net_over_path": moved["net_over_path"],
        "drift_part": moved["drift_part"],
        "net": math.sqrt(max(moved["net_squared"], 0.0)),
    }


def output_figures(store: Path, probes: Path, device: str) -> dict[str, Any]:
    """R² of the log-probabilities of fixed responses of the base model, token by token."""
    from trajkit.outputs.kept import read_outputs
    from trajkit.outputs.linearity import fit_outputs
    from trajkit.outputs.logprobs import logprobs

    outputs = read_outputs(Path(logprobs(store, probes, device=device).path))
    told, paper = (fit_outputs(outputs, min_change=c).describe() for c in (0.0, 0.2))
    return {
        "outputs_median_rsq": told["median_rsq"],
        "outputs_null_median_rsq": told["null_median_rsq"],
        "outputs_above": told["share_above_threshold"],
        "outputs_paper_median_rsq": paper["median_rsq"],
        "outputs_paper_kept": paper["kept"],
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
