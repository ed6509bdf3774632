"""Groups of nodes: the features of a decomposition and the rest of its weights, or an SAE's features and its error."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.adapters.sae_lens import read_sae
from param_features.circuits.graph import Kind
from param_features.circuits.places import Factors, Place, SaePlace, WeightPlace
from param_features.errors import AdapterError, FeatureMismatchError, SettingError
from param_features.features import ParamFeatures
from param_features.gradients import GradientEngine
from param_features.intervene.span import outside_span, weight_overlaps
from param_features.sae.site import find_place

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
        """Features, and the error."""
        return self.n_features + self.has_error

    @property
    def names(self) -> list[str]:
        """Of the nodes, in order."""
        own = [f"{self.name}/{k}" for k in range(self.n_features)]
        return [*own, f"{self.name}/error"] if self.has_error else own

    @property
    @abstractmethod
    def holds(self) -> Float[Tensor, " node"]:
        """How much of each node the model has: what its ablation alone takes away."""

    @abstractmethod
    def kept(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """The amounts by which only the marked nodes remain."""

    @abstractmethod
    def removed(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
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

    features: ParamFeatures
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
        return self._held

    def kept(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        own, rest = self._split(nodes)
        return self._with_rest(self._projected(own) - self._of_all, rest - 1.0)

    def removed(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        own, rest = self._split(nodes)
        return self._with_rest(-self._projected(own), -rest)

    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """The overlap of each direction with the part of the weights that is gone."""
        own, rest = self._split(nodes)
        gone = self._of_all - self._projected(own)
        return self._with_rest(torch.where(own, 0.0, self.gram @ gone), 1.0 - rest)

    @cached_property
    def _held(self) -> Float[Tensor, " node"]:
        eye = torch.eye(self.n_features, dtype=self.gram.dtype)
        return self._with_rest((1 + _RIDGE) * torch.linalg.solve(self.gram + _RIDGE * eye, self.overlaps), 1.0)

    @cached_property
    def _of_all(self) -> Float[Tensor, " feature"]:
        return self._projected(torch.ones(self.n_features, dtype=torch.bool))

    def _projected(self, nodes: Bool[Tensor, " feature"]) -> Float[Tensor, " feature"]:
        """Coefficients of W's projection onto the span of the marked features."""
        found, chosen = torch.zeros_like(self.overlaps), nodes.nonzero().flatten()
        if len(chosen):
            inverse = torch.linalg.pinv(self.gram[chosen][:, chosen], hermitian=True, rtol=1e-6)
            found[chosen] = inverse @ self.overlaps[chosen]
        return found

    def _split(self, nodes: Bool[Tensor, " node"]) -> tuple[Bool[Tensor, " feature"], float]:
        return nodes[: self.n_features], float(nodes[-1]) if self.has_error else 1.0

    def _with_rest(self, own: Float[Tensor, " feature"], rest: float) -> Float[Tensor, " node"]:
        return torch.cat([own, own.new_tensor([rest])]) if self.has_error else own


