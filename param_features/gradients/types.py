"""Per-sample gradients of one parameter's matrix: dense, factored over positions, or factored with one-hot inputs.

Three formats behind the same operations. A sample's gradient is Σ_s δ_s ⊗ a_s over the positions s that feed it; nothing
of size [sample, d_out, d_in] is built unless that is the smaller form.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.gradients.products import product
from param_features.gradients.sparse import is_fast_on, sampled_product

Kept = Bool[Tensor, "sample feature"] | None
"""The entries of a product that are wanted, zero elsewhere; all of them where there is none."""

_MOST_REACHED = 0.9
"""Where a larger share of positions has an output gradient, leaving out the others is not worth a copy."""

_MOST_NUMBERS = 2**26
"""Matrices of a batch are built for one parameter at a time up to 256 MiB."""


@dataclass(frozen=True)
class Dense:
    """Gradients as matrices, [sample d_out d_in]."""

    matrix: Float[Tensor, "sample d_out d_in"]

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return self.matrix.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape (d_out, d_in) of one sample's matrix."""
        return self.matrix.shape[1], self.matrix.shape[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the format stores, each with the samples first."""
        return (self.matrix,)

    @property
    def samples_well(self) -> bool:
        """Whether `overlaps` is cheaper where few entries are wanted."""
        return is_fast_on(self.matrix.device)

    def map(self, function) -> "Dense":
        """Apply `function` to each stored tensor: choosing rows, moving, casting."""
        return Dense(function(self.matrix))

    def rows(self, index: Int[Tensor, " d_out"]) -> "Dense":
        """Choose some rows of every sample's matrix."""
        return Dense(self.matrix[:, index])

    def dense(self) -> "Dense":
        """Give back the gradients, which are dense already."""
        return self

    def inner(
        self, left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_in rank"]
    ) -> Float[Tensor, "sample feature"]:
        """⟨∇, Σ_r left_r ⊗ right_r⟩ for each sample and feature; one product with the built directions."""
        return self.matrix.flatten(1) @ _built(left, right).T

    def overlaps(
        self, left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_in rank"], kept: Kept = None
    ) -> Float[Tensor, "sample feature"]:
        """`inner` with constant gradients, for the fit; with `kept`, of those entries alone, at their cost."""
        if kept is not None and self.samples_well:
            return sampled_product(self.matrix.flatten(1), _built(left, right), kept.to(self.matrix.device))
        return _only(product(self.matrix.flatten(1), _built(left, right)), kept)

    def square_norm(self) -> Float[Tensor, " sample"]:
        """‖∇‖² of each sample."""
        return self.matrix.square().sum((1, 2))


@dataclass(frozen=True)
class Factored:
    """Gradients as Σ_s δ_s ⊗ a_s: output gradients [sample pos d_out] and inputs [sample pos d_in]."""

    delta: Float[Tensor, "sample pos d_out"]
    inputs: Float[Tensor, "sample pos d_in"]

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return self.delta.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape (d_out, d_in) of one sample's matrix."""
        return self.delta.shape[2], self.inputs.shape[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the format stores, each with the samples first."""
        return (self.delta, self.inputs)

    @property
    def samples_well(self) -> bool:
        """Whether `overlaps` is cheaper where few entries are wanted: never, it computes every entry."""
        return False

    def map(self, function) -> "Factored":
        """Apply `function` to each stored tensor."""
        return Factored(function(self.delta), function(self.inputs))

    def rows(self, index: Int[Tensor, " d_out"]) -> "Factored":
        """Choose some rows of every sample's matrix."""
        return Factored(self.delta[..., index], self.inputs)

    def dense(self) -> Dense:
        """Build the matrices. Cost: pos · d_out · d_in a sample."""
        return Dense(einsum(self.delta, self.inputs, "sample pos o, sample pos i -> sample o i"))

    def inner(
        self, left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_in rank"]
    ) -> Float[Tensor, "sample feature"]:
        """⟨∇, v_k⟩ = Σ_s Σ_r (δ_s·left_kr)(a_s·right_kr). Cost: pos · feature · rank · (d_out + d_in) a sample."""
        out = einsum(self.delta, left, "sample pos o, feature o rank -> sample pos feature rank")
        into = einsum(self.inputs, right, "sample pos i, feature i rank -> sample pos feature rank")
        return (out * into).sum((1, 3))

    def overlaps(
        self, left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_in rank"], kept: Kept = None
    ) -> Float[Tensor, "sample feature"]:
        """`inner` with constant gradients, for the fit: as matrices or as factors, whichever costs less.

        Cost: as factors that of `inner`, but only for positions whose output gradient is not zero (in a language model those
        up to the sample's own); as matrices d_out · d_in a sample and feature.
        """
        delta, inputs, sample = self._positions_reached()
        if costs_less_as_matrices(self.matrix_shape, self.n_samples, len(delta), *left.shape[::2]):
            return self.dense().overlaps(left, right, kept)
        each = product(delta, _columns(left)) * product(inputs, _columns(right))
        if left.shape[2] > 1:
            each = each.unflatten(1, left.shape[::2]).sum(2)
        if sample is None:
            return _only(each.unflatten(0, self.delta.shape[:2]).sum(1), kept)
        return _only(each.new_zeros(self.n_samples, len(left)).index_add(0, sample, each), kept)

    def _positions_reached(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output gradients and inputs of every position, and which sample's it is; on a CPU of those that matter alone."""
        delta, inputs = self.delta.flatten(0, 1), self.inputs.flatten(0, 1)
        if delta.device.type != "cpu":  # a sum in an order of its own choosing would not give the same bits again
            return delta, inputs, None
        reached = delta.any(1).nonzero()[:, 0]
        if len(reached) > _MOST_REACHED * len(delta):
            return delta, inputs, None
        return delta.index_select(0, reached), inputs.index_select(0, reached), reached // self.delta.shape[1]

    def square_norm(self) -> Float[Tensor, " sample"]:
        """‖∇‖² = Σ_ss' (δ_s·δ_s')(a_s·a_s')."""
        return ((self.delta @ self.delta.mT) * (self.inputs @ self.inputs.mT)).sum((1, 2))


@dataclass(frozen=True)
class Indexed:
    """Gradients of a table whose inputs are one-hot: output gradients, and the row that each position reads."""

    delta: Float[Tensor, "sample pos d_out"]
    index: Int[Tensor, "sample pos"]
    d_in: int

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return self.delta.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape (d_out, d_in) of one sample's matrix."""
        return self.delta.shape[2], self.d_in

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the format stores, each with the samples first."""
        return (self.delta, self.index)

    @property
    def samples_well(self) -> bool:
        """Whether `overlaps` is cheaper where few entries are wanted: never, it computes every entry."""
        return False

    def map(self, function) -> "Indexed":
        """Apply `function` to each stored tensor."""
        return Indexed(function(self.delta), function(self.index), self.d_in)

    def rows(self, index: Int[Tensor, " d_out"]) -> "Indexed":
        """Choose some rows of every sample's matrix."""
        return Indexed(self.delta[..., index], self.index, self.d_in)

    def dense(self) -> Dense:
        """Build the matrices. Cost: memory d_out · d_in a sample."""
        n_samples, _, d_out = self.delta.shape
        table = self.delta.new_zeros(n_samples, self.d_in, d_out)
        where = self.index.unsqueeze(-1).expand(-1, -1, d_out)
        return Dense(table.scatter_add_(1, where, self.delta).mT)

    def factored(self) -> Factored:
        """The same with its inputs written out, one-hot. Cost: memory pos · d_in a sample."""
        return Factored(self.delta, torch.nn.functional.one_hot(self.index, self.d_in).to(self.delta.dtype))

    def inner(
        self, left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_in rank"]
    ) -> Float[Tensor, "sample feature"]:
        """⟨∇, v_k⟩ as for `Factored`, with a_s·right_kr read off the table's row instead of multiplied."""
        out = einsum(self.delta, left, "sample pos o, feature o rank -> sample pos feature rank")
        return (out * right.transpose(0, 1)[self.index]).sum((1, 3))

    def overlaps(
        self, left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_in rank"], kept: Kept = None
    ) -> Float[Tensor, "sample feature"]:
        """Compute `inner` with constant gradients, for the fit."""
        return _only(self.inner(left, right), kept)

    def square_norm(self) -> Float[Tensor, " sample"]:
        """‖∇‖² = Σ_ss' (δ_s·δ_s') [index_s = index_s']."""
        same = self.index.unsqueeze(2) == self.index.unsqueeze(1)
        return ((self.delta @ self.delta.mT) * same).sum((1, 2))


Gradient = Dense | Factored | Indexed
Gradients = dict[str, Gradient]


def costs_less_as_matrices(shape: tuple[int, int], n_samples: int, n_reached: int, n_features: int, rank: int) -> bool:
    """Whether factored gradients of `n_reached` positions are better built for their overlaps, and can be."""
    d_out, d_in = shape
    n_numbers = n_samples * d_out * d_in
    as_factors = n_reached * n_features * rank * (d_out + d_in)
    built = n_reached * d_out * d_in + n_features * rank * d_out * d_in
    return n_numbers <= _MOST_NUMBERS and n_numbers * n_features + built < as_factors


def _built(left: Tensor, right: Tensor) -> Float[Tensor, "feature d_out_d_in"]:
    return einsum(left, right, "feature o rank, feature i rank -> feature o i").flatten(1)


def _columns(factor: Float[Tensor, "feature d rank"]) -> Float[Tensor, "feature_rank d"]:
    return factor.mT.reshape(-1, factor.shape[1])


def _only(overlaps: Float[Tensor, "sample feature"], kept: Kept) -> Float[Tensor, "sample feature"]:
    return overlaps if kept is None else overlaps * kept.to(overlaps.device)


def join_positions(parts: list[Gradient]) -> Gradient:
    """Sum the gradients that several uses of one parameter give to the same samples.

    Raises:
        ValueError: They have different shapes, as those of a table that one use reads and another multiplies by.
    """
    if len(parts) == 1:
        return parts[0]
    shapes = sorted({part.matrix_shape for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"its uses see matrices of shapes {', '.join(map(str, shapes))}")
    factored = [part for part in parts if isinstance(part, Factored)]
    if len(factored) == len(parts):
        return Factored(torch.cat([p.delta for p in factored], 1), torch.cat([p.inputs for p in factored], 1))
    indexed = [part for part in parts if isinstance(part, Indexed)]
    if len(indexed) == len(parts):
        delta, index = torch.cat([p.delta for p in indexed], 1), torch.cat([p.index for p in indexed], 1)
        return Indexed(delta, index, indexed[0].d_in)
    d_out, d_in = shapes[0]
    if (
        not any(isinstance(part, Dense) for part in parts)
        and sum(part.tensors[0].shape[1] for part in parts) * (d_out + d_in) < d_out * d_in
    ):
        return join_positions([part.factored() if isinstance(part, Indexed) else part for part in parts])
    return Dense(torch.stack([part.dense().matrix for part in parts]).sum(0))


def together(parts: list[Tensor]) -> list[Tensor]:
    """What parameters give, on the first one's device: parameters of a model that is spread out lie on several."""
    return [part.to(parts[0].device) for part in parts]


def summed(parts: list[Tensor]) -> Tensor:
    """The sum over parameters, on the first one's device. What moves is small: a number for each sample or feature."""
    return torch.stack(together(parts)).sum(0)


def compact(gradient: Gradient) -> Gradient:
    """The smaller of the factored and the dense form."""
    n_stored = sum(tensor.shape[1:].numel() for tensor in gradient.tensors)
    d_out, d_in = gradient.matrix_shape
    return gradient.dense() if d_out * d_in <= n_stored else gradient
