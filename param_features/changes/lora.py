"""The change that a LoRA makes to weights, as tensors by the names of the model that it was trained on."""

from collections.abc import Iterator
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from param_features.changes.weights import ParamMatrices, chosen_matrices
from param_features.errors import InputError
from param_features.gradients import GradientEngine
from param_features.intervene import CONFIG, peft
from param_features.machine import at_home


def is_lora(change: Any) -> bool:
    """Whether it is a model that peft wraps, or the folder of an adapter's files."""
    if isinstance(change, str | PathLike):
        return (Path(at_home(change)) / CONFIG).is_file()
    return any(kind.__name__ == "PeftModel" for kind in type(change).__mro__)


def lora_change(engine: GradientEngine, lora: Any) -> ParamMatrices:
    """B A of every decomposed parameter, by peft's own arithmetic; 0 where the adapter changes none of it.

    Args:
        engine: Of the model that the adapter is for: layers are found by their names.
        lora: A `peft.PeftModel`, whose active adapters count, or the folder of an adapter's files. Of a folder a copy of
            the model is wrapped.

    Raises:
        InputError: The adapter changes none of the decomposed parameters.
        MissingExtraError: peft cannot be imported.
    """
    if isinstance(lora, str | PathLike):
        lora = peft().PeftModel.from_pretrained(deepcopy(engine.adapter.module), str(at_home(lora)))
    changed = _summed(_layer_changes(lora.get_base_model()))
    names = {view.name.partition("[")[0] for view in engine.subset.views}
    if not names & set(changed):
        raise InputError(
            f"The LoRA changes none of the decomposed parameters ({', '.join(sorted(names))}). It changes "
            f"{', '.join(sorted(changed)[:3]) or 'nothing'}. Bind the features to the model that it was trained on: "
            "pf.load(dir, model=…)."
        )
    unchanged = {view.name.partition("[")[0]: torch.zeros_like(view.stored) for view in engine.subset.views}
    return chosen_matrices(engine, unchanged | changed)


def _layer_changes(module: Any) -> Iterator[tuple[str, Tensor]]:
    """What each active adapter adds to each layer's tensors, by their names."""
    for name, layer in module.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        for adapter in layer.active_adapters:
            if adapter in layer.scaling:
                yield f"{name}.weight", layer.get_delta_weight(adapter).detach()
                if getattr(layer, "lora_bias", {}).get(adapter):
                    yield f"{name}.bias", layer.lora_B[adapter].bias.detach() * layer.scaling[adapter]


def _summed(changes: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for name, change in changes:
        sums[name] = sums[name] + change if name in sums else change
    return sums
