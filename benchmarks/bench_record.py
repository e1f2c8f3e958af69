"""What it costs to record every step of the adder's GRPO run, and how much smaller its store is.

    python benchmarks/bench_record.py --steps 180

The run of ``data/``: TRL's GRPO from ``data/adder-grpo/checkpoint-0``, float32 weights, 256 completions
a step, learning rate 2e-5, logged every step; one thread. Blocks of ``--block`` steps alternate: in one
kind every step is recorded as the callback records it, and what is in flight is waited for at its end;
in the other nothing is. Steps of the other kind are put aside and recorded after their block, outside
of what is measured, so that the store has every step. Processor time of all threads, which other work
on the machine does not change much; the first block of each kind is left out (imports, compiled
code). The cost is the median difference of neighbouring blocks over the median without; its interval
is a bootstrap over the pairs (10,000 draws, seed 7).

Beside it: the processor time that the recorder's calls and its thread took, counted by themselves
(``Recorder.seconds``, all steps but those of the first two blocks), which other work disturbs less; and
the bytes of the store and of the safetensors files (bfloat16) that the same steps would have been.
Prints JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "benchmarks"))


def interval(ratios_of: Callable[[np.ndarray], float], n: int) -> tuple[float, float]:
    """A 95 % bootstrap interval over n pairs of blocks."""
    rng = np.random.default_rng(7)
    draws = [ratios_of(rng.integers(0, n, n)) for _ in range(10_000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def measure(options: argparse.Namespace, store: Path) -> dict[str, Any]:
    """One run; seconds of each block, with and without recording."""
    import torch
    from adder import load_model
    from train_adder_grpo import COMPLETION_TOKENS, additions
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    import trajkit

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is untyped
    torch.set_num_threads(1)
    model, tokenizer = load_model(ROOT / "data" / "adder-grpo" / "checkpoint-0")
    recorder = trajkit.Recorder(store, tokenizer=tokenizer)
    blocks: dict[bool, list[float]] = {True: [], False: []}
    own = {"record": 0.0, "write": 0.0}
    aside: list[tuple[int, dict[str, Any]]] = []

    class Alternate(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        """Records the steps of every other block; puts the others aside."""

        began = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            recorder.record(0, given["model"])
            recorder.flush()
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            step = state.global_step
            records = (step - 1) // options.block % 2 == 0
            if records:
                recorder.record(step, given["model"])
            else:
                clock = time.process_time()
                aside.append((step, {n: t.clone() for n, t in given["model"].state_dict().items()}))
                self.began += time.process_time() - clock
            if step % options.block:
                return
            if records:
                recorder.flush()
            blocks[records].append(time.process_time() - self.began)
            while aside:
                recorder.record(*aside.pop(0))
            recorder.flush()
            if step == 2 * options.block:
                own.update(recorder.seconds)
            self.began = time.process_time()

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if (state.global_step - 1) // options.block % 2 == 0:
                recorder.log(state.global_step, given["logs"])

    def exact_match(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
        """1 where the completion is the right answer."""
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            args=GRPOConfig(
                output_dir=scratch,
                max_steps=options.steps,
                per_device_train_batch_size=256,
                num_generations=8,
                max_completion_length=COMPLETION_TOKENS,
                learning_rate=2e-5,
                lr_scheduler_type="constant",
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                gradient_checkpointing=False,
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                report_to="none",
                seed=1,
            ),
            processing_class=tokenizer,
            reward_funcs=exact_match,
            train_dataset=additions(options.steps * 256 // 8, 1),
            callbacks=[Alternate()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    recorder.close()
    counted = options.steps - 2 * options.block
    took = {thread: (recorder.seconds[thread] - own[thread]) / counted for thread in own}
    return {"with": blocks[True][1:], "without": blocks[False][1:], "own": took}


def main() -> None:
    """Measure, and print."""
    from machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=180, help="a multiple of two blocks")
    parser.add_argument("--block", type=int, default=3, help="steps of a block")
    options = parser.parse_args()
    if options.steps % (2 * options.block) or options.steps < 4 * options.block:
        raise SystemExit("--steps: a multiple of two blocks, four blocks at least")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adder.zarr"
        found = measure(options, path)
        with_, without = np.array(found["with"]), np.array(found["without"])

        def cost(pairs: np.ndarray) -> float:
            return float(np.median(with_[pairs] - without[pairs]) / np.median(without[pairs]))

        import trajkit

        store = trajkit.open(path).store
        trajkit.restore(path, options.steps, Path(folder) / "last")
        file = (Path(folder) / "last" / "model.safetensors").stat().st_size
        files = file * len(store.steps)
        pairs = np.arange(len(with_))
        low, high = interval(cost, len(with_))
        result = {
            "steps": options.steps,
            "block": options.block,
            "parameters": sum(v.size for v in store.vectors.values()),
            "cost": cost(pairs),
            "cost_95": [low, high],
            "blocks_with": found["with"],
            "blocks_without": found["without"],
            "processor_seconds_a_step_with": float(with_.mean() / options.block),
            "processor_seconds_a_step_without": float(without.mean() / options.block),
            "recorder_seconds_a_step": found["own"],
            "recorder_share": sum(found["own"].values()) * options.block / float(without.mean()),
            "checkpoints": len(store.steps),
            "tensor_bytes": store.raw_bytes,
            "safetensors_bytes": files,
            "store_bytes": store.stored_bytes,
            "frame_bytes": sum(f.stored_bytes for f in store.commit.frames),
            "times_smaller": files / store.stored_bytes,
            "machine": describe_machine(),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
