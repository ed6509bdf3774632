"""Fused matrices: layers that hold queries, keys and values, or a gate and its input, or an RNN's gates, in one tensor.

A part is addressed as `c_attn.weight[k]`. Known by the class that holds them, so that no library is imported.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from param_features.params import Layout, class_names


@dataclass(frozen=True)
class Split:
    """How the output axis of a fused matrix falls into parts.

    Attributes:
        sizes: Outputs of each part, by name, in order.
        n_heads: Where the parts lie side by side within each head, the number of heads; None where each is in one piece.
    """

    sizes: dict[str, int]
    n_heads: int | None = None

    def layouts(self, n_dims: int, out_axis: int) -> dict[str, Layout]:
        """Where each part lies in a stored tensor with `n_dims` axes."""
        pattern, lengths = "", ()
        if self.n_heads is not None:
            others = " ".join(["i"] * (n_dims - 1))
            pattern = f"(head part o) {others} -> (part head o) {others}"
            lengths = (("head", self.n_heads), ("part", len(self.sizes)))
        layouts, start = {}, 0
        for name, size in self.sizes.items():
            layouts[name] = Layout(pattern, lengths, (start, start + size), out_axis)
            start += size
        return layouts


def _equal(names: str, total: int, n_heads: int | None = None) -> Split:
    parts = names.split()
    return Split(dict.fromkeys(parts, total // len(parts)), n_heads)


def _inside(layer: Any) -> Any:
    """The layer that peft wrapped, or the layer itself."""
    return getattr(layer, "base_layer", layer)


def _gpt2(attention: Any) -> Split:
    return _equal("k v" if attention.is_cross_attention else "q k v", _inside(attention.c_attn).nf)


def _by_head(child: str) -> Callable[[Any], Split]:
    def split(attention: Any) -> Split:
        n_heads = getattr(attention, "num_attention_heads", None) or getattr(attention, "num_heads", None)
        n_heads = n_heads or attention.config.num_attention_heads
        return _equal("q k v", getattr(attention, child).out_features, n_heads)

    return split


def _grouped(attention: Any) -> Split:
    d_q = attention.o_proj.in_features
    d_kv = (attention.qkv_proj.out_features - d_q) // 2
    return Split({"q": d_q, "k": d_kv, "v": d_kv})


def _big_code(attention: Any) -> Split:
    if not attention.multi_query:
        return _equal("q k v", attention.c_attn.out_features, attention.num_heads)
    return Split({"q": attention.embed_dim, "k": attention.kv_dim, "v": attention.kv_dim})


def _gates(names: str) -> Callable[[nn.RNNBase], Split]:
    return lambda rnn: _equal(names, len(names.split()) * rnn.hidden_size)


_SPLITS: dict[str, dict[str, Callable[[Any], Split]]] = {
    "torch.MultiheadAttention": {"in_proj_": lambda attention: _equal("q k v", 3 * attention.embed_dim)},
    "torch.LSTM": {"weight_": _gates("i f g o"), "bias_": _gates("i f g o")},
    "torch.GRU": {"weight_": _gates("r z n"), "bias_": _gates("r z n")},
    "transformers.GPT2Attention": {"c_attn.": _gpt2},
    "transformers.GPTNeoXAttention": {"query_key_value.": _by_head("query_key_value")},
    "transformers.BloomAttention": {"query_key_value.": _by_head("query_key_value")},
    "transformers.GPTBigCodeAttention": {"c_attn.": _big_code},
    "transformers.MptAttention": {"Wqkv.": lambda attention: _equal("q k v", attention.Wqkv.out_features)},
    "transformers.Phi3Attention": {"qkv_proj.": _grouped},
    "transformers.Phi3MLP": {"gate_up_proj.": lambda mlp: _equal("gate up", mlp.gate_up_proj.out_features)},
    "transformers.Glm4MLP": {"gate_up_proj.": lambda mlp: _equal("gate up", mlp.gate_up_proj.out_features)},
}


def splits(model: nn.Module) -> Iterator[tuple[str, Split]]:
    """Every fused parameter of the model that is known: its name and how it is split."""
    for prefix, module in model.named_modules():
        for class_name in class_names(module):
            known = _SPLITS.get(class_name, {})
            for start, split in known.items():
                plain = {name: name.replace(".base_layer.", ".") for name, _ in module.named_parameters()}
                names = [name for name in plain if re.fullmatch(re.escape(start) + r"[^.]*", plain[name])]
                yield from ((f"{prefix}.{name}" if prefix else name, split(module)) for name in names)
