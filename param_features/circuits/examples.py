"""What the nodes of a circuit stand for: places where their features are strong, and a label."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.circuits.graph import NodeExample
from param_features.circuits.groups import Group, WeightGroup
from param_features.circuits.passes import CircuitSubject, real_positions
from param_features.circuits.places import SaePlace
from param_features.measure import Example, examples_of, label_of, top_examples, windows_with
from param_features.problem import ModelInputs

_LABELLED, _AROUND = 10, 12

Described = tuple[str, tuple[NodeExample, ...]]
"""A label and examples."""


def described(subject: CircuitSubject, group: Group, numbers: Sequence[int], n: int) -> list[Described]:
    """Find a label and examples for some features: parameter features on their own examples, an SAE's on the prompts.

    Cost: one pass of activations for a set of parameter features, a forward pass for an SAE.
    """
    if not numbers or n < 1:
        return [("", ())] * len(numbers)
    if isinstance(group, WeightGroup):
        if group.features.examples is None or group.features.examples.tokens is None:
            return [("", ())] * len(numbers)
        examples_by_feature = [examples_of(group.features, k, max(n, _LABELLED), group.features.examples) for k in numbers]
        rows = [group.features.bound_engine("circuit").adapter.to_strings(row) for row in group.features.examples.token_rows]
    else:
        acts = _sae_activations(subject, group)
        rows = [subject.adapter.to_strings(row) for row in subject.inputs.token_rows]
        examples_by_feature = [_top(subject, acts, k, max(n, _LABELLED)) for k in numbers]
    commonness = windows_with(rows)
    return [(label_of(examples, commonness), tuple(map(_shown, examples[:n]))) for examples in examples_by_feature]


def _sae_activations(subject: CircuitSubject, group: Group) -> Float[Tensor, "row pos feature"] | None:
    """The SAE's codes on the prompts; None where they belong to no positions."""
    is_real = real_positions(subject.inputs)
    for (place, _), call in subject.sources(subject.inputs).items():
        if isinstance(place, SaePlace) and place in group.places and is_real is not None:
            codes = call.source.codes
            return codes.cpu() * is_real.cpu().unsqueeze(-1) if codes.shape[:2] == is_real.shape else None
    return None


def _top(subject: CircuitSubject, acts: Tensor | None, feature: int, n: int) -> list[Example]:
    if acts is None:
        return []
    inputs: ModelInputs = subject.inputs
    placed = acts.gather(1, inputs.places.unsqueeze(2).expand(acts.shape))
    strongest = top_examples(
        placed.float(), feature, inputs.token_rows, subject.adapter.to_strings, n=min(n, len(inputs)), by="activation"
    )
    return [example for example in strongest if example.activation != 0]


def _shown(example: Example) -> NodeExample:
    """Cut a window around the example's position."""
    start = max(0, example.position - _AROUND)
    window = slice(start, example.position + _AROUND // 2)
    strengths = tuple(torch.tensor(example.activations[window]).tolist())
    return NodeExample(example.tokens[window], strengths, example.position - start)
