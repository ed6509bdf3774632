"""Places in the forward pass where nodes add up to what passes there: outputs of weights, activations under an SAE.

A node k adds n_k(x), and all nodes of a place, the error among them, add up to what the weight gives (W x without its bias)
or what the SAE rebuilds (less its decoder's bias): what it reads, or of a transcoder what the model gives where it writes
(less its skip connection, which is no node). An ablation takes n_k away, or puts a baseline in its stead.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.adapters import SparseAutoencoder
from param_features.errors import AdapterError
from param_features.gradients import Gradient, acting_at, at_least_float32, by_row, required_rule
from param_features.machine import saved_as_they_are
from param_features.params import Tap
from param_features.sae import first_tensor, with_first

Factors = tuple[Tensor, Tensor]
"""(left [node d_out rank], right [node d_in rank])."""

Act = Callable[["Place", Any, Tensor], Tensor]
"""(place, source, output) -> the output that is passed on."""


class Place(ABC):
    """One place of one group of nodes. A `source` is whatever the nodes' parts are computed from.

    Attributes:
        module: What passes the place's output.
    """

    module: nn.Module

    @abstractmethod
    def hooks(self, act: Act) -> Iterator[Any]:
        """Register hooks that call `act` at each call of the place, and give their handles."""

    @abstractmethod
    def inner(self, source: Any, delta: Tensor, n_rows: int) -> Float[Tensor, "row node"]:
        """⟨δ, n_k⟩ summed over each row's positions, for every node; linear in δ."""

    @abstractmethod
    def detached(self, source: Any) -> Any:
        """The source, cut off from its graph."""

    def beside(self, source: Any, like: Tensor) -> Tensor | None:
        """What varies with the input and is part of no node, shaped like the output; None where nothing is."""
        return None

    def written(self, source: Any, amounts: Float[Tensor, "row node"], like: Tensor) -> Tensor:
        """Σ_k α_k n_k as a tensor like the output, with its graph to the source: the transpose of `inner`."""
        with saved_as_they_are(), torch.enable_grad():
            probe = torch.zeros(like.shape, dtype=amounts.dtype, device=like.device, requires_grad=True)
            value = (self.inner(source, probe, len(amounts)) * amounts).sum()
            return torch.autograd.grad(value, probe, create_graph=True)[0]


