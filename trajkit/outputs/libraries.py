"""torch and transformers, or one line that says how to get them."""

from trajkit.errors import Unsupported

try:
    import torch as torch
    import transformers as transformers
except ModuleNotFoundError as missing:
    raise Unsupported(
        f"models and their outputs need {missing.name}: pip install 'trajkit[models]'"
    ) from missing

__all__ = ["torch", "transformers"]
