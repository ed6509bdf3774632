"""∂D/∂f of a batch of samples: at the outputs, or taken back below a linear head without making the outputs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients.head import LinearHead
from param_features.problem import KL, Divergence, Outputs, Reference

States = Float[Tensor, "sample d_model"]


@dataclass(frozen=True)
class Cotangents(ABC):
    """Gives ∂D/∂f of samples; what they are compared with is a subclass's.

    KL's cotangent softmax(f) − y_r is affine in what the head makes of a state, so below a linear head it is the difference
    of two rows: that which the sample's softmax expects, and the reference's.
    """

    divergence: Divergence

    @abstractmethod
    def __call__(self, output: Outputs, row: Int[Tensor, " sample"], position: Int[Tensor, " sample"]) -> Outputs:
        """∂D/∂f at the outputs; `row` and `position` say which samples these are."""

    def below(self, head: LinearHead, states: States, row: Int[Tensor, " sample"]) -> States | None:
        """The cotangents at the states below the head, or None where that needs the outputs."""
        if type(self.divergence) is not KL:
            return None
        return self._difference(head, states, row)

    @abstractmethod
    def _difference(self, head: LinearHead, states: States, row: Int[Tensor, " sample"]) -> States | None:
        """The difference of the two rows at the states, for KL; None where it needs the outputs."""


@dataclass(frozen=True)
class AgainstDrawn(Cotangents):
    """Against references drawn from the samples themselves or from a fixed pool."""

    reference: Reference
    generator: torch.Generator

    def __call__(self, output: Outputs, row: Int[Tensor, " sample"], position: Int[Tensor, " sample"]) -> Outputs:
        """∂D/∂f against a reference drawn for each sample."""
        return self.divergence.cotangent(output, self.reference.draw(self.divergence, output, self.generator))

    def _difference(self, head: LinearHead, states: States, row: Int[Tensor, " sample"]) -> States | None:
        reference = self.reference
        if reference.is_drawn_from_outputs:
            return None
        expected = head.expected_row(states)
        if reference.pool is None and reference.kind == "uniform":
            return expected - head.weight.mean(0)
        which = reference.choose(len(states), self.generator).to(states.device)
        if reference.pool is None:
            return expected - expected[which]
        return expected - _pulled_rows(head, reference.pool, which)


@dataclass(frozen=True)
class AgainstRows(Cotangents):
    """Against references that belong to the rows of the batch."""

    references: Float[Tensor, "row d_output"]

    def __call__(self, output: Outputs, row: Int[Tensor, " sample"], position: Int[Tensor, " sample"]) -> Outputs:
        """∂D/∂f against the reference of each sample's row."""
        return self.divergence.cotangent(output, self.references[row.to(self.references.device)].to(output))

    def _difference(self, head: LinearHead, states: States, row: Int[Tensor, " sample"]) -> States:
        return head.expected_row(states) - _pulled_rows(head, self.references, row)


@dataclass(frozen=True)
class AgainstMean(Cotangents):
    """The mean over several references, of a divergence that is affine in its reference."""

    references: Float[Tensor, "n_references d_output"]

    def __call__(self, output: Outputs, row: Int[Tensor, " sample"], position: Int[Tensor, " sample"]) -> Outputs:
        """∂D/∂f against the references' mean, in one evaluation."""
        return self.divergence.cotangent(output, self.references.mean(0).to(output).expand_as(output))

    def _difference(self, head: LinearHead, states: States, row: Int[Tensor, " sample"]) -> States:
        return head.expected_row(states) - head.pulled(self.references.mean(0, keepdim=True))


def _pulled_rows(head: LinearHead, table: Float[Tensor, "reference d_output"], which: Int[Tensor, " sample"]) -> States:
    """Some rows of a table of references, below the head; each is multiplied as seldom as may be."""
    which = which.to(table.device)
    if len(table) <= len(which):
        return head.pulled(table)[which.to(head.weight.device)]
    return head.pulled(table[which])
