"""Groups of nodes: the features of a decomposition and the rest of its weights, or an SAE's features and its error."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.circuits.graph import Kind
from param_features.circuits.places import Place
from param_features.fitted import Fitted

_RIDGE = 0.1
"""λ beside unit norms."""


@dataclass(frozen=True, eq=False)
class Group(ABC):
    """Nodes that add up at the same places. A node's amount is how much of it is added to what the model has.

    Attributes:
        name: The decomposed parameters' names, or the SAE's place.
        n_features: How many nodes are features; a last node is the error, where there is one.
        places: Where.
        has_error: Whether a last node holds what the features leave out.
    """

    name: str
    n_features: int
    places: tuple[Place, ...]
    has_error: bool
    kind: ClassVar[Kind]

    @property
    def n_nodes(self) -> int:
        """The number of features, and of the error."""
        return self.n_features + self.has_error

    @property
    def names(self) -> list[str]:
        """The names of the nodes, in order."""
        features = [f"{self.name}/{k}" for k in range(self.n_features)]
        return [*features, f"{self.name}/error"] if self.has_error else features

    @property
    @abstractmethod
    def holds(self) -> Float[Tensor, " node"]:
        """How much of each node the model has: what its ablation alone takes away."""

    @abstractmethod
    def amounts_keeping(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """The amounts by which only the marked nodes remain."""

    @abstractmethod
    def amounts_removing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """The amounts by which the marked nodes are gone."""

    @abstractmethod
    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """How much of each node is still missing where only the marked ones remain, 0 for those."""


@dataclass(frozen=True, eq=False)
class WeightGroup(Group):
    """Features as unit steps in the weights, and the rest W − P W, with P the projection onto the features' span.

    Directions overlap, so what a node holds of W depends on which others stand beside it. Alone, a feature is ablated by
    what it holds beside all others. A circuit keeps the weights' projection onto the span of its features (and the rest):
    what these can hold of W. Several are ablated by the projection onto their span, as by `features.ablate`'s rule `weight`.

    Attributes:
        features: The features.
        gram: ⟨v_j, v_k⟩, float64 on the CPU.
        overlaps: ⟨W, v_k⟩.
    """

    features: Fitted
    gram: Float[Tensor, "feature feature"]
    overlaps: Float[Tensor, " feature"]
    kind: ClassVar[Kind] = "parameter"

    @property
    def holds(self) -> Float[Tensor, " node"]:
        """(1 + λ)(Gram + λ)⁻¹ ⟨W, v⟩ of the features, a ridge regression of W on them; all of the rest.

        The ridge lets directions that are nearly parallel share what they hold; without it, they would hold large parts of
        opposite sign. A direction that lies between others, and says nothing that they do not, holds next to nothing. The
        factor 1 + λ takes back what the ridge takes from directions without overlap.
        """
        return self._amounts_held

    def amounts_keeping(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        features, error = self._split(nodes)
        return self._with_error(self._projected(features) - self._projection_on_all, error - 1.0)

    def amounts_removing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        features, error = self._split(nodes)
        return self._with_error(-self._projected(features), -error)

    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """The overlap of each direction with the part of the weights that is gone."""
        features, error = self._split(nodes)
        gone = self._projection_on_all - self._projected(features)
        return self._with_error(torch.where(features, 0.0, self.gram @ gone), 1.0 - error)

    @cached_property
    def _amounts_held(self) -> Float[Tensor, " node"]:
        eye = torch.eye(self.n_features, dtype=self.gram.dtype)
        return self._with_error((1 + _RIDGE) * torch.linalg.solve(self.gram + _RIDGE * eye, self.overlaps), 1.0)

    @cached_property
    def _projection_on_all(self) -> Float[Tensor, " feature"]:
        return self._projected(torch.ones(self.n_features, dtype=torch.bool))

    def _projected(self, nodes: Bool[Tensor, " feature"]) -> Float[Tensor, " feature"]:
        """Compute the coefficients of W's projection onto the span of the marked features."""
        coefficients, chosen = torch.zeros_like(self.overlaps), nodes.nonzero().flatten()
        if len(chosen):
            inverse = torch.linalg.pinv(self.gram[chosen][:, chosen], hermitian=True, rtol=1e-6)
            coefficients[chosen] = inverse @ self.overlaps[chosen]
        return coefficients

    def _split(self, nodes: Bool[Tensor, " node"]) -> tuple[Bool[Tensor, " feature"], float]:
        return nodes[: self.n_features], float(nodes[-1]) if self.has_error else 1.0

    def _with_error(self, features: Float[Tensor, " feature"], error: float) -> Float[Tensor, " node"]:
        return torch.cat([features, features.new_tensor([error])]) if self.has_error else features


@dataclass(frozen=True, eq=False)
class ComponentGroup(WeightGroup):
    """Components, which the weights hold as they are, and the rest Δ: nothing is projected.

    Attributes:
        sizes: ‖U_c‖ ‖V_c‖.
    """

    sizes: Float[Tensor, " feature"]

    @property
    def holds(self) -> Float[Tensor, " node"]:
        """All of each component, and of the rest."""
        return self._with_error(self.sizes, 1.0)

    def amounts_keeping(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return -self.missing(nodes)

    def amounts_removing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return -self.missing(~nodes)

    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        features, error = self._split(nodes)
        return self._with_error(torch.where(features, 0.0, self.sizes), 1.0 - error)


@dataclass(frozen=True, eq=False)
class SaeGroup(Group):
    """The nodes of an SAE: its features at their activations, and its error."""

    kind: ClassVar[Kind] = "sae"

    @property
    def holds(self) -> Float[Tensor, " node"]:
        """The model has all of each node."""
        return torch.ones(self.n_nodes, dtype=torch.float64)

    def amounts_keeping(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return nodes.double() - 1

    def amounts_removing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return -nodes.double()

    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return 1 - nodes.double()
