"""What a step along features adds to each layer, as the factors that peft holds: B·A for the weight, b for the bias."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import ExportError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine
from param_features.params import ParamView, has_rows_in, rows_of_part

LayerKind = Literal["linear", "conv1d", "embedding", "convolution"]
PREFIX = "base_model.model"


@dataclass(frozen=True)
class Layer:
    """A layer and what is added to it.

    Attributes:
        owner: The layer itself.
        name: Its name in the model that peft wraps.
        kind: Which of peft's forms it takes; `"conv1d"` is transformers' linear layer of that name.
        shape: Of the weight as peft's A sees it: d_in, or channel and kernel of a convolution.
        A: Rows that read the input, [rank d_in].
        B: Columns that write the output, [d_out rank]; B·A is added to the weight's matrix.
        bias: Added to the bias; None where it stays.
    """

    owner: nn.Module
    name: str
    kind: LayerKind
    shape: tuple[int, ...]
    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    bias: Float[Tensor, " d_out"] | None = None

    @property
    def rank(self) -> int:
        """The rank that peft needs for this layer."""
        return len(self.A)

    def changes(self) -> dict[str, Tensor]:
        """What is added to the layer's own tensors, by attribute. Cost: the weight, built once."""
        weight = self.owner.get_parameter("weight")
        matrix = self.B @ self.A
        added = {"weight": (matrix.T if has_rows_in(self.owner) else matrix).reshape(weight.shape)}
        return added | ({} if self.bias is None else {"bias": self.bias})

    def tensors(self, *, has_bias: bool) -> dict[str, Tensor]:
        """The factors by peft's keys, with a bias, of zeros where there is none, if the adapter has biases."""
        prefix = f"{PREFIX}.{self.name}.lora"
        if self.kind == "embedding":
            return {f"{prefix}_embedding_A": self.A, f"{prefix}_embedding_B": self.B}
        B = self.B.reshape(*self.B.shape, *[1] * (len(self.shape) - 1))
        factors = {f"{prefix}_A.weight": self.A.reshape(-1, *self.shape), f"{prefix}_B.weight": B}
        zeros = self.B.new_zeros(len(self.B))
        return factors | ({f"{prefix}_B.bias": zeros if self.bias is None else self.bias} if has_bias else {})


def layers_of(
    engine: GradientEngine, directions: LowRank, steps: Sequence[float], views: Sequence[ParamView]
) -> list[Layer]:
    """Every layer that a step of `steps` along `directions` moves by some of the subset's views, each once, in their order.

    Raises:
        ExportError: peft cannot hold a parameter; says which, and why.
    """
    names = engine.adapter.peft_names()
    layers: dict[str, Layer] = {}
    for view in views:
        if len(view.places) > 1:
            raise ExportError(
                f"{view.name!r} is held by {len(view.places)} modules (tied weights). peft adds to one layer's output at a "
                "time, and merging such an adapter would add it twice. Untie the model, or use features.edit(model, …)."
            )
        layer = _layer(view, names.get(view.owner), *scaled(directions.factors[view.name], steps))
        layers[layer.name] = _joined(layers[layer.name], layer) if layer.name in layers else layer
    return list(layers.values())


def peft_kind(owner: nn.Module) -> LayerKind | None:
    """Which of peft's layers stands in for this one and computes the same; None for none."""
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        is_plain = owner.groups == 1 and set(owner.dilation) == {1} and owner.padding_mode == "zeros"
        return "convolution" if is_plain else None  # peft's A leaves these settings out
    if isinstance(owner, nn.Embedding):
        return "embedding" if owner.max_norm is None else None
    if isinstance(owner, nn.Linear):
        return "linear"
    return "conv1d" if has_rows_in(owner) else None


def scaled(factors: tuple[Tensor, Tensor], steps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """B [d_out rank] and A [rank d_in] of Σ_k δ_k left_k right_kᵀ; the rank is the sum of the features'."""
    left, right = (factor.double() for factor in factors)  # rounded once, when stored
    left = left * torch.tensor([float(step) for step in steps]).to(left)[:, None, None]
    return left.transpose(0, 1).flatten(1), right.transpose(1, 2).flatten(0, 1)


def _layer(view: ParamView, name: str | None, B: Tensor, A: Tensor) -> Layer:
    kind = peft_kind(view.owner)
    if kind is None or view.attribute not in ("weight", "bias"):
        raise ExportError(f"{view.name!r} is {_described(view)}. {_ACCEPTED}")
    if name is None:
        raise ExportError(
            f"{view.name!r} lies in a layer that the Hugging Face model from disk does not have in this form. Load that "
            "model again and pass it: to_lora(path, …, model=hf); the weights are found in it by their values."
        )
    if kind == "embedding" and view.attribute == "bias":
        raise ExportError(f"{view.name!r} is {_described(view)}. {_ACCEPTED}")
    shape = tuple(view.stored.shape[1:]) if kind == "convolution" else (view.matrix_shape[1],)
    if view.layout.part is not None:
        B = _padded(view, B)
    if view.attribute == "weight":
        return Layer(view.owner, name, kind, shape, A, B)
    d_in, d_out = _sides(view.owner)
    zeros = B.new_zeros
    return Layer(view.owner, name, kind, d_in, zeros(1, torch.Size(d_in).numel()), zeros(d_out, 1), bias=(B @ A)[:, 0])


def _padded(view: ParamView, B: Float[Tensor, "d_part rank"]) -> Float[Tensor, "d_out rank"]:
    """The columns of a part as columns of the whole, zero outside the part."""
    d_out = _sides(view.owner)[1]
    whole = B.new_zeros(d_out, B.shape[1])
    whole[rows_of_part(view).to(B.device)] = B
    return whole


def _sides(owner: nn.Module) -> tuple[tuple[int, ...], int]:
    """Shape of a layer's input, channel and kernel of a convolution, and its d_out."""
    shape = owner.get_parameter("weight").shape
    return ((shape[0],), shape[1]) if has_rows_in(owner) else (tuple(shape[1:]), shape[0])


def _joined(first: Layer, second: Layer) -> Layer:
    """Both additions in one layer: factors side by side, those of zeros left out."""
    parts = [layer for layer in (first, second) if layer.bias is None] or [first]
    biases = [layer.bias for layer in (first, second) if layer.bias is not None]
    A, B = torch.cat([layer.A for layer in parts]), torch.cat([layer.B for layer in parts], 1)
    return Layer(first.owner, first.name, first.kind, first.shape, A, B, torch.stack(biases).sum(0) if biases else None)


def _described(view: ParamView) -> str:
    kind = type(view.owner).__name__
    if isinstance(view.owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return f"of a {kind} with groups, dilation or a padding mode, which peft's convolution leaves out"
    if isinstance(view.owner, nn.Embedding):
        return f"of a {kind} with max_norm, which peft would apply to its own factor"
    return f"the {view.attribute!r} of a {kind}, for which peft has no low-rank form"


_ACCEPTED = (
    "LoRA holds weights and biases of nn.Linear, transformers' Conv1D and convolutions, and weights of untied nn.Embedding. "
    "For a TransformerLens model pass the Hugging Face model with the same weights: to_lora(path, …, model=hf)."
)