@dataclass(frozen=True, eq=False)
class WeightPlace(Place):
    """One use of a parameter: its features, scaled to what each takes of the weight, and the rest of the weight.

    Attributes:
        tap: Where the use shows.
        parts: Nodes of equal rank: those of the features, then, alone, that of the rest, where it is one.
    """

    tap: Tap
    parts: tuple[Factors, ...]

    @property
    def module(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The module that the tap's output leaves."""
        return self.tap.output.module

    def hooks(self, act: Act) -> Iterator[Any]:
        """See `Place`."""
        return acting_at(self.tap, lambda source, output: act(self, source, output))

    def inner(self, source: Tensor, delta: Tensor, n_rows: int) -> Float[Tensor, "row node"]:
        """Compute the inner products by the layer's rule."""
        source = by_row(at_least_float32(source) if source.is_floating_point() else source, n_rows)
        gradient: Gradient = required_rule(self.tap.rule, self.tap.attribute)(
            self.tap.layer, source, by_row(at_least_float32(delta), n_rows)
        )
        gradient = gradient if self.tap.rows is None else gradient.rows(self.tap.rows.to(delta.device))
        wide = torch.promote_types(delta.dtype, torch.float32)
        return torch.cat([gradient.inner(*(factor.to(delta.device, wide) for factor in part)) for part in self.parts], 1)

    def detached(self, source: Tensor) -> Tensor:
        """See `Place`."""
        return without_graph(source)


class SaeSource(NamedTuple):
    """What an SAE's nodes are computed from: activations of all features, its error, and what its skip connection writes."""

    codes: Tensor
    error: Tensor
    skipped: Tensor | None


@dataclass(frozen=True, eq=False)
class SaePlace(Place):
    """Activations that an SAE or a transcoder writes: its features, each along its decoder's row, and its error.

    Attributes:
        module: What passes the activations.
        hook_name: Its name.
        sae: The SAE.
        reads: What passes the activations that it reads: the same, but for a transcoder.
        hook_name_read: Its name.
    """

    module: nn.Module
    hook_name: str
    sae: SparseAutoencoder
    reads: nn.Module
    hook_name_read: str

    def hooks(self, act: Act) -> Iterator[Any]:
        """See `Place`; the source is an `SaeSource`."""
        last: list[Tensor] = []

        def read(module: nn.Module, args: tuple, output: Any) -> None:
            last[:] = [first_tensor(output, self.hook_name_read)]

        def change(module: nn.Module, args: tuple, output: Any) -> Any:
            first = first_tensor(output, self.hook_name)
            if is_apart and not last:
                raise AdapterError(
                    f"{self.hook_name_read!r} is not passed before {self.hook_name!r} in this model's forward pass, so the "
                    f"{self.sae.description} cannot write there. Name the places of this model."
                )
            return with_first(output, act(self, self._source(last.pop() if is_apart else first, first), first))

        is_apart = self.reads is not self.module
        if is_apart:
            yield self.reads.register_forward_hook(read)
        yield self.module.register_forward_hook(change)

    def _source(self, read: Tensor, written: Tensor) -> SaeSource:
        codes, rebuilt, skipped = self.sae.read(read)
        self.sae.check_written(rebuilt.shape[:-1], written.shape)
        rebuilt = rebuilt if skipped is None else rebuilt + skipped
        return SaeSource(codes, written - rebuilt.reshape(written.shape).to(written.dtype), skipped)

    def inner(self, source: SaeSource, delta: Tensor, n_rows: int) -> Float[Tensor, "row node"]:
        """Compute the inner products as codes times δ along the decoder's rows."""
        flat = delta.reshape(len(delta), -1, self.sae.d_out)
        along = flat @ self.sae.decoder.to(delta).mT
        features = (source.codes.reshape(along.shape) * along).sum(1)
        return torch.cat([features, (source.error.reshape(flat.shape) * flat).sum((1, 2)).unsqueeze(1)], 1)

    def beside(self, source: SaeSource, like: Tensor) -> Tensor | None:
        """See `Place`: the skip connection."""
        return None if source.skipped is None else source.skipped.reshape(like.shape).to(like.dtype)

    def detached(self, source: SaeSource) -> SaeSource:
        """See `Place`."""
        skipped = None if source.skipped is None else without_graph(source.skipped)
        return SaeSource(without_graph(source.codes), without_graph(source.error), skipped)


def without_graph(tensor: Tensor) -> Tensor:
    """The tensor cut off from its graph; a copy where it was made under `torch.inference_mode()`, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


@contextmanager
def acting(places: Iterable[Place], act: Act) -> Iterator[None]:
    """Run a block in which every place passes on what `act` makes of its output."""
    with ExitStack() as hooks:
        for place in places:
            for handle in place.hooks(act):
                hooks.callback(handle.remove)
        yield


def is_positional(rows: Tensor, is_real: Tensor | None) -> bool:
    """Tell whether a place's tensor has an axis for the tokens' positions after that of the rows, and another after it."""
    return is_real is not None and rows.dim() > 2 and rows.shape[:2] == is_real.shape


def mean_parts(
    place: Place, sources: Sequence[tuple[Any, Tensor]], n_nodes: int, n_rows: int, is_real: Tensor | None
) -> Float[Tensor, "node unit"]:
    """Measure each node's mean part: over real positions where the place has them, else over rows.

    Cost: a product for each node, or for each unit of the output where these are fewer.

    Args:
        place: Whose nodes.
        sources: Of each call, with the output there.
        n_nodes: How many nodes it has.
        n_rows: Rows of the batch.
        is_real: False at padding, [row pos]; None in a model without tokens.
    """
    rows = by_row(sources[0][1], n_rows)
    n_units = rows[0, 0].numel() if is_positional(rows, is_real) else rows[0].numel()
    parts = [
        _by_node(place, *call, n_nodes, n_rows, is_real) if n_nodes <= n_units else _by_unit(place, *call, n_rows, is_real)
        for call in sources
    ]
    return torch.stack(parts).mean(0)


def _by_node(
    place: Place, source: Any, like: Tensor, n_nodes: int, n_rows: int, is_real: Tensor | None
) -> Float[Tensor, "node unit"]:
    """Measure the means by writing every node out by itself."""
    means = []
    for node in torch.eye(n_nodes, dtype=torch.promote_types(like.dtype, torch.float32)).to(like.device):
        rows = by_row(place.written(source, node.expand(n_rows, -1), like).detach(), n_rows)
        real = rows[is_real.to(rows.device)] if is_real is not None and is_positional(rows, is_real) else rows
        means.append(real.flatten(1).mean(0))
    return torch.stack(means)


def _by_unit(place: Place, source: Any, like: Tensor, n_rows: int, is_real: Tensor | None) -> Float[Tensor, "node unit"]:
    """Measure the means by reading every unit of the output at all real positions at once."""
    rows, weight = by_row(like, n_rows), torch.full((n_rows,), 1 / n_rows)
    if is_real is not None and is_positional(rows, is_real):
        weight = is_real.cpu() / is_real.sum().cpu()
    shape, means = rows.shape[weight.dim() :], []
    weight = weight.to(rows.device, torch.promote_types(like.dtype, torch.float32)).reshape(*weight.shape, *[1] * len(shape))
    for unit in torch.eye(shape.numel(), dtype=weight.dtype).to(rows.device):
        delta = weight * unit.reshape(shape)
        means.append(place.inner(source, delta.reshape(like.shape), n_rows).detach().sum(0))
    return torch.stack(means, 1)


def mean_inner(delta: Tensor, means: Float[Tensor, "node unit"], n_rows: int, is_real: Tensor | None) -> Tensor:
    """Compute ⟨δ, mean_k⟩, summed over each row's positions, [row node]."""
    rows = by_row(delta, n_rows)
    summed = rows.flatten(2).sum(1) if is_positional(rows, is_real) else rows.flatten(1)
    return summed.to(means.dtype) @ means.mT


def mean_written(
    amounts: Float[Tensor, "row node"], means: Float[Tensor, "node unit"], like: Tensor, is_real: Tensor | None
) -> Tensor:
    """Write Σ_k α_k mean_k at every position of a tensor like the output."""
    summed, rows = amounts.to(means.dtype) @ means, by_row(like, len(amounts))
    if not is_positional(rows, is_real):
        return summed.reshape(like.shape)
    return summed.reshape(len(rows), 1, *rows.shape[2:]).expand(rows.shape).reshape(like.shape)
