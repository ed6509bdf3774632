"""A toy whose truth is labels over token positions: does some feature's activation tell a label's positions from others?"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.measure.examples import shares
from param_features.measure.ranking import auroc
from param_features.problem import read_inputs
from param_features.toys.rival_directions import read_all, rivals
from param_features.toys.toy import Toy

TOLD = 0.9
"""Area under ROC from which a label counts as told."""

_LEAST = 20
_RIVAL_ROWS, _RIVAL_SLOTS = 256, 8


@dataclass(frozen=True)
class LabelScores:
    """How well single features tell labels' positions from all other positions that count.

    For each label the feature is chosen on one half of the probe rows and its area under ROC measured on the other half, for
    the fit and every control alike.

    Attributes:
        auroc: Of each label's chosen feature, 0 to 1; 0.5 is chance.
        feature: Which one was chosen for each label.
        controls: The same as `auroc` for the rivals `random`, `sampled` and `principal` (see `rivals`); for `norm`, the
            gradient's norm instead of features; and for the fit with labels moved to other rows (`shuffled`).
        error: Held-out reconstruction error of the fit.
    """

    auroc: Mapping[str, float]
    feature: Mapping[str, int]
    controls: Mapping[str, Mapping[str, float]]
    error: float

    @property
    def numbers(self) -> dict[str, float]:
        """Labels `told` (area of at least 0.9) and the mean area `auroc`, then the same for every control.

        `told_alone` counts the labels that the fit tells and the best of as many random directions does not.
        """
        numbers = {"labels": float(len(self.auroc)), **_summary(self.auroc, ""), "told_alone": float(len(self.told_alone))}
        for name, areas in self.controls.items():
            numbers |= _summary(areas, f"_{name}")
        return numbers | {"error": self.error}

    @property
    def told_alone(self) -> tuple[str, ...]:
        """Labels that the fit tells and random directions do not."""
        random = self.controls["random"]
        return tuple(name for name, area in self.auroc.items() if area >= TOLD > random[name])

    def __repr__(self) -> str:
        """One line."""
        own, others = _in_words(self.auroc), {name: _in_words(areas) for name, areas in self.controls.items()}
        beside = ", ".join(f"{name} {words}" for name, words in others.items())
        alone = len(self.told_alone)
        return (
            f"of {len(self.auroc)} labels, told (mean area under ROC): {own}, {alone} of them not by random directions; "
            f"{beside}; error {self.error:.3f}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelToy(Toy):
    """A trained model of tokens, and where in other tokens something known happens.

    Attributes:
        probes: Rows that no fit sees.
        labels: Where in `probes` each thing happens.
        counted: Positions of `probes` that are scored at all.
    """

    probes: Int[Tensor, "row pos"]
    labels: Mapping[str, Bool[Tensor, "row pos"]]
    counted: Bool[Tensor, "row pos"]

    def score(self, features: ParamFeatures, *, seed: int = 0, by: str = "activation") -> LabelScores:
        """How well single features tell the labels' positions, beside controls scored in the same way.

        Labels with fewer than 20 positions in either half of the probes are left out.

        Cost: one backward pass per position of the probes.

        Args:
            features: A fit of the toy's model.
            seed: Of the rivals and of the shuffled labels.
            by: What must be high at a label's positions: |activation|, or its share as in `top_examples`.

        Raises:
            SettingError: No label has enough positions, or `by` is unknown.
            NotBoundError: The features were loaded without a model.
        """
        if by not in ("activation", "share"):
            raise SettingError(f"by={by!r} is unknown. Accepted: 'activation', 'share'.")
        adapter = features.bound_engine("score").adapter
        fitted = read_inputs(adapter, self.inputs[:_RIVAL_ROWS], None)
        readings = rivals(features, fitted, n_slots=min(_RIVAL_SLOTS, fitted.n_pos), seed=seed)
        acts = read_all(features, read_inputs(adapter, self.probes, None), readings)
        strength = {
            name: each.abs() if by == "activation" or name == "norm" else shares(each) for name, each in acts.items()
        }
        labels = _enough(self.labels, self.counted)
        areas = {name: self._areas(each, labels) for name, each in strength.items()}
        order = torch.randperm(len(self.probes), generator=torch.Generator().manual_seed(seed))
        areas["shuffled"] = self._areas(strength["fit"], {name: mask[order] for name, mask in labels.items()})
        areas_of_fit = areas.pop("fit")
        return LabelScores(
            auroc={name: area for name, (area, _) in areas_of_fit.items()},
            feature={name: feature for name, (_, feature) in areas_of_fit.items()},
            controls={control: {name: area for name, (area, _) in each.items()} for control, each in areas.items()},
            error=features.metrics["reconstruction_error"],
        )

    def _areas(
        self, strength: Float[Tensor, "row pos feature"], labels: Mapping[str, Tensor]
    ) -> dict[str, tuple[float, int]]:
        """For each label, the area of the feature that is best on the first half of the rows, on the second half."""
        half = len(strength) // 2

        def halves(values: Tensor) -> tuple[Tensor, Tensor]:
            return values[:half][self.counted[:half]], values[half:][self.counted[half:]]

        (choose, measure), (chosen_at, measured_at) = halves(strength), halves(torch.stack(list(labels.values()), 2))
        best = auroc(choose.T.contiguous().T, chosen_at).nan_to_num(0.5).argmax(1)
        areas = auroc(measure[:, best], measured_at).diagonal()
        return dict(zip(labels, zip(areas.tolist(), best.tolist(), strict=True), strict=True))


def _enough(labels: Mapping[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """Labels with enough positions that count in both halves of the rows.

    Raises:
        SettingError: There is none.
    """
    half = len(counted) // 2
    found = {
        name: mask
        for name, mask in labels.items()
        if min(int((mask & counted)[part].sum()) for part in (slice(0, half), slice(half, None))) >= _LEAST
    }
    if not found:
        raise SettingError(
            f"None of {len(labels)} labels has {_LEAST} positions in each half of {len(counted)} probe rows. Ask for more "
            f"rows: n_probes={2 * len(counted)} or more."
        )
    return found


def _summary(areas: Mapping[str, float], suffix: str) -> dict[str, float]:
    values = torch.tensor(list(areas.values()), dtype=torch.float64)
    return {f"told{suffix}": float((values >= TOLD).sum()), f"auroc{suffix}": float(values.nanmean())}


def _in_words(areas: Mapping[str, float]) -> str:
    numbers = _summary(areas, "")
    return f"{numbers['told']:.0f} ({numbers['auroc']:.2f})"
