"""What a sweep says of one fit: its errors beside its controls, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from param_features.features import ParamFeatures
from param_features.gradients import SampleGradients
from param_features.sweep.falling import fall_per_doubling
from param_features.sweep.settings import Setting, SweepSettings

_LEAST_FALL = 0.005
"""Of the gradients' squared norm: what falls by less is not worth more steps."""

_SAMPLES = 8192
"""Held-out samples that the shares of features are counted on at most, spread evenly."""


@dataclass(frozen=True)
class SweepRow:
    """One fit of a sweep.

    Attributes:
        setting: What it was made with.
        size: Numbers that V_out consists of: n_features · rank · (d_out + d_in), summed over the parameters.
        error: Held-out reconstruction error; 0 is perfect, 1 predicts nothing.
        training_error: The same on training samples.
        controls: The held-out error of `control_pca`, `control_random` and `control_svd_w`, at the same l0 and number.
        dead: Share of the features that no held-out sample keeps.
        top_kept: Largest share of the coordinates kept on held-out samples that is one feature's.
        top_norm: The same of their squares.
        fall: By how much the error still fell for each doubling of the steps, as a share; see `fall_per_doubling`.
        steps: That the fit took.
        limits: By which it is judged.
        agreement: Mean |cosine| with the features of other seeds, matched one to one; None where there is one seed.
    """

    setting: Setting
    size: int
    error: float
    training_error: float
    controls: Mapping[str, float]
    dead: float
    top_kept: float
    top_norm: float
    fall: float
    steps: int
    limits: SweepSettings
    agreement: float | None = None

    @property
    def control(self) -> str:
        """Name of the strongest control."""
        return min(self.controls, key=lambda name: self.controls[name])

    @property
    def gain(self) -> float:
        """By what share of the strongest control's error the fit's lies below it; negative where it lies above."""
        control = self.controls[self.control]
        return (control - self.error) / max(control, 1e-12)

    @property
    def beats_controls(self) -> bool:
        """Whether the error lies below every control's by `least_gain`."""
        return self.gain > self.limits.least_gain

    @property
    def is_collapsed(self) -> bool:
        """Whether one feature does most of the work, or most features none."""
        top = self.setting.n_features > 1 and max(self.top_kept, self.top_norm) >= self.limits.top_share
        return top or self.dead >= self.limits.dead_share

    @property
    def is_undertrained(self) -> bool:
        """Whether the error was still falling, and by what matters."""
        return self.fall >= self.limits.still_falling and self.fall * self.error >= _LEAST_FALL

    @property
    def is_overfit(self) -> bool:
        """Whether training samples are rebuilt far better than held-out ones."""
        return self.training_error < (1 - self.limits.overfit) * self.error

    @property
    def flags(self) -> tuple[str, ...]:
        """What is wrong with it, in a word each; none where nothing is."""
        found = {
            "matched by a control": not self.beats_controls,
            "collapsed": self.is_collapsed,
            "under-trained": self.is_undertrained,
            "overfit": self.is_overfit,
        }
        return tuple(name for name, holds in found.items() if holds)


def row_of(features: ParamFeatures, setting: Setting, held_out: SampleGradients, limits: SweepSettings) -> SweepRow:
    """Read a row off a fit. Cost: one encoding of up to 8,192 held-out samples."""
    metrics = features.metrics
    top_kept, top_norm = _top_shares(features, held_out, setting.l0)
    return SweepRow(
        setting=setting,
        size=sum(tensor.numel() for tensor in features.v_out.tensors),
        error=metrics["reconstruction_error"],
        training_error=metrics["training_error"],
        controls={name: metrics[name] for name in metrics if name.startswith("control_")},
        dead=metrics["dead"] / features.n_features,
        top_kept=top_kept,
        top_norm=top_norm,
        fall=fall_per_doubling(features.config.get("history", [])),
        steps=features.config["steps_done"],
        limits=limits,
    )


@torch.no_grad()
def _top_shares(features: ParamFeatures, held_out: SampleGradients, l0: float) -> tuple[float, float]:
    """The largest share of the coordinates kept, and of their squares, that one feature has."""
    read = features.encoder.reads(features.v_in, features.v_out)
    seen = held_out.spread(_SAMPLES)
    overlaps = torch.cat([read.inner(chunk) for chunk in seen.chunks()])
    kept, _ = features.encoder.kept(overlaps, features.v_out.gram(), l0)
    shares = [
        (part / part.sum().clamp(min=1e-30)).max() for part in ((kept != 0).double().sum(0), kept.double().square().sum(0))
    ]
    return float(shares[0]), float(shares[1])
