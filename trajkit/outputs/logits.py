"""Decoding with extrapolated logits: l0 + alpha (l1 - l0) of two models of one run.

    second.generate(..., logits_processor=[trajkit.LogitsExtrapolation(base_model, alpha)])

The second model generates; the processor runs the base model beside it, with a cache of its own, and
replaces the second model's raw logits before temperature, top-k and top-p (arXiv 2601.04537,
section 5; alpha = (t - t0) / (t1 - t0)).
"""

import inspect
import math
import sys
from typing import Any

from trajkit.errors import InvalidInput, Unsupported
from trajkit.outputs.libraries import torch, transformers
from trajkit.outputs.probes import check_same_tokenizer

_CACHES = ("past_key_values", "cache")
"""what transformers calls a model's cache, version by version"""
_REFUSED = {"beam": "beam search", "assisted": "assisted decoding", "contrastive": "this search"}


class LogitsExtrapolation(transformers.LogitsProcessor):
    """Extrapolates a model's logits from a base model's, at every decoding step.

    One object serves any number of ``generate`` calls: a new prompt is told by the ids.

    Args:
        base_model: the earlier model, of transformers; the one that generates is the later.
        alpha: 0 gives the base model's logits, 1 the second's own, above 1 steps to come.
        pad_token_id: tokens of this id at the head of a row are padding (default: the base model's
            own, or its end token).
        tokenizers: those of the two models; they are compared.

    Raises:
        InvalidInput: alpha is not a finite number. Mismatch: the tokenizers differ.
        Unsupported, on use: beam search, assisted decoding, prompts given as embeddings.

    Notes:
        Where the vocabularies are padded to different widths, the common part is extrapolated and
        the rest is never drawn. Logits that another processor has set to -inf stay so; processors
        that rescale logits (a repetition penalty) belong after this one. Call :meth:`reset` after
        changing the base model's weights between two calls that continue one text.
    """

    def __init__(
        self,
        base_model: Any,
        alpha: float,
        *,
        pad_token_id: int | None = None,
        tokenizers: tuple[Any, Any] | None = None,
    ) -> None:
        if not math.isfinite(alpha):
            raise InvalidInput(f"alpha must be a finite number, not {alpha}")
        if tokenizers is not None:
            check_same_tokenizer(*tokenizers)
        self.base_model = base_model
        self.alpha = float(alpha)
        self.pad_token_id = _pad_token(base_model) if pad_token_id is None else pad_token_id
        parameters = inspect.signature(base_model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._cache_name = next((n for n in reversed(_CACHES) if n in parameters), _CACHES[0])
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.reset()

    def reset(self) -> None:
        """Forget the text and the cache of the last call."""
        self._seen: Any = None
        self._mask: Any = None
        self._cache: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The logits to draw the next token from.

        Args:
            input_ids: int64 [B, L], the text so far, padded on the left.
            scores: float32 [B, V], the second model's raw logits.

        Returns:
            float32 [B, V].
        """
        base = self._base_logits(input_ids).to(scores.device, torch.float32)
        return self.combine(base, scores)

    def combine(self, first: Any, second: Any) -> Any:
        """l0 + alpha (l1 - l0), as wide as the second; -inf where the base has no logit.

        Args:
            first: the base model's logits, float32 [..., V0].
            second: the second's, float32 [..., V1].
        """
        if self.alpha == 1.0:
            return second
        shared = min(first.shape[-1], second.shape[-1])
        own, base = second[..., :shared], first[..., :shared]
        # to the bit the base's at 0, as a + (b - a) is not b
        moved = base if self.alpha == 0.0 else base + self.alpha * (own - base)
        out = torch.full_like(second, -math.inf)
        out[..., :shared] = torch.where(torch.isneginf(own), own, moved)
        return out

    @torch.no_grad()
    def _base_logits(self, input_ids: Any) -> Any:
        """The base model's logits for the next token, [B, V0]."""
        ids = input_ids.to(self.base_model.device)
        if self._continues(ids):
            new = ids[:, -1:]
            one = torch.ones_like(new)
            self._mask = torch.cat([self._mask, one], dim=1)
        else:
            self._begin(ids)
            new = ids
        if self._cache is None:
            new = ids  # a model without a cache goes through the text again
        inputs: dict[str, Any] = {
            "input_ids": new,
            "attention_mask": self._mask,
            "use_cache": True,
            self._cache_name: self._cache,
            **self._keep_last,
        }
        if self._takes_positions:
            positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -new.shape[1] :]
        found = self.base_model(**inputs, return_dict=True)
        self._cache = next((found[n] for n in _CACHES if found.get(n) is not None), None)
        self._seen = ids
        return found.logits[:, -1]

    def _continues(self, ids: Any) -> bool:
        """Whether the text is the last one and one token more."""
        seen = self._seen
        return (
            seen is not None
            and ids.shape == (seen.shape[0], seen.shape[1] + 1)
            and bool(torch.equal(ids[:, :-1], seen))
        )

    def _begin(self, ids: Any) -> None:
        """Start on a new prompt."""
        _refuse_searches()
        if not ids.shape[1]:
            raise Unsupported("extrapolated logits need the prompt's ids, not its embeddings")
        self.reset()
        if self.pad_token_id is None:
            self._mask = torch.ones_like(ids)
        else:
            self._mask = ((ids != self.pad_token_id).cumsum(-1) > 0).long()
            self._mask[:, -1] = 1


def _pad_token(model: Any) -> int | None:
    for settings in (getattr(model, "generation_config", None), model.config):
        for name in ("pad_token_id", "eos_token_id"):
            found = getattr(settings, name, None)
            found = found[0] if isinstance(found, list) and found else found
            if isinstance(found, int):
                return found
    return None


def _refuse_searches() -> None:
    """Raise :class:`Unsupported` where a search calls that reorders texts or scores drafts.

    transformers does not tell a processor who calls it; the call stack does.
    """
    frame = sys._getframe(1)
    while frame is not None:
        for part, name in _REFUSED.items():
            if part in frame.f_code.co_name and "generat" in frame.f_code.co_filename:
                raise Unsupported(
                    f"extrapolated logits do not work with {name}; sample, or take the likeliest "
                    "token (num_beams=1, no assistant_model)"
                )
        if frame.f_back is None:
            return
        frame = frame.f_back
