"""Extrapolated logits for lm-evaluation-harness: an ``HFLM`` that answers with two models.

    from lm_eval import simple_evaluate
    from trajkit.outputs.evaluation import ExtrapolatedLM

    lm = ExtrapolatedLM(base="ckpts/checkpoint-0", second="ckpts/checkpoint-400", alpha=2.5)
    simple_evaluate(lm, tasks=["gsm8k"])

Needs ``pip install 'trajkit[eval]'``. Importing this module registers the model as ``trajkit``.
"""

from typing import Any

from trajkit.errors import InvalidInput, Unsupported
from trajkit.outputs.libraries import torch
from trajkit.outputs.logits import LogitsExtrapolation
from trajkit.outputs.models import build_model, load_tokenizer
from trajkit.outputs.probes import check_same_tokenizer
from trajkit.outputs.weights import parse_weights

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as missing:
    raise Unsupported(f"evaluation needs {missing.name}: pip install 'trajkit[eval]'") from missing


@register_model("trajkit")
class ExtrapolatedLM(HFLM):  # type: ignore[misc]  # lm_eval ships no types
    """A model of lm-evaluation-harness whose logits are l0 + alpha (l1 - l0).

    Args:
        base: the earlier model: a checkpoint folder, a step of ``store``, or a model in memory.
        second: the later model, likewise.
        alpha: 1 is the second model itself; (t - t0) / (t1 - t0) stands for step t.
        store: the run's store, where a model is one of its steps.
        tokenizer: needed where both models are in memory.
        dtype: of the parameters (default: the checkpoints' own).
        device: as torch names it.
        options: those of ``HFLM``, such as ``batch_size``.

    Raises:
        InvalidInput: no tokenizer. Mismatch: the two models' tokenizers differ.
    """

    def __init__(
        self,
        base: Any,
        second: Any,
        alpha: float,
        *,
        store: str | None = None,
        tokenizer: Any = None,
        dtype: str | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        models, tokenizers = [], []
        for model in (base, second):
            if not isinstance(model, str | int):
                models.append(model)
                continue
            weights = parse_weights(str(model), store)
            models.append(build_model(weights, dtype=dtype, device=device))
            tokenizers.append(load_tokenizer(weights))
        if len(tokenizers) == 2:
            check_same_tokenizer(*tokenizers)
        tokenizer = tokenizer or next(iter(tokenizers), None)
        if tokenizer is None:
            raise InvalidInput("models in memory come without a tokenizer: pass tokenizer=")
        super().__init__(
            pretrained=models[1], backend="causal", tokenizer=tokenizer, device=device, **options
        )
        pad = self.tokenizer.pad_token_id
        self.processor = LogitsExtrapolation(models[0], float(alpha), pad_token_id=pad)

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        """The extrapolated logits of whole texts, [B, L, V]; texts are padded on the right."""
        second = super()._model_call(inps, attn_mask, labels).float()
        with torch.no_grad():
            first = self.processor.base_model(inps, use_cache=False).logits.float()
        return self.processor.combine(first, second)

    def _model_generate(self, context: Any, max_length: int, stop: Any, **options: Any) -> Any:
        """Texts decoded from extrapolated logits."""
        self.processor.reset()
        return super()._model_generate(
            context, max_length, stop, logits_processor=[self.processor], **options
        )
