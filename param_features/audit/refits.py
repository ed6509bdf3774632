"""Other fits that an audit stands beside: a second seed, and a model that has learned nothing."""

import warnings
from typing import Any

import torch
from torch import Tensor

from param_features.errors import Notice, SettingError
from param_features.fitted import Fitted
from param_features.intervene import copied
from param_features.params import adapter_for, all_parameters
from param_features.problem import KL, CustomDivergence, recorded_positions
from param_features.run import decompose, settings_of_record


def refitted(features: Fitted, tokens: Any, inputs: Any, *, model: Any = None, seed: int) -> Fitted:
    """Decompose the same parameters again with another seed, in the features' own model or in another.

    Cost: that of the first `decompose`.

    Raises:
        SettingError: The features were fitted with `output=`, a divergence of the user's own, pairs or a background.
    """
    check_refit(features, "Fit a second set yourself and pass it as second=.")
    config = features.config
    harvest, fit = settings_of_record(config)
    positions = recorded_positions(config.get("positions", "all"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # a refit is a control: what is to be told of the fit was told of it
        return decompose(
            features.bound_engine("audit").adapter.model if model is None else model,
            list(features.params),
            tokens,
            inputs=inputs,
            **_sizes_and_reference(features),
            divergence=features.divergence.name,
            positions=positions,
            method=config["method"],
            seed=seed,
            harvest=harvest,
            fit=fit,
            progress=False,
        )


def _sizes_and_reference(features: Fitted) -> dict[str, Any]:
    """How many there are, and what outputs are compared with, as `decompose` takes it."""
    config = features.config
    if config["method"] == "components":
        return {"n_features": dict(zip(features.params, config["n_components"].values(), strict=True))}
    reference = features.references if features.reference == "given" else features.reference
    if isinstance(reference, Tensor) and isinstance(features.divergence, KL):
        reference = reference.log()  # decompose takes outputs, and the softmax of log-probabilities is the probabilities
    return {"n_features": config["n_features"], "l0": config["l0"], "reference": reference}


def check_refit(features: Fitted, advice: str) -> None:
    """Refuse features whose decomposition cannot be made again from what they hold.

    Args:
        features: To be fitted again.
        advice: What to do instead.

    Raises:
        SettingError: They were fitted with `output=`, a divergence of the user's own, pairs or a background.
    """
    is_kept = features.reference in ("sample", "mean", "uniform", "label", "given")
    positions = features.config.get("positions", "all")
    is_known = not isinstance(positions, dict) or "slice" in positions
    is_plain = features.config.get("output") is None and "background" not in features.config and is_known
    if not is_kept or not is_plain or isinstance(features.divergence, CustomDivergence):
        raise SettingError(
            "These features were fitted with output=, with a divergence or positions of your own, pairs or a background: "
            f"not kept. {advice}"
        )


@torch.no_grad()
def untrained(model: Any, seed: int) -> Any:
    """A copy of the model whose every parameter's entries are shuffled: their sizes stay, what was learned goes."""
    shuffled, generator = copied(model), torch.Generator().manual_seed(seed)
    for parameter in all_parameters(adapter_for(shuffled).module):
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return shuffled


def comparison_fits(
    features: Fitted, data: Any, *, takes_tokens: bool, second: Fitted | None, blank: Fitted | None, seed: int
) -> tuple[Fitted, Fitted]:
    """The two fits beside an audit, made on `data` where they are not given: a second seed, and an untrained model's.

    Cost: a decomposition for each that is not given, and for the second of them a copy of the model.

    Args:
        features: What is audited.
        data: Tokens or inputs to fit on.
        takes_tokens: Whether `data` are tokens.
        second: A fit of the same model with another seed, to be returned as it is.
        blank: A fit of an untrained model, to be returned as it is.
        seed: Of the shuffling that makes the model an untrained one.

    Raises:
        SettingError: The features were fitted with `output=`, a divergence of the user's own, pairs or a background.
    """
    tokens, inputs = (data, None) if takes_tokens else (None, data)
    fit_seed = int(features.config["seed"]) + 1
    if second is None:
        second = refitted(features, tokens, inputs, seed=fit_seed)
    if blank is None:
        model = untrained(features.bound_engine("audit").adapter.model, seed)
        blank = refitted(features, tokens, inputs, model=model, seed=fit_seed)
    return second, blank
