"""The recorder as a callback of the Hugging Face Trainer, and so of TRL's trainers."""

import os
from collections.abc import Callable
from typing import Any, Literal

from transformers import TrainerCallback

from trajkit.defaults import DEFAULT_STORE
from trajkit.errors import InvalidInput, TrajkitError, Unsupported, warn
from trajkit.store.tensors import Source
from trajkit.training.recorder import Recorder


class RecordCallback(TrainerCallback):
    """Puts the run's steps, and what the trainer logs, into a store while it trains.

    The model before training is recorded as the step at which training begins; of several
    processes, the first records.

    Args:
        store: the store's folder, made where it is missing.
        every: record steps that are multiples of this.
        replace_from: as :class:`trajkit.Recorder` has it; ``resume``: the steps after the one at
            which training begins, which the resumed run takes anew.
        on_error: ``raise`` ends the training with the recorder's line; ``warn`` goes on without
            recording.
        options: of the recorder: ``dtype``, ``waiting``, ``codec``, ...

    Raises:
        Unsupported: when training begins, under FSDP or ZeRO-3, whose parameters are in parts.
        TrajkitError: at a step, whatever befell the recorder, if ``on_error`` is ``raise``.
    """

    def __init__(
        self,
        store: Source = DEFAULT_STORE,
        every: int = 1,
        *,
        replace_from: int | Literal["resume"] | None = None,
        on_error: Literal["raise", "warn"] = "raise",
        **options: Any,
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise InvalidInput(f"on_error is raise or warn, not {on_error!r}")
        self.store, self.every, self.replace_from = store, every, replace_from
        self.on_error, self.options = on_error, options
        self.recorder: Recorder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Open the store, and take the model as it is before the first step."""
        if not state.is_world_process_zero:
            return
        if getattr(args, "fsdp", None) or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise Unsupported(
                "FSDP keeps the parameters in parts: ingest the trainer's checkpoints instead "
                "(trajkit ingest --watch)"
            )
        options: dict[str, Any] = {"tokenizer": given.get("processing_class")} | self.options
        if not hasattr(options["tokenizer"], "save_pretrained"):
            options |= {"tokenizer": self.options.get("tokenizer")}
        begin = state.global_step + 1 if self.replace_from == "resume" else self.replace_from

        def start() -> None:
            self.recorder = Recorder(self.store, self.every, replace_from=begin, **options)
            self.recorder.record(state.global_step, given["model"])

        self._guard(start)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take the step."""
        if self.recorder is not None:
            recorder = self.recorder
            self._guard(lambda: recorder.record(state.global_step, given["model"]))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any
    ) -> None:
        """Keep the numbers that the trainer logs."""
        if self.recorder is not None and logs:
            recorder = self.recorder
            self._guard(lambda: recorder.log(state.global_step, logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Finish what is in flight."""
        self.close()

    def close(self) -> None:
        """Finish what is in flight and let the store go; for a run that ended by an error."""
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            self._guard(recorder.close)

    def _guard(self, work: Callable[[], object]) -> None:
        """Do it; an error ends the training, or the recording alone."""
        try:
            work()
        except TrajkitError as error:
            recorder, self.recorder = self.recorder, None
            if recorder is not None:
                recorder.__exit__(type(error), error, None)
            if self.on_error == "raise":
                raise
            warn(f"recording ends here, training goes on: {error}")
