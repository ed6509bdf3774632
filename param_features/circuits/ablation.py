"""Choosing what ablated nodes are replaced by."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from param_features.circuits.baselines import ABLATIONS, Mean, Resample, Zero, other_rows
from param_features.circuits.passes import CircuitSubject, real_positions
from param_features.circuits.places import mean_parts
from param_features.errors import InputError, SettingError, nearest
from param_features.problem import ModelInputs, read_inputs


@dataclass(frozen=True)
class Ablation:
    """What the user wants ablated nodes to be replaced by.

    Attributes:
        name: `"mean"`, `"zero"` or `"resample"`.
        background: Where means are taken, as tokens or inputs; the prompts themselves by default.
        counterparts: For `"resample"`, each prompt's other prompt, of the same shape; by default prompts of equal length
            change places, drawn with `seed`.
        seed: Of that draw.
    """

    name: str
    background: Any = None
    counterparts: Any = None
    seed: int = 0


def ablating(subject: CircuitSubject, ablation: Ablation) -> CircuitSubject:
    """Give a subject the baselines that replace its nodes where they are ablated.

    Raises:
        SettingError: The ablation's name is unknown.
        InputError: The other data cannot be read, or no other prompt can stand in for one.
    """
    background, counterparts = (read_other_data(subject, data) for data in (ablation.background, ablation.counterparts))
    check_ablation(ablation.name)
    if ablation.name == "zero":
        return replace(subject, baseline=Zero())
    if ablation.name == "mean":
        return replace(subject, baseline=_means(subject, background or subject.inputs))
    others = counterparts or _exchanged(subject.inputs, ablation.seed)
    if [t.shape for t in others.tensors] != [t.shape for t in subject.inputs.tensors]:
        raise InputError("counterparts= must hold one prompt for each prompt, of the same lengths.")
    return replace(subject, baseline=Resample({key: call.source for key, call in subject.sources(others).items()}))


def read_other_data(subject: CircuitSubject, data: Any) -> ModelInputs | None:
    """Read data of the kind that the prompts are, tokens or inputs; None where none are given."""
    if data is None or isinstance(data, ModelInputs):
        return data
    has_tokens = subject.inputs.tokens is not None
    return read_inputs(subject.adapter, data if has_tokens else None, None if has_tokens else data)


def check_ablation(ablation: str) -> None:
    """Refuse a name that is no ablation's.

    Raises:
        SettingError: Lists the known ones.
    """
    if ablation not in ABLATIONS:
        known = ", ".join(map(repr, ABLATIONS))
        raise SettingError(
            f"ablation={ablation!r} is unknown. Accepted: {known}; nearest: {nearest(str(ablation), ABLATIONS)}."
        )


def _means(subject: CircuitSubject, background: ModelInputs) -> Mean:
    """Measure every place's mean parts on the background."""
    calls, is_real = subject.sources(background), real_positions(background)
    means = {}
    for place, group in subject.places.items():
        at_place = [(call.source, call.output) for (called, _), call in calls.items() if called is place]
        means[place] = mean_parts(place, at_place, group.n_nodes, len(background), is_real)
    return Mean(means, subject.is_real)


def _exchanged(inputs: ModelInputs, seed: int) -> ModelInputs:
    """Replace each prompt by another of its length, drawn at random."""
    is_real = real_positions(inputs)
    lengths = torch.ones(len(inputs), dtype=torch.long) if is_real is None else is_real.cpu().sum(1)
    order = other_rows(len(inputs), torch.Generator().manual_seed(seed), lengths)
    alone = (order == torch.arange(len(inputs))).nonzero().flatten().tolist()
    if alone:
        raise InputError(
            f"Prompt {alone[0]} has {int(lengths[alone[0]])} tokens and no other prompt has as many, so none can stand in "
            "for it. Give counterparts=, or ablation='mean'."
        )
    return inputs.rows(order)