@dataclass(frozen=True, eq=False)
class SaeGroup(Group):
    """An SAE's features at their activations, and its error."""

    kind: ClassVar[Kind] = "sae"

    @property
    def holds(self) -> Float[Tensor, " node"]:
        """All of each."""
        return torch.ones(self.n_nodes, dtype=torch.float64)

    def kept(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return nodes.double() - 1

    def removed(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return -nodes.double()

    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """See `Group`."""
        return 1 - nodes.double()


def weight_group(features: ParamFeatures, name: str, *, has_error: bool = True) -> WeightGroup:
    """The features of a bound set as nodes.

    Args:
        features: Bound to a model.
        name: Of the group.
        has_error: Whether the rest of the weights is a node too.

    Raises:
        NotBoundError: The features were loaded without a model.
        AdapterError: A parameter has no layer rule here.
    """
    engine = features._bound("circuit")
    check_rules(engine)
    directions = features.v_out
    rest = outside_span(directions, engine.subset) if has_error else {}
    places = []
    for view in engine.subset.views:
        parts = (directions.factors[view.name], *([_whole(view.to_matrix(rest[view.name]))] if has_error else []))
        places += [WeightPlace(tap, parts) for tap in engine.routes.taps[view.name]]
    gram = directions.gram().double().cpu()
    overlaps = weight_overlaps(directions, engine.subset).cpu()
    return WeightGroup(name, directions.n_features, tuple(places), has_error, features, gram, overlaps)


def check_rules(engine: GradientEngine) -> None:
    """Refuse parameters whose part of an output cannot be told apart by feature.

    Raises:
        AdapterError: A parameter has no layer rule here.
    """
    dense = [name for name in engine.subset.names if name not in engine.routes.taps]
    if dense:
        why = engine.routes.why_dense.get(dense[0], "no layer rule")
        raise AdapterError(
            f"Circuits need a layer rule for every parameter, and {dense[0]!r} has none here ({why}). Choose parameters of "
            "layers with a rule: linear maps, convolutions, embeddings, norms."
        )


def sae_group(sae: Any, hook_name: str | None, features: ParamFeatures) -> SaeGroup:
    """An SAE's features where the model passes what it reads, and its error.

    Raises:
        AdapterError: It is no SAE.
        SettingError: Neither its metadata nor the user says where it reads.
        UnknownHookError: The model has no such place.
    """
    found = read_sae(sae)
    place = hook_name or found.hook_name
    if place is None:
        raise SettingError(f"Where the {found.description} reads is not known. Give saes={{hook_name: sae}}.")
    module = find_place(features._bound("circuit").adapter, place)
    return SaeGroup(place, found.n_features, (SaePlace(module, place, found),), True)


def read_groups(features: Any, saes: Any) -> tuple[Group, ...]:
    """What the user means by features and SAEs, as groups of one model.

    Args:
        features: One set of features, several in a list, or by names of the user's choice.
        saes: One SAE, several in a list, or by the names of their places; None for none.

    Raises:
        FeatureMismatchError: The sets belong to different models, or two hold the same parameter.
        SettingError: No features are given, or two groups have one name.
    """
    named = read_named(features)
    first = next(iter(named.values()))
    pairs = saes.items() if isinstance(saes, Mapping) else [(None, sae) for sae in _listed(saes)]
    groups: list[Group] = [weight_group(one, name) for name, one in named.items()]
    groups += [sae_group(sae, hook_name, first) for hook_name, sae in pairs]
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise SettingError(f"Two groups have one name: {', '.join(names)}. Give features={{name: features}}.")
    return tuple(groups)


def read_named(features: Any) -> dict[str, ParamFeatures]:
    """Sets of features of one model by name: the user's, or their parameters'.

    Raises:
        FeatureMismatchError: The sets belong to different models, or two hold the same parameter.
        SettingError: No features are given.
    """
    named = _named(features)
    if not named or not all(isinstance(one, ParamFeatures) for one in named.values()):
        raise SettingError("features= holds no feature sets. Give what pf.decompose returns, a list of these, or a mapping.")
    modules = {name: one._bound("circuit").adapter.module for name, one in named.items()}
    first, taken = next(iter(named)), dict[tuple[int, str], str]()
    for name, one in named.items():
        if modules[name] is not modules[first]:
            raise FeatureMismatchError(
                f"{name!r} belongs to another model object than {first!r}. Bind all of them to one: "
                "pf.load(dir, model=model)."
            )
        for view in one._bound("circuit").subset.views:
            key = (id(view.stored), str(view.layout.part))
            if taken.setdefault(key, name) != name:
                raise FeatureMismatchError(
                    f"{name!r} and {taken[key]!r} both hold {view.name!r}, whose parts would be counted twice. "
                    "Give one set for each parameter."
                )
    return named


def _named(features: Any) -> dict[str, Any]:
    if isinstance(features, Mapping):
        return dict(features)
    found: dict[str, Any] = {}
    for one in _listed(features):
        name = ", ".join(one.params) if isinstance(one, ParamFeatures) else str(one)
        if name in found:
            raise FeatureMismatchError(f"Two sets of features hold {name!r}. Give one set for each parameter.")
        found[name] = one
    return found


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    is_many = isinstance(given, Sequence) and not isinstance(given, str) and not _is_release(given)
    return list(given) if is_many else [given]


def _is_release(given: Sequence) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given)


def _whole(matrix: Float[Tensor, "d_out d_in"]) -> Factors:
    """A matrix as one node of full rank."""
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return matrix.unsqueeze(0), eye.unsqueeze(0)
