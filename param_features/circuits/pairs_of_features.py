"""Interactions: how a step along one feature changes the slope along another, v_iᵀ ∇² v_j, within and across layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.circuits.baselines import Zero
from param_features.circuits.metric import CustomMetric, Metric, read_metric
from param_features.circuits.passes import CircuitSubject, in_order
from param_features.circuits.reading import read_named, weight_group
from param_features.circuits.tangents import slope_changes
from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.machine import own_modes, public, shown
from param_features.problem import ModelInputs, read_inputs


@dataclass(frozen=True, eq=False)
class Interactions:
    """How features act on each other: v_iᵀ ∇²m v_j for pairs, in units of m per squared unit step of the weights.

    Attributes:
        names: Of the features, as nodes are named.
        values: For each prompt and pair.
        metric: Name of m.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "prompt feature other"]
    metric: str

    @property
    def mean(self) -> Float[Tensor, "feature other"]:
        """The mean interaction of every pair over prompts."""
        return self.values.mean(0)

    @property
    def size(self) -> Float[Tensor, "feature other"]:
        """The mean absolute interaction over prompts: what the signed mean hides where prompts disagree."""
        return self.values.abs().mean(0)

    @public
    def top(self, n: int = 10, *, across: bool = False) -> list[tuple[str, str, float]]:
        """Find the pairs of different features with the largest mean absolute interaction, and its signed mean.

        Args:
            n: How many.
            across: Whether both features must come from different sets.
        """
        rows, columns = torch.triu_indices(len(self.names), len(self.names), 1)
        if across:
            group = [name.rpartition("/")[0] for name in self.names]
            differs = torch.tensor([group[i] != group[j] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)])
            rows, columns = rows[differs], columns[differs]
        order = self.size[rows, columns].argsort(descending=True)[:n].tolist()
        pairs = [(int(rows[k]), int(columns[k])) for k in order]
        return [(self.names[i], self.names[j], float(self.mean[i, j])) for i, j in pairs]

    def __repr__(self) -> str:
        """Print the strongest pairs."""
        head = f"Interactions of {len(self.names)} features on {self.metric} over {len(self.values)} prompts, strongest:"
        return "\n".join([head, *(f"  {value:+10.4g}  {feature} × {other}" for feature, other, value in self.top())])


@public
@own_modes()
def interactions(
    features: Any, prompts: Any = None, metric: Any = "divergence", *, inputs: Any = None, chosen: Any = None
) -> Interactions:
    """Measure the feature interaction map: v_iᵀ ∇²m v_j at the model's weights, for every pair of features, for each prompt.

    Cost: for each feature one forward and two backward passes, for all prompts and all its pairs at once. The
    Hessian is never built. Memory: a graph of the model on all prompts.

    Args:
        features: One set of features, several in a list or mapping, of the same or different layers of one model.
        prompts: Tokens [prompt, pos], or strings.
        metric: m, as in `pf.circuits.indirect_effects`; by default the divergence that the first set was fitted with, from
            its first reference, at each prompt's last real position.
        inputs: Instead of prompts, anything that the module takes.
        chosen: Numbers of the features, for all sets alike or by set; all by default.

    Returns:
        The map, symmetric.

    Raises:
        NotBoundError: Features without a model.
        AdapterError: A parameter without a layer rule.
        FeatureMismatchError: Features of different models.
        FeatureCountError: There is no such feature.
        SettingError: An unknown metric.
        InputError: Prompts that the model cannot take.

    Source: Sparse Eigendecomposition, the first draft of L3D, which names the map as the next step.
    """
    named = read_named(features)
    groups = tuple(weight_group(fitted, name, has_error=False) for name, fitted in named.items())
    first = next(iter(named.values()))
    adapter = first.bound_engine("interactions").adapter
    data = read_inputs(adapter, prompts, inputs)
    numbers = {name: _numbers(fitted, chosen, name) for name, fitted in named.items()}
    explained = own_divergence(first, data) if metric == "divergence" else read_metric(metric)
    subject = in_order(CircuitSubject(adapter, groups, data, explained, Zero()))
    chosen_nodes = [(group.name, k) for group in subject.groups for k in numbers[group.name]]
    rows = [slope_changes(subject, {name: _unit_step(subject, name, k)}) for name, k in chosen_nodes]
    values = torch.stack([torch.cat([row[g.name][:, numbers[g.name]] for g in subject.groups], 1) for row in rows], 1)
    return Interactions(tuple(f"{name}/{k}" for name, k in chosen_nodes), values, explained.name)


def own_divergence(features: Fitted, inputs: ModelInputs) -> Metric:
    """Make a metric of the features' divergence from their first reference, at each prompt's last real position."""
    engine = features.bound_engine("interactions")
    reference, divergence = features.references[:1], features.divergence

    def value(output: Tensor) -> Tensor:
        rows = torch.arange(len(output), device=output.device)
        last = output[rows, inputs.last_positions.to(output.device)] if engine.per_position else output.flatten(1)
        return divergence.value(last, reference.to(last).expand_as(last))

    value.__name__ = f"{divergence.name} from a reference"
    return CustomMetric(value)


def _numbers(features: Fitted, chosen: Any, name: str) -> list[int]:
    """Read which of a set's features are chosen."""
    if chosen is None:
        return list(range(features.n_features))
    own = chosen.get(name) if isinstance(chosen, Mapping) else chosen
    if not isinstance(own, Iterable):
        raise SettingError(f"chosen= is {shown(chosen)}. Give a list of features, or a mapping with one for {name!r}.")
    numbers = list(own)
    if not numbers:
        raise SettingError(f"chosen= names no feature of {name!r}. Leave it out for all.")
    for number in numbers:
        features.check_feature(number)
    return numbers


def _unit_step(subject: CircuitSubject, name: str, feature: int) -> Float[Tensor, "row node"]:
    """Make the step of one unit along one feature, for every prompt."""
    group = next(group for group in subject.groups if group.name == name)
    return torch.eye(group.n_nodes, dtype=torch.float64)[feature].expand(len(subject.inputs), -1)
