"""Untrained HookedTransformers for toys."""

from typing import TYPE_CHECKING, Any

import torch

from param_features.demo import build_model
from param_features.errors import MissingExtraError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def build_hooked(architecture: dict[str, Any], *, seed: int) -> "HookedTransformer":
    """A HookedTransformer without tokenizer, its weights drawn with `seed`; torch's own generator is left alone.

    Raises:
        MissingExtraError: TransformerLens cannot be imported, or is a version without `HookedTransformer`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build_model(architecture, None, init_weights=True)
        except MissingExtraError as error:
            raise MissingExtraError(
                f"This toy is a HookedTransformer, which TransformerLens 3 has, and the import failed: {error.__cause__}. "
                'Run: pip install "param_features[lens]" "transformer-lens>=3.9,<4".'
            ) from error
