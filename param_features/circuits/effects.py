"""Indirect effects: what each node's ablation takes from the metric, estimated for all at once or measured one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.groups import WeightGroup
from param_features.circuits.metric import read_metric
from param_features.circuits.passes import CircuitSubject, in_order
from param_features.circuits.reading import read_groups
from param_features.errors import SettingError, nearest
from param_features.machine import own_modes, public
from param_features.problem import read_inputs

METHODS = ("attribution", "integrated", "exact")
"""The estimates by name."""


@dataclass(frozen=True, eq=False)
class IndirectEffects:
    """What each node's ablation takes from the metric: the metric with the node less the metric without it.

    Attributes:
        names: Of the nodes.
        values: For each prompt and node, in the metric's units.
        metric: Name of the metric.
        method: `"attribution"`, `"integrated"` or `"exact"`.
        ablation: What an ablated node is replaced by.
        checked: Numbers of the nodes that were ablated one by one as well.
        exact: Their exact effects.
        of_prompts: The metric of each prompt, with every node in place.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "prompt node"]
    metric: str
    method: str
    ablation: str
    checked: tuple[int, ...]
    exact: Float[Tensor, "prompt checked"]
    of_prompts: Float[Tensor, " prompt"]

    @property
    def mean(self) -> Float[Tensor, " node"]:
        """Each node's mean effect over prompts."""
        return self.values.mean(0)

    @property
    def correlation(self) -> float:
        """Pearson's correlation of mean estimates with mean exact effects over the checked nodes; NaN below three of them.

        The checked nodes lie evenly along the order by size, so that large and small effects both count.
        """
        if len(self.checked) < 3:
            return float("nan")
        return float(torch.corrcoef(torch.stack([self.mean[list(self.checked)], self.exact.mean(0)]))[0, 1])

    def __getitem__(self, name: str) -> Float[Tensor, " prompt"]:
        """Find one node's effect on each prompt."""
        if name not in self.names:
            raise SettingError(f"No node {name!r}. Nearest: {nearest(name, self.names)}.")
        return self.values[:, self.names.index(name)]

    @public
    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The n nodes with the largest mean effects of either sign, each with its effect."""
        order = self.mean.abs().argsort(descending=True)[:n]
        return [(self.names[k], float(self.mean[k])) for k in order.tolist()]

    def __repr__(self) -> str:
        """Print the largest effects, and how far the estimates can be trusted."""
        trust = f"correlation with {len(self.checked)} exact ones {self.correlation:.3f}" if self.checked else "not checked"
        head = f"IndirectEffects on {self.metric} over {len(self.values)} prompts ({self.method}, {self.ablation}; {trust})"
        return "\n".join([head, *(f"  {effect:+10.4f}  {name}" for name, effect in self.top())])


@public
@own_modes()
def indirect_effects(
    features: Any,
    prompts: Any = None,
    metric: Any = "loss",
    *,
    inputs: Any = None,
    saes: Any = None,
    method: str = "attribution",
    ablation: str = "mean",
    n_steps: int = 10,
    n_check: int = 16,
    background: Any = None,
    counterparts: Any = None,
    seed: int = 0,
) -> IndirectEffects:
    """Estimate what every feature contributes to a metric.

    Cost: `"attribution"` a forward and a backward pass for all nodes; `"integrated"` `n_steps` times as much for each
    group; `"exact"` a forward pass for each node. Checking costs a forward pass for each checked node, and the mean ablation
    one product per node.

    Args:
        features: One set of features, several in a list or mapping, of one model.
        prompts: Tokens [prompt, pos], or strings.
        metric: `"loss"`, `pf.circuits.LogitDifference(…)`, `pf.circuits.LogProbability(…)`, or a function of the model's
            output to one number for each prompt.
        inputs: Instead of prompts, anything that the module takes.
        saes: SAEs and transcoders whose features are nodes too, by their metadata, or by where they read:
            `{hook_name: sae}`. A transcoder's nodes stand where it writes, `{(hook_name, hook_name_out): transcoder}`; its
            skip connection is no node and always stays.
        method: `"attribution"`: h_k ∂m/∂α_k, to first order; `"integrated"`: its mean along the way to the ablation of the
            node's whole group; `"exact"`.
        ablation: `"mean"` (the node's part is replaced by its mean over `background`), `"zero"` (taken away) or `"resample"`
            (replaced by its part on another prompt).
        n_steps: Of the integral.
        n_check: How many nodes are ablated one by one, to report the correlation.
        background: Tokens for the means; the prompts by default.
        counterparts: For `"resample"`: one other prompt of the same length for each; the prompts change places by default.
        seed: Of that exchange.

    Returns:
        Effects in the metric's units, with their correlation with exact ones.

    Raises:
        NotBoundError: Features without a model.
        FeatureMismatchError: Features of different models, or two sets of the same parameter.
        AdapterError: A parameter without a layer rule, or an SAE that cannot be taken apart.
        SettingError: An unknown method, ablation or metric.
        InputError: Prompts that the model cannot take.
        OutputError: The metric does not give one number for each prompt.

    Source: Marks et al. (2403.19647), section 3.1, for SAE features; here nodes are steps in the weights.
    """
    check_method(method, n_steps)
    subject = read_subject(features, prompts, inputs, metric, saes)
    subject = ablating(subject, Ablation(ablation, background, counterparts, seed))
    return effects_of(subject, method, ablation=ablation, n_steps=n_steps, n_check=n_check)


def read_subject(features: Any, prompts: Any, inputs: Any, metric: Any, saes: Any) -> CircuitSubject:
    """Read what the user gave as a model on prompts with its nodes; nothing is ablated yet."""
    groups = read_groups(features, saes)
    adapter = next(group.features for group in groups if isinstance(group, WeightGroup)).bound_engine("circuit").adapter
    return in_order(CircuitSubject(adapter, groups, read_inputs(adapter, prompts, inputs), read_metric(metric)))


def effects_of(subject: CircuitSubject, method: str, *, ablation: str, n_steps: int, n_check: int) -> IndirectEffects:
    """Estimate every node's effect, and ablate `n_check` nodes one by one to compare."""
    base = subject.values()
    if method == "exact":
        values = exact_effects(subject, range(len(subject.names)), base)
    else:
        values = attribution(subject) if method == "attribution" else integrated(subject, n_steps)
    order = values.mean(0).abs().argsort(descending=True)
    places = torch.linspace(0, len(order) - 1, max(0, min(n_check, len(order)))).round().long().unique()
    checked = () if method == "exact" else tuple(order[places].tolist()[: max(0, n_check)])
    exact = exact_effects(subject, checked, base)
    return IndirectEffects(tuple(subject.names), values, subject.metric.name, method, ablation, checked, exact, base)


def attribution(subject: CircuitSubject) -> Float[Tensor, "prompt node"]:
    """Estimate all nodes' effects to first order, h_k ∂m/∂α_k. Cost: a forward and a backward pass."""
    return subject.joined(subject.slopes().by_node) * subject.holds


def integrated(subject: CircuitSubject, n_steps: int) -> Float[Tensor, "prompt node"]:
    """Estimate effects as h_k times the mean slope on the way on which a group's features vanish together.

    The mean is over the midpoints of `n_steps` parts.
    """
    n_rows, effects = len(subject.inputs), []
    for group in subject.groups:
        is_error = torch.arange(group.n_nodes) == group.n_features
        path = group.amounts_keeping(is_error).expand(n_rows, -1)
        slopes = [subject.slopes({group.name: path * ((i + 0.5) / n_steps)}).by_node[group.name] for i in range(n_steps)]
        effects.append(torch.stack(slopes).mean(0).double().cpu() * group.holds)
    return torch.cat(effects, 1)


def exact_effects(
    subject: CircuitSubject, nodes: Sequence[int] | range, base: Float[Tensor, " prompt"]
) -> Float[Tensor, "prompt node"]:
    """Measure each node's effect by ablating it. Cost: a forward pass for each."""
    columns = [base - subject.values(subject.amounts_lacking(node)) for node in nodes]
    return torch.stack(columns, 1) if columns else base.new_zeros(len(base), 0)


def check_method(method: str, n_steps: int) -> None:
    """Refuse a method that is not known, and an integral of no steps.

    Raises:
        SettingError: Lists the known ones.
    """
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise SettingError(f"method={method!r} is unknown. Accepted: {known}; nearest: {nearest(str(method), METHODS)}.")
    if n_steps < 1:
        raise SettingError(f"n_steps={n_steps} must be 1 or more; 10 is usual.")
