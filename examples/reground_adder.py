"""Plain GRPO beside periodic re-grounding on the adder: p(correct) against real steps.

One run of TRL's GRPO from ``data/adder-grpo/checkpoint-0``, with the settings of ``data/``, whose
curve is written as JSON:

    python examples/reground_adder.py run --rule plain --learning-rate 2e-5 --steps 1000 --seed 1 \\
        -o runs/plain-2e-5-1.json
    python examples/reground_adder.py run --rule pooled --steps 300 --every 15 --jump 150 --seed 1 \\
        -o runs/pooled-1.json

p(correct) is measured every ``--look`` real steps, before a jump, on the task's fixed evaluation
set, which no reward comes from. Seconds are those of training alone, the looks left out: of the
clock, and of the processor, which say more on a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from adder import load_model, probability_correct
from train_adder_grpo import COMPLETION_TOKENS, additions

ROOT = Path(__file__).resolve().parent.parent


def train(options: argparse.Namespace) -> dict[str, Any]:
    """One run, its curve and its jumps."""
    import torch
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from trajkit.integrations.trl import RegroundCallback

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is untyped
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    model, tokenizer = load_model(options.base)
    curve: list[dict[str, float]] = [
        {
            "step": 0,
            "seconds": 0.0,
            "processor_seconds": 0.0,
            "p_correct": probability_correct(model, tokenizer),
        }
    ]
    looking, looking_processor = 0.0, 0.0
    began, began_processor = time.perf_counter(), time.process_time()

    class Look(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        """Measures p(correct) where a look is due, before the jump."""

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            nonlocal looking, looking_processor
            if state.global_step % options.look:
                return
            clock, processor = time.perf_counter(), time.process_time()
            chance = probability_correct(given["model"].eval(), tokenizer)
            given["model"].train()
            looking += time.perf_counter() - clock
            looking_processor += time.process_time() - processor
            curve.append(
                {
                    "step": state.global_step,
                    "seconds": time.perf_counter() - began - looking,
                    "processor_seconds": time.process_time() - began_processor - looking_processor,
                    "p_correct": chance,
                }
            )

    def exact_match(completions: Any, answer: Any, **_: Any) -> list[float | None]:
        """1 where the completion is the right answer, 0 elsewhere."""
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    callbacks: list[Any] = [Look()]
    jumps = None
    if options.rule != "plain":
        rule: dict[str, Any] = {}
        if options.rule == "pooled":
            rule = {"keep": options.keep, "limit": options.limit, "wait": options.wait}
        jumps = RegroundCallback(
            options.every,
            options.jump,
            options.rule,
            optimizer=options.optimizer,
            adapt=options.adapt,
            **rule,
        )
        callbacks.append(jumps)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            args=GRPOConfig(
                output_dir=scratch,
                max_steps=options.steps,
                per_device_train_batch_size=options.completions,
                num_generations=options.generations,
                max_completion_length=COMPLETION_TOKENS,
                learning_rate=options.learning_rate,
                lr_scheduler_type="constant",
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                gradient_checkpointing=False,
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                report_to="none",
                seed=options.seed,
            ),
            processing_class=tokenizer,
            reward_funcs=exact_match,
            train_dataset=additions(
                options.steps * options.completions // options.generations, options.seed
            ),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        began, began_processor = time.perf_counter(), time.process_time()
        trainer.train()
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    del settings["command"], settings["out"]
    lines = [] if jumps is None else jumps.ledger.lines
    return {"settings": settings, "curve": curve, "jumps": lines}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = run.add_argument
    add("-o", "--out", type=Path, required=True, help="JSON file to write")
    add("--base", type=Path, default=ROOT / "data" / "adder-grpo" / "checkpoint-0")
    add("--rule", choices=("plain", "pooled", "two-point", "rsq"), default="pooled")
    add("--steps", type=int, default=300, help="real steps")
    add("--every", type=int, default=15, help="m, real steps of a segment")
    add("--jump", type=int, default=150, help="n, steps of a jump")
    add("--keep", type=float, default=0.8, help="weight of earlier segments")
    add("--limit", type=float, default=16.0, help="t² above which an element moves")
    add("--wait", type=int, default=4, help="segments before the first jump")
    add("--optimizer", choices=("keep", "reset"), default="reset", help="its state at a jump")
    add("--adapt", action="store_true", help="let the reward judge jumps")
    add("--look", type=int, default=15, help="real steps between two looks at p(correct)")
    add("--completions", type=int, default=256, help="completions a step")
    add("--generations", type=int, default=8, help="completions a prompt")
    add("--learning-rate", type=float, default=2e-5, help="constant")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=1, help="threads of torch")
    return parser.parse_args()


def main() -> None:
    """Run, and write the curve."""
    options = parse_options()
    result = train(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result) + "\n")
    print(f"{options.out}: p(correct) {result['curve'][-1]['p_correct']:.4f}")


if __name__ == "__main__":
    main()
