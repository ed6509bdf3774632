"""What a sample is asked: how far its output lies from which references."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.problem.divergence import CustomDivergence, Divergence, Outputs, Reference

_FIXED = ("mean", "given")
"""References that every sample is compared with alike."""


@dataclass(frozen=True, eq=False)
class Question:
    """A divergence and its references.

    A harvest compares each sample with one reference that it draws; activations average over all that are stored.

    Attributes:
        divergence: D.
        kind: Name of the reference: see `Reference`.
        references: What activations average over, in the divergence's reference space.
    """

    divergence: Divergence
    kind: str
    references: Float[Tensor, "n_references d_output"]

    @property
    def drawn(self) -> Reference:
        """What a harvest draws a reference from for each sample."""
        return Reference(self.kind, self.references if self.kind in _FIXED else None)

    @property
    def is_affine(self) -> bool:
        """Whether D's gradient is affine in the reference, so that the mean over references is that at their mean."""
        return not isinstance(self.divergence, CustomDivergence)

    def value(self, output: Outputs) -> Float[Tensor, " sample"]:
        """D of each sample, averaged over the references, in the divergence's unit.

        Cost: one pass over the outputs for each reference.
        """
        total = torch.zeros(len(output), dtype=output.dtype, device=output.device)
        for reference in self.references.to(output):
            total += self.divergence.value(output, reference.expand_as(output))
        return total / len(self.references)

    def cotangent(self, output: Outputs) -> Outputs:
        """The mean of ∂D/∂f over the references; one evaluation where that is affine in the reference."""
        if self.is_affine:
            return self.divergence.cotangent(output, self.references.mean(0).to(output).expand_as(output))
        rows = [self.divergence.cotangent(output, row.to(output).expand_as(output)) for row in self.references]
        return torch.stack(rows).mean(0)
