"""Other fits that an audit stands beside: a second seed, and a model that has learned nothing."""

from typing import Any

import torch

from param_features.adapters import adapter_for
from param_features.decompose import FitSettings, HessianSettings
from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.gradients import HarvestSettings
from param_features.intervene import copied
from param_features.measure import MeasureSettings
from param_features.params import all_parameters


def refitted(features: ParamFeatures, tokens: Any, inputs: Any, *, model: Any = None, seed: int) -> ParamFeatures:
    """The same decomposition of the same parameters with another seed, of the features' own model or another.

    Cost: that of the first `decompose`.

    Raises:
        SettingError: The features were fitted with `output=` or to outputs of the user's own, which are not kept.
    """
    from param_features.pipeline import decompose  # the pipeline makes features, on which audits stand

    config = features.config
    if config.get("output") is not None or features.reference not in ("sample", "mean", "uniform", "label"):
        raise SettingError(
            "These features were fitted with output= or with references of your own, which are not kept. Fit a second set "
            "yourself and pass it as second=."
        )
    kind = HessianSettings if config["method"] == "hessian" else FitSettings
    return decompose(
        features._bound("audit").adapter.model if model is None else model,
        list(features.params),
        tokens,
        inputs=inputs,
        divergence=features.divergence.name,
        reference=features.reference,
        seed=seed,
        harvest=HarvestSettings(**config["harvest"]),
        fit=kind(**config["fit"]),
        measure=MeasureSettings(**config["measure"]),
        **{key: config[key] for key in ("method", "n_features", "rank", "format", "l0")},
        progress=False,
    )


@torch.no_grad()
def untrained(model: Any, seed: int) -> Any:
    """A copy of the model whose every parameter's entries are shuffled: their sizes stay, what was learned goes."""
    subject, generator = copied(model), torch.Generator().manual_seed(seed)
    for parameter in all_parameters(adapter_for(subject).module):
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return subject
