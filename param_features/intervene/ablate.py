"""Removing what features contribute, by three rules. A feature is a local direction: no rule removes "its part" of W.

- `weight`: δ = −Gram⁺ ⟨v, W⟩, so that the weights have no overlap left with any chosen direction. Says nothing where W
  holds little of a direction, as is common: a direction along which the loss changes is not one along which W lies.
- `search`: δ = −t c̄ / ‖c̄‖, with c̄ the features' mean activations on their top samples and t the shortest step at which
  the mean divergence from the reference has fallen to a share of what it was. The outputs are then closer to the reference
  on these samples, which is what the features' gradients point at; elsewhere anything may happen.
- `noise`: δ_k ~ N(0, s² ‖W‖² / n), so that the noise in the span has about the norm s ‖W‖. Shows what depends on the
  directions at all, with both signs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.errors import SearchError, SettingError, nearest
from param_features.fit import activations
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine
from param_features.intervene.span import span_coefficients, weight_norm
from param_features.intervene.steer import deltas_of
from param_features.measure import read_effects
from param_features.params import ParamSubset
from param_features.problem import ModelInputs, Question

RULES = ("weight", "search", "noise")
_FIRST_STEP, _N_BISECTIONS = 1e-3, 12


def check_rule(rule: str) -> None:
    """Refuse a rule of ablation that is not known.

    Raises:
        SettingError: Lists the known ones.
    """
    if rule not in RULES:
        raise SettingError(
            f"rule={rule!r} is unknown. Accepted: {', '.join(map(repr, RULES))}; nearest: {nearest(str(rule), RULES)}."
        )


def by_weight(directions: LowRank, subset: ParamSubset) -> Float[Tensor, " feature"]:
    """Coefficients δ of the rule `weight`."""
    return -span_coefficients(directions, subset)


def by_noise(directions: LowRank, subset: ParamSubset, *, scale: float, seed: int) -> Float[Tensor, " feature"]:
    """Coefficients δ of the rule `noise`, drawn by `seed`.

    Raises:
        SettingError: `scale` is not positive.
    """
    if not scale > 0:
        raise SettingError(f"scale={scale} must be positive: the noise's norm as a share of the weights'; 0.1 is usual.")
    n = directions.n_features
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64) * (scale * weight_norm(subset) / n**0.5)


@dataclass(frozen=True)
class Search:
    """The rule `search`: along which line, on which samples, down to where.

    Attributes:
        engine: Runs the model.
        question: D, and what outputs are compared with.
        inputs: Rows that hold the samples.
        chosen: Which of their samples, counted as `read_effects` does.
        target: Share of the mean divergence at which to stop, in (0, 1).
    """

    engine: GradientEngine
    question: Question
    inputs: ModelInputs
    chosen: Int[Tensor, " sample"]
    target: float

    def coefficients(self, directions: LowRank) -> Float[Tensor, " feature"]:
        """The shortest step against the mean activations that reaches the target.

        Cost: a pass of activations, and about 25 forward passes.

        Raises:
            SettingError: `target` lies outside (0, 1).
            SearchError: The divergence never falls so far; gives the lowest that was found.
        """
        if not 0 < self.target < 1:
            raise SettingError(
                f"target={self.target} lies outside (0, 1): it is the share of the mean divergence that is to be left."
            )
        acts = activations(self.engine, directions, self.question, self.inputs)
        is_sample = self.inputs.sample_mask if self.engine.per_position else None
        is_real = slice(None) if is_sample is None else is_sample.cpu()
        mean = acts[is_real].reshape(-1, directions.n_features)[self.chosen].double().mean(0)
        line = -mean / mean.norm().clamp(min=1e-30)
        steps = [weight_norm(self.engine.subset) * _FIRST_STEP * 2**power for power in range(11)]
        start, *values = self._mean_divergences(directions, line, [0.0, *steps])
        reached = [step for step, value in zip(steps, values, strict=True) if value <= self.target * start]
        if not reached:
            lowest = min(zip(values, steps, strict=True))
            raise SearchError(
                f"target={self.target}: along these features' mean activations the mean divergence {start:.4g} falls to "
                f"{lowest[0]:.4g} at most, {lowest[0] / start:.2f} of it, at ‖δ‖ = {lowest[1]:.3g}. Ask for a target above "
                "that, or take more features."
            )
        return line * self._bisected(directions, line, reached[0], self.target * start)

    def _bisected(self, directions: LowRank, line: Tensor, high: float, goal: float) -> float:
        low = high / 2 if high > weight_norm(self.engine.subset) * _FIRST_STEP * 1.5 else 0.0
        for _ in range(_N_BISECTIONS):
            middle = (low + high) / 2
            if self._mean_divergences(directions, line, [middle])[0] <= goal:
                high = middle
            else:
                low = middle
        return high

    def _mean_divergences(self, directions: LowRank, line: Tensor, steps: list[float]) -> list[float]:
        changes = [deltas_of(directions, dict(enumerate((step * line).tolist())), self.engine.subset) for step in steps]
        divergences = read_effects(
            self.engine,
            self.inputs,
            changes,
            lambda _, after: self.question.value(after),
        )
        return divergences[:, self.chosen].double().mean(1).tolist()
