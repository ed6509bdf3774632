"""Settings of `method="components"`."""

from dataclasses import dataclass, replace
from typing import Literal

from param_features.errors import SettingError, nearest
from param_features.machine import public

_LARGEST = 1e30
IMPORTANCES = ("component", "site", "model")
STARTS = ("gradients", "inputs", "random")


@public
@dataclass(frozen=True)
class ComponentSettings:
    """How the components of weights, and their importances, are learned.

    Losses, per sample, with D the divergence between the model's own output and its output under masks, for squared error
    the mean over the output's numbers: weights are 0 for losses that are not taken.

    Attributes:
        steps: Optimiser steps.
        batch_size: Samples per step; for models of tokens whole sequences, with every position a sample.
        lr: Peak learning rate of Adam, for components and importances.
        lr_end: Share of `lr` to which a cosine leads it down.
        importance: What an importance is computed from, by a network of one hidden layer: `"component"`, its own inner
            activation, a network for each; `"site"`, the input of its matrix, one for each matrix; `"model"`, the inputs of
            all matrices, one for all; `"auto"` is `"site"`.
        hidden: Width of these networks; None for 16 a component, or for four times the input's width and twice the number
            of components at least, at most 1,024.
        importance_weight: Weight of Σ_c (g + ε)^p per position: the setting to which results are most sensitive.
        p: The exponent at first.
        p_end: The exponent at the end, to which it falls linearly.
        frequency_weight: Weight of Σ_c s_c log₂(1 + s_c) per position, s_c = Σ g_c^p over the batch.
        stochastic_weight: Weight of D with all masks drawn uniformly between importance and 1.
        one_at_a_time_weight: Weight of D with the masks of one matrix drawn, for each matrix.
        subset_weight: Weight of D with masks drawn, at each position, for a random number of matrices.
        adversarial_weight: Weight of D under the masks that an adversary looks for.
        ascents: Steps of the adversary before each optimiser step; one more follows with it.
        adversary_lr: Learning rate of the adversary's Adam.
        faithfulness_weight: Weight of Σ‖Δ‖² over the number of decomposed entries.
        clip: Largest norm of U's and V's gradient; None for any.
        start: Where U and V start. `"gradients"`: at leading factors of single gradients, for a matrix that these make up;
            else as with `"inputs"`: at directions along which the matrix's inputs act independently. `"random"`.
    """

    steps: int = 2000
    batch_size: int = 1024
    lr: float = 4e-3
    lr_end: float = 0.1
    importance: Literal["auto", "component", "site", "model"] = "auto"
    hidden: int | None = None
    importance_weight: float = 2e-4
    p: float = 2.0
    p_end: float = 0.4
    frequency_weight: float = 1e-4
    stochastic_weight: float = 0.0
    one_at_a_time_weight: float = 0.0
    subset_weight: float = 0.5
    adversarial_weight: float = 0.5
    ascents: int = 2
    adversary_lr: float = 0.01
    faithfulness_weight: float = 1e3
    clip: float | None = None
    start: Literal["gradients", "inputs", "random"] = "gradients"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name, accepted in {"importance": ("auto", *IMPORTANCES), "start": STARTS}.items():
            value = getattr(self, name)
            if value not in accepted:
                raise SettingError(f"{name}={value!r} is unknown. Accepted: {', '.join(map(repr, accepted))}.")
        self._check_numbers()
        if not any(getattr(self, f"{name}_weight") for name in ("stochastic", "one_at_a_time", "subset", "adversarial")):
            raise SettingError("All weights of D under masks are 0: nothing would hold the importances up. Give one.")

    def _check_numbers(self) -> None:
        for name in ("steps", "batch_size", "lr", "p", "p_end", "adversary_lr"):
            if not 0 < getattr(self, name) < _LARGEST:
                raise SettingError(f"{name}={getattr(self, name)} must be positive and below {_LARGEST:g}.")
        weights = [name for name in self.__dataclass_fields__ if name.endswith("_weight")]
        for name in (*weights, "ascents"):
            if not 0 <= getattr(self, name) < _LARGEST:
                raise SettingError(f"{name}={getattr(self, name)} must not be negative, and below {_LARGEST:g}.")
        if not 0 <= self.lr_end <= 1:
            raise SettingError(f"lr_end={self.lr_end} must lie in [0, 1].")
        for name in ("hidden", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < _LARGEST:
                raise SettingError(f"{name}={value} must be positive and below {_LARGEST:g}, or None.")

    @classmethod
    def preset(cls, name: str) -> "ComponentSettings":
        """The published settings of a method, by name.

        Args:
            name: `"spd"`, Stochastic Parameter Decomposition (arXiv 2506.20790), as on its toys; or `"vpd"`, adVersarial
                Parameter Decomposition (Goodfire, 2026), as on its language model, at fewer steps and so a larger learning
                rate.

        Raises:
            SettingError: There is no preset of this name.
        """
        if name not in PRESETS:
            raise SettingError(
                f"There is no preset {name!r}. Accepted: {', '.join(map(repr, PRESETS))}; nearest: {nearest(name, PRESETS)}."
            )
        return replace(PRESETS[name])


PRESETS = {
    "spd": ComponentSettings(
        steps=10_000,
        batch_size=4096,
        lr=1e-3,
        lr_end=0.0,
        importance="component",
        importance_weight=3e-3,
        p=1.0,
        p_end=1.0,
        frequency_weight=0.0,
        stochastic_weight=1.0,
        one_at_a_time_weight=1.0,
        subset_weight=0.0,
        adversarial_weight=0.0,
        faithfulness_weight=1.0,
        start="random",
    ),
    "vpd": ComponentSettings(lr=1e-3, importance="model", clip=0.01, start="random"),
}
"""Settings by the method that they are from."""
