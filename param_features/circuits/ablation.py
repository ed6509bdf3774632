"""Choosing what ablated nodes are replaced by."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from param_features.circuits.baselines import ABLATIONS, Mean, Resample, Zero, other_rows
from param_features.circuits.passes import CircuitSubject, real_positions
from param_features.circuits.places import mean_parts
from param_features.errors import InputError, SettingError, nearest
from param_features.problem import ModelInputs


def with_ablation(
    subject: CircuitSubject, ablation: str, *, background: ModelInputs | None, counterparts: ModelInputs | None, seed: int
) -> CircuitSubject:
    """The same with ablated nodes replaced as named.

    Args:
        subject: Of whose nodes.
        ablation: `"mean"`, `"zero"` or `"resample"`.
        background: Where means are taken; the prompts themselves by default.
        counterparts: For `"resample"`, each prompt's other prompt, of the same shape; by default prompts of equal length
            change places, drawn with `seed`.
        seed: Of that draw.

    Raises:
        SettingError: The name is unknown.
        InputError: No other prompt can stand in for one.
    """
    check_ablation(ablation)
    if ablation == "zero":
        return replace(subject, baseline=Zero())
    if ablation == "mean":
        return replace(subject, baseline=_means(subject, background or subject.inputs))
    others = counterparts or _exchanged(subject.inputs, seed)
    if [t.shape for t in others.tensors] != [t.shape for t in subject.inputs.tensors]:
        raise InputError("counterparts= must hold one prompt for each prompt, of the same lengths.")
    return replace(subject, baseline=Resample({key: seen.source for key, seen in subject.sources(others).items()}))


def check_ablation(ablation: str) -> None:
    """Refuse an unknown name.

    Raises:
        SettingError: Lists the known ones.
    """
    if ablation not in ABLATIONS:
        known = ", ".join(map(repr, ABLATIONS))
        raise SettingError(
            f"ablation={ablation!r} is unknown. Accepted: {known}; nearest: {nearest(str(ablation), ABLATIONS)}."
        )


def _means(subject: CircuitSubject, background: ModelInputs) -> Mean:
    seen, is_real = subject.sources(background), real_positions(background)
    means = {}
    for place, group in subject.places.items():
        calls: Sequence[tuple[Any, Tensor]] = [
            (found.source, found.output) for (one, _), found in seen.items() if one is place
        ]
        means[place] = mean_parts(place, calls, group.n_nodes, len(background), is_real)
    return Mean(means, subject.is_real)


def _exchanged(inputs: ModelInputs, seed: int) -> ModelInputs:
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
