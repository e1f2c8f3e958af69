"""The recorder inside verl's actor workers. Written from verl's sources; not run under verl here.

What is used of verl's training engine (``verl/workers/engine/base.py``): ``get_per_tensor_param()``
gives pairs of (name, whole tensor), names as Hugging Face has them, gathered over all ranks as they
are taken, and a PEFT config or None beside them; ``save_checkpoint(local_path, hdfs_path, global_step,
max_ckpt_to_keep)`` saves a step.

    callback = RecordCallback("trajkit.zarr", rank=torch.distributed.get_rank())
    callback.attach(engine)                            # every step that verl saves is recorded too
    weights = callback.passing(weights, step)          # or: every step that goes to the rollout engine

Gathering needs every rank, so every rank attaches; rank 0 holds the tensors in host memory, one
checkpoint of them beside the recorder's copies, and records.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from trajkit.defaults import DEFAULT_STORE
from trajkit.errors import Unsupported
from trajkit.store.tensors import Source
from trajkit.training.recorder import Recorder


class RecordCallback:
    """Puts steps of a verl run into a store.

    Args:
        store: the store's folder, made where it is missing.
        every: record steps that are multiples of this.
        rank: of this process; only 0 records.
        options: of :class:`trajkit.Recorder`; ``config`` and ``tokenizer`` may be the model's folder.
    """

    def __init__(
        self, store: Source = DEFAULT_STORE, every: int = 1, *, rank: int = 0, **options: Any
    ) -> None:
        self.every = every
        self.recorder = Recorder(store, every, **options) if rank == 0 else None

    def passing(
        self, weights: Iterable[tuple[str, Tensor]], step: int
    ) -> Iterator[tuple[str, Tensor]]:
        """The same pairs, one by one; once the last was taken, the step is recorded.

        Raises:
            TrajkitError: as :meth:`trajkit.Recorder.record`, after the last pair.
        """
        held: dict[str, Tensor] = {}
        keeps = self.recorder is not None and step % self.every == 0
        for name, tensor in weights:
            if keeps:
                held[name] = tensor.detach().to("cpu", copy=True)
            yield name, tensor
        if self.recorder is not None and keeps:
            self.recorder.record(step, held)

    def attach(self, engine: Any) -> None:
        """Record every step that this engine saves, after it was saved.

        Raises:
            Unsupported: when a step is saved, where the engine trains an adapter whose weights are
                not merged: its tensors are no checkpoint.
        """
        save = engine.save_checkpoint

        def save_and_record(
            local_path: str,
            hdfs_path: str | None = None,
            global_step: int = 0,
            *args: Any,
            **more: Any,
        ) -> Any:
            saved = save(local_path, hdfs_path, global_step, *args, **more)
            if global_step % self.every == 0:
                weights, peft = engine.get_per_tensor_param()
                if peft is not None:
                    raise Unsupported("verl gives an adapter's weights: ingest its checkpoints")
                for _ in self.passing(weights, global_step):
                    pass
            return saved

        engine.save_checkpoint = save_and_record

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Keep numbers of a step."""
        if self.recorder is not None:
            self.recorder.log(step, metrics)

    def close(self) -> None:
        """Finish what is in flight and let the store go."""
        if self.recorder is not None:
            self.recorder.close()
