"""Adapter for TransformerLens' `HookedTransformer`."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from param_features.params import Attention, ParamView, Site, Tap, default_fold

from .attention import rotary_of_table
from .lens import LensAdapter

# Attribute of the parameter: einops pattern to [d_out, d_in]. TransformerLens multiplies from the left: W is [in, out].
_FOLDS = {
    **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), "head i o -> (head o) i"),
    **dict.fromkeys(("b_Q", "b_K", "b_V", "_b_K", "_b_V"), "head o -> (head o) 1"),
    "W_O": "head i o -> o (head i)",
    **dict.fromkeys(("W_in", "W_gate", "W_out", "W_E", "W_U", "W_pos"), "i o -> o i"),
}


class HookedTransformerAdapter(LensAdapter):
    """A `HookedTransformer`, grouped-query attention and gated MLPs included."""

    # Which argument of an attention layer's call each of its matrices is applied to.
    _ATTENTION_INPUTS: ClassVar[dict[str, str | int]] = {"Q": "query_input", "K": "key_input", "V": "value_input"}

    def fold(self, owner: nn.Module, attribute: str, n_dims: int) -> str:
        """Heads fold into d_out, for W_O into d_in."""
        return _FOLDS.get(attribute, default_fold(n_dims))

    def aliases(self) -> dict[str, str]:
        """`attn.W_K` for grouped-query attention's `attn._W_K`, likewise V and the biases."""
        grouped = {name.replace("attn._", "attn."): name for name in self.views() if "attn._" in name}
        return super().aliases() | grouped

    def attentions(self) -> dict[str, Attention]:
        """The attention of every block, unless it norms or clips queries and keys."""
        layers = {
            f"blocks.{number}.attn": block.attn for number, block in enumerate(self.model.blocks) if hasattr(block, "attn")
        }
        return {name: self._attention(name, layer) for name, layer in layers.items() if self._is_bilinear(layer)}

    def _is_bilinear(self, layer: nn.Module) -> bool:
        return getattr(layer, "q_norm", None) is None and getattr(self.model.cfg, "clip_qkv", None) is None

    def _attention(self, name: str, layer: Any) -> Attention:
        cfg, key = self.model.cfg, "_W_K" if "_W_K" in layer._parameters else "W_K"
        rotary = None
        if cfg.positional_embedding_type == "rotary":
            # TransformerLens' own table in double precision: it knows about stretched frequencies.
            base = layer._rotary_base()
            sine, cosine = layer.calculate_sin_cos_rotary(cfg.rotary_dim, 2, base=base, dtype=torch.float64)
            rotary = rotary_of_table(cosine[1], sine[1], is_adjacent=cfg.rotary_adjacent_pairs)
        return Attention(f"{name}.W_Q", f"{name}.{key}", cfg.n_heads, float(layer.attn_scale), cfg.n_key_value_heads, rotary)

    def taps(self, view: ParamView) -> tuple[Tap, ...]:
        """The hook points around the parameter's use."""
        taps = [self._tap(owner, attribute) for owner, attribute in view.places]
        return tuple(tap for tap in taps if tap is not None) if None not in taps else ()

    def _tap(self, owner: nn.Module, attribute: str) -> Tap | None:
        kind, _, letter = attribute.lstrip("_").partition("_")
        if hasattr(owner, "hook_z") and letter in self._ATTENTION_INPUTS:
            rule, source = "bias" if kind == "b" else "heads", Site(owner, self._ATTENTION_INPUTS[letter])
            return Tap(rule, owner, attribute, source, _inside(owner, f"hook_{letter.lower()}"))
        if hasattr(owner, "hook_z") and letter == "O":
            return _matrix_tap(owner, attribute, _inside(owner, "hook_z"), Site(owner))
        if hasattr(owner, "hook_pre"):
            return self._mlp_tap(owner, attribute)
        if hasattr(owner, "hook_normalized"):
            return Tap("gain" if kind == "w" else "shift", owner, attribute, _inside(owner, "hook_normalized"), Site(owner))
        if attribute in ("W_U", "b_U"):
            return _matrix_tap(owner, attribute, Site(owner, 0), Site(owner))
        if attribute == "W_E":
            return Tap("one_hot", owner, attribute, Site(owner, 0), Site(owner))
        return None

    def _mlp_tap(self, mlp: nn.Module, attribute: str) -> Tap | None:
        is_gated = "W_gate" in mlp._parameters
        entry = Site(mlp, 0)
        ends = {
            "W_in": (entry, _inside(mlp, "hook_pre_linear" if is_gated else "hook_pre")),
            "W_gate": (entry, _inside(mlp, "hook_pre")),
            # A gated MLP adds b_in to the product of its two halves, just before hook_post.
            "b_in": (entry, _inside(mlp, "hook_post" if is_gated else "hook_pre")),
            "W_out": (_inside(mlp, "hook_post"), Site(mlp)),
            "b_out": (_inside(mlp, "hook_post"), Site(mlp)),
        }.get(attribute)
        return _matrix_tap(mlp, attribute, *ends) if ends else None

    @property
    def processing(self) -> str:
        """Whether LayerNorm is folded into the weights that follow it."""
        norm = self.model.cfg.normalization_type
        return f"{norm}: folded into the weights" if str(norm).endswith("Pre") else f"{norm}: not folded"

    def head(self) -> nn.Module | None:
        """The unembedding, unless a soft cap follows it."""
        return None if self.is_soft_capped else self.model.unembed

    def head_weights(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the unembedding, which TransformerLens keeps with the tokens last."""
        head = self.head()
        return None if head is None else (head.get_parameter("W_U").mT, head.get_parameter("b_U"))


def _inside(layer: nn.Module, hook: str) -> Site:
    """What passes a hook point of the layer."""
    return Site(layer.get_submodule(hook))


def _matrix_tap(layer: nn.Module, attribute: str, source: Site, output: Site) -> Tap:
    rule = "bias" if attribute.lstrip("_").startswith("b_") else "matrix"
    return Tap(rule, layer, attribute, source, output)
