"""Other fits that an audit stands beside: a second seed, and a model that has learned nothing."""

from typing import Any

import torch
from torch import Tensor

from param_features.errors import SettingError
from param_features.fit import FitSettings, HessianSettings
from param_features.fitted import Fitted
from param_features.gradients import HarvestSettings
from param_features.intervene import copied
from param_features.measure import MeasureSettings
from param_features.params import adapter_for, all_parameters
from param_features.problem import KL, CustomDivergence
from param_features.run import decompose


def refitted(features: Fitted, tokens: Any, inputs: Any, *, model: Any = None, seed: int) -> Fitted:
    """Decompose the same parameters again with another seed, in the features' own model or in another.

    Cost: that of the first `decompose`.

    Raises:
        SettingError: The features were fitted with `output=`, a divergence of the user's own, pairs or a background.
    """
    check_refit(features, "Fit a second set yourself and pass it as second=.")
    config = features.config
    reference = features.references if features.reference == "given" else features.reference
    if isinstance(reference, Tensor) and isinstance(features.divergence, KL):
        reference = reference.log()  # decompose takes outputs, and the softmax of log-probabilities is the probabilities
    settings_type = HessianSettings if config["method"] == "hessian" else FitSettings
    return decompose(
        features.bound_engine("audit").adapter.model if model is None else model,
        list(features.params),
        tokens,
        inputs=inputs,
        divergence=features.divergence.name,
        reference=reference,
        seed=seed,
        harvest=HarvestSettings(**config["harvest"]),
        fit=settings_type(**config["fit"]),
        measure=MeasureSettings(**config["measure"]),
        method=config["method"],
        n_features=config["n_features"],
        rank=config["rank"],
        format=config["format"],
        l0=config["l0"],
        progress=False,
    )


def check_refit(features: Fitted, advice: str) -> None:
    """Refuse features whose decomposition cannot be made again from what they hold.

    Args:
        features: To be fitted again.
        advice: What to do instead.

    Raises:
        SettingError: They were fitted with `output=`, a divergence of the user's own, pairs or a background.
    """
    is_kept = features.reference in ("sample", "mean", "uniform", "label", "given")
    is_plain = features.config.get("output") is None and "background" not in features.config
    if not is_kept or not is_plain or isinstance(features.divergence, CustomDivergence):
        raise SettingError(
            "These features were fitted with output=, with a divergence of your own, pairs or a background: not kept. "
            f"{advice}"
        )


@torch.no_grad()
def untrained(model: Any, seed: int) -> Any:
    """A copy of the model whose every parameter's entries are shuffled: their sizes stay, what was learned goes."""
    shuffled, generator = copied(model), torch.Generator().manual_seed(seed)
    for parameter in all_parameters(adapter_for(shuffled).module):
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return shuffled
