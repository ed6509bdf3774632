"""Layers that see rows which the model gathers: which sample each of them belongs to.

A loop over experts gives each the positions that its router sends there, from all samples, as many as there happen to be.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from param_features.errors import AdapterError
from param_features.gradients.capture import StopForward, capturing
from param_features.params import Adapter, Site, Tap, held_still
from param_features.problem import ModelInputs

_NOBODY = -1
_ROWS = 32


@dataclass(frozen=True)
class Owners:
    """The samples that rows belong to.

    Attributes:
        sample: Of each row; -1 where nothing comes back to it.
        n_rows: Samples of the batch.
        n_pos: Positions of a sample.
    """

    sample: Int[Tensor, " row"]
    n_rows: int
    n_pos: int

    def grouped(self, tensor: Tensor) -> Tensor:
        """The rows by sample, [sample pos ...], in their order; the places that are left over are zero.

        Raises:
            AdapterError: A sample has more rows than positions.
        """
        order = self.sample.argsort(stable=True)
        order = order[self.sample[order] != _NOBODY]
        sample = self.sample[order]
        counts = torch.bincount(sample, minlength=self.n_rows)
        if len(sample) and int(counts.max()) > self.n_pos:
            raise AdapterError("a layer is called on more rows of a sample than it has positions")
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[sample]
        grouped = tensor.new_zeros(self.n_rows, self.n_pos, *tensor.shape[1:])
        grouped[sample, place] = tensor[order]
        return grouped


def owners_of(calls: Sequence[Tensor], root: Tensor, n_pos: int) -> Owners:
    """Find the owners of all rows of some calls, one call after another; of no row where there is no call.

    Read from the graph: NaN put into the cotangents of some samples comes out at their rows, whatever the weights, so that
    as many backward passes as a sample's number has binary digits tell the samples apart.
    """
    n_rows = len(root)
    if not calls:
        return Owners(torch.zeros(0, dtype=torch.long, device=root.device), n_rows, n_pos)
    number, code = torch.arange(1, n_rows + 1, device=root.device), torch.zeros((), dtype=torch.long, device=root.device)
    for digit in range(n_rows.bit_length()):
        cotangent = torch.zeros_like(root)
        cotangent[(number >> digit) % 2 == 1] = torch.nan
        with torch.autograd.set_detect_anomaly(False):
            found = torch.autograd.grad(root, calls, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)
        is_reached = torch.cat([gradient.isnan().flatten(1).any(1) for gradient in found])
        code = code + (is_reached.long() << digit)
    return Owners(code - 1, n_rows, n_pos)


def gathering_sites(adapter: Adapter, taps: Sequence[Tap], inputs: ModelInputs) -> frozenset[Site]:
    """The tapped outputs that hold other rows from sample to sample; of models of tokens alone.

    Cost: a forward pass of two rows; of up to 32 further rows, one by one, where an output has no axis for positions.
    """
    sites = list({tap.output for tap in taps if tap.rule != "experts"})
    if inputs.n_pos < 2 or not sites:
        return frozenset()
    counts = [_row_counts(adapter, taps, inputs.rows(slice(0, 2)))]
    if all(count == () or None in count for count in counts[0].values()):
        return frozenset()
    spread = torch.arange(0, len(inputs), -(-len(inputs) // _ROWS))
    counts = [_row_counts(adapter, taps, inputs.rows([row])) for row in spread.tolist()]
    return frozenset(site for site in sites if len({count[site] for count in counts}) > 1)


def _row_counts(adapter: Adapter, taps: Sequence[Tap], inputs: ModelInputs) -> dict[Site, tuple[int | None, ...]]:
    """How many rows each call of each site has, None where these are the batch's."""
    with held_still(adapter.module), torch.no_grad(), capturing(taps, stop_at=adapter.head()) as capture:
        with suppress(StopForward):
            adapter.run(*inputs.args, **inputs.kwargs)
        return {
            tap.output: tuple(
                len(output) if isinstance(output, Tensor) and output.dim() == 2 else None
                for output in capture.outputs[tap.output]
            )
            for tap in taps
        }
