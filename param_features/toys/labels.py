"""A toy whose truth is labels over token positions: does some feature's activation tell a label's positions from others?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.inputs import read_inputs
from param_features.measure.examples import Ranking, shares
from param_features.pipeline import decompose
from param_features.toys.rivals import read_all, rivals

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
        """Labels told (area of at least 0.9) and the median area, the controls' names before theirs."""
        found = {"n_labels": float(len(self.auroc)), **_summary("", self.auroc)}
        for name, areas in self.controls.items():
            found |= _summary(f"{name}_", areas)
        return found | {"error": self.error}

    def __repr__(self) -> str:
        """One line."""
        own, others = _in_words(self.auroc), {name: _in_words(areas) for name, areas in self.controls.items()}
        beside = ", ".join(f"{name} {words}" for name, words in others.items())
        return f"of {len(self.auroc)} labels, told (median area under ROC): {own}; {beside}; error {self.error:.3f}"


@dataclass(frozen=True)
class LabelToy:
    """A trained model with tokens, and where in other tokens something known happens.

    Attributes:
        name: What it is.
        model: In evaluation mode.
        params: Names of the decomposed parameters.
        tokens: Data for the decomposition.
        probes: Rows that no fit sees.
        labels: Where in `probes` each thing happens.
        counted: Positions of `probes` that are scored at all.
        settings: The toy's own arguments of `pf.decompose`.
    """

    name: str
    model: nn.Module
    params: tuple[str, ...]
    tokens: Int[Tensor, "batch pos"]
    probes: Int[Tensor, "row pos"]
    labels: Mapping[str, Bool[Tensor, "row pos"]]
    counted: Bool[Tensor, "row pos"]
    settings: Mapping[str, Any]

    def decompose(self, *, seed: int = 0, **changes: Any) -> ParamFeatures:
        """`pf.decompose` with the toy's own settings and `changes`."""
        call = {"params": self.params, "tokens": self.tokens, "progress": False, **self.settings, **changes}
        return decompose(self.model, call.pop("params"), seed=seed, **call)

    def score(self, features: ParamFeatures, *, seed: int = 0, by: Ranking = "activation") -> LabelScores:
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
        adapter = features._bound("score").adapter
        fitted = read_inputs(adapter, self.tokens[:_RIVAL_ROWS], None)
        readings = rivals(features, fitted, n_slots=min(_RIVAL_SLOTS, fitted.n_pos), seed=seed)
        acts = read_all(features, read_inputs(adapter, self.probes, None), readings)
        strength = {name: each.abs() if by == "activation" or name == "norm" else shares(each) for name, each in acts.items()}
        labels = _enough(self.labels, self.counted)
        told = {name: self._told(each, labels) for name, each in strength.items()}
        order = torch.randperm(len(self.probes), generator=torch.Generator().manual_seed(seed))
        told["shuffled"] = self._told(strength["fit"], {name: mask[order] for name, mask in labels.items()})
        found = told.pop("fit")
        return LabelScores(
            auroc={name: area for name, (area, _) in found.items()},
            feature={name: feature for name, (_, feature) in found.items()},
            controls={control: {name: area for name, (area, _) in each.items()} for control, each in told.items()},
            error=features.metrics["reconstruction_error"],
        )

    def _told(
        self, strength: Float[Tensor, "row pos feature"], labels: Mapping[str, Tensor]
    ) -> dict[str, tuple[float, int]]:
        stacked = torch.stack(list(labels.values()), 2)
        half = len(strength) // 2
        choose, measure = (
            auroc(strength[part][self.counted[part]], stacked[part][self.counted[part]])
            for part in (slice(0, half), slice(half, None))
        )
        best = choose.nan_to_num(0.5).argmax(1)
        areas = measure.gather(1, best.unsqueeze(1))[:, 0]
        return dict(zip(labels, zip(areas.tolist(), best.tolist(), strict=True), strict=True))


def auroc(
    strength: Float[Tensor, "sample feature"], labels: Bool[Tensor, "sample label"]
) -> Float[Tensor, "label feature"]:
    """Area under the ROC curve of every feature for every label, ties counted half; NaN for a label always or never there.

    It is the chance that a sample with the label has a larger strength than one without: (U of Mann and Whitney) / (n n').
    Cost: one ranking per feature, whatever the number of labels.
    """
    from scipy.stats import rankdata  # costs as much as importing this library does

    ranks = torch.from_numpy(rankdata(strength.numpy(), axis=0)).double()
    labels = labels.double()
    n_with = labels.sum(0).unsqueeze(1)
    return (labels.T @ ranks - n_with * (n_with + 1) / 2) / (n_with * (len(labels) - n_with))


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
            f"None of {len(labels)} labels has {_LEAST} positions in each half of {len(counted)} probe rows. Ask for more rows."
        )
    return found


def _summary(prefix: str, areas: Mapping[str, float]) -> dict[str, float]:
    values = torch.tensor(list(areas.values()), dtype=torch.float64)
    return {f"{prefix}n_told": float((values >= TOLD).sum()), f"{prefix}median": float(values.nanquantile(0.5))}


def _in_words(areas: Mapping[str, float]) -> str:
    numbers = _summary("", areas)
    return f"{numbers['n_told']:.0f} ({numbers['median']:.2f})"
