"""What `pf.track` returns: features through training, and what can be read off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.development.checkpoints import TrainingStep
from param_features.development.phases import PENALTY, change_points, log_curve
from param_features.development.track_rows import TrackRow
from param_features.errors import FeatureCountError, SettingError, nearest
from param_features.fitted import LEAST_GAIN, Fitted, lower
from param_features.machine import public

Features = TypeVar("Features", bound=Fitted)

BY_FEATURE = ("impact", "density", "curvature", "match")
"""Curves that each feature has one of."""
OF_ALL = ("error", "share", "norm")
"""Curves that all features have together."""
_SHARE_OF_HOME = 0.2
"""Of the advantage at home: features are stale below it."""
_FIT, _RANDOM = "reconstruction_error", "control_random"


@dataclass(frozen=True, eq=False)
class Track(Generic[Features]):
    """Fixed features at checkpoints of one training run.

    A feature is a local direction of the weights that it was found at. How far it says something elsewhere is in `errors`.

    Attributes:
        steps: Of the checkpoints, rising.
        impact: Mean |activation| against that checkpoint's own outputs, divergence units per unit step.
        density: Share of the samples that keep the feature by the fit's threshold, 0 to 1.
        curvature: Mean over samples of the divergence's curvature along the feature, Var_p(J v) for KL; divergence units per
            squared unit step. NaN for divergences of the user's own.
        moves: ⟨Δ, v_k⟩ of the change Δ of the decomposed parameters since the last checkpoint, signed; NaN at the first.
        norm: ‖Δ‖.
        share: The share of ‖Δ‖² that lies in the span of all features, 0 to 1; NaN where nothing changed.
        share_random: The share for random directions of the same shapes and ranks.
        errors: Reconstruction error of that checkpoint's own gradients at the fit's l0, by `reconstruction_error` (these
            features), `control_pca`, `control_random` (the mean over four draws) and `control_svd_w`, found at that
            checkpoint, and, where refits were asked for, `refit`. 0 is perfect, 1 predicts nothing.
        match: |cosine| of each feature with its partner among features fitted at that checkpoint; 0 without a partner. None
            without refits.
        match_random: Mean |cosine| of partners among random directions; NaN without refits.
        home: Which checkpoint has the weights that the features were fitted at; None where none has.
        home_errors: As `errors`, at those weights; empty where they are not at hand.
        features: That were followed. Their model has its own weights again.
        n_asked: Checkpoints that were asked for: more than there are steps after Ctrl-C.
    """

    steps: tuple[TrainingStep, ...]
    impact: Float[Tensor, "checkpoint feature"]
    density: Float[Tensor, "checkpoint feature"]
    curvature: Float[Tensor, "checkpoint feature"]
    moves: Float[Tensor, "checkpoint feature"]
    norm: Float[Tensor, " checkpoint"]
    share: Float[Tensor, " checkpoint"]
    share_random: Float[Tensor, " checkpoint"]
    errors: Mapping[str, Float[Tensor, " checkpoint"]]
    match: Float[Tensor, "checkpoint feature"] | None
    match_random: Float[Tensor, " checkpoint"]
    home: int | None
    home_errors: Mapping[str, float]
    features: Features = field(repr=False)
    n_asked: int

    def __len__(self) -> int:
        """Number of checkpoints."""
        return len(self.steps)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.impact.shape[1]

    @property
    def staleness(self) -> Float[Tensor, " checkpoint"]:
        """Reconstruction error over that at home: 1 there, larger where the directions say less; NaN without a home."""
        return self.errors[_FIT] / self.home_errors.get(_FIT, float("nan"))

    @property
    def advantage(self) -> Float[Tensor, " checkpoint"]:
        """By what share the error lies below that of random directions, at most 1; 0 or less where these do as well."""
        return 1 - self.errors[_FIT] / self.errors[_RANDOM]

    @property
    def is_stale(self) -> Bool[Tensor, " checkpoint"]:
        """Where the advantage is at most a fifth of that at home, or 5 %, which every verdict asks for."""
        at_home = 1 - self.home_errors[_FIT] / self.home_errors[_RANDOM] if self.home_errors else 0.0
        least = max(_SHARE_OF_HOME * at_home, LEAST_GAIN)
        pairs = zip(self.errors[_FIT].tolist(), self.errors[_RANDOM].tolist(), strict=True)
        return torch.tensor([not lower(error, control, least=least).is_better for error, control in pairs])

    @property
    def valid(self) -> tuple[TrainingStep, TrainingStep] | None:
        """The first and the last step around home between which the features are not stale; None without one."""
        if self.home is None or bool(self.is_stale[self.home]):
            return None
        stale = self.is_stale.tolist()
        first, last = self.home, self.home
        while first > 0 and not stale[first - 1]:
            first -= 1
        while last < len(self) - 1 and not stale[last + 1]:
            last += 1
        return self.steps[first], self.steps[last]

    @property
    def drift(self) -> str:
        """How stale the local directions are, in a sentence or two."""
        if not self.home_errors:
            return f"The weights that the features were fitted at are not among the checkpoints. {self._stale_at()}"
        at = "other weights than any checkpoint's" if self.home is None else f"step {self.steps[self.home]}"
        worst = int(self.errors[_FIT].argmax())
        return (
            f"Fitted at {at}: error {self.home_errors[_FIT]:.3f} there (random directions {self.home_errors[_RANDOM]:.3f}), "
            f"{self.errors[_FIT][worst]:.3f} ({self.errors[_RANDOM][worst]:.3f}) at worst, at step {self.steps[worst]}. "
            f"{self._stale_at()}"
        )

    def _stale_at(self) -> str:
        stale = [step for step, is_stale in zip(self.steps, self.is_stale.tolist(), strict=True) if is_stale]
        if not stale:
            return "Clearly better than random directions at every checkpoint."
        if len(stale) == len(self):
            return "Stale throughout: hardly better than random directions at any checkpoint."
        steps = ", ".join(map(str, stale[:8])) + (" …" if len(stale) > 8 else "")
        valid = "" if self.valid is None else f"; go by them from step {self.valid[0]} to {self.valid[1]}"
        return f"Stale, hardly better than random directions, at step {steps}{valid}."

    @public
    def curve(self, of: str = "impact", feature: int | None = None) -> Float[Tensor, " checkpoint"]:
        """One number for each checkpoint, of a feature or of all together.

        Args:
            of: `"impact"`, `"density"`, `"curvature"` or `"match"`, a feature's or the mean over features; `"error"`,
                `"share"` or `"norm"`, of all features together.
            feature: Which; the mean over all by default.

        Raises:
            SettingError: There is no such curve, or it is not one of a feature, or there were no refits.
            FeatureCountError: There is no such feature.
        """
        rows = self._curves(of)
        if feature is None:
            return rows if rows.dim() == 1 else rows.mean(1)
        if rows.dim() == 1:
            raise SettingError(f"of={of!r} is of all features together. Leave feature= out, or take one of {BY_FEATURE}.")
        if not isinstance(feature, int) or not 0 <= feature < self.n_features:
            raise FeatureCountError(f"There is no feature {feature!r}. Features are numbered 0 to {self.n_features - 1}.")
        return rows[:, feature]

    @public
    def change_points(
        self, of: str = "impact", *, feature: int | None = None, penalty: float = PENALTY
    ) -> tuple[TrainingStep, ...]:
        """Steps at which a curve begins a new phase: a jump or a bend of its log, beyond what neighbours differ by.

        The rule is in `development/phases.py`: lines fitted to the log by PELT, under a penalty. It takes checkpoints
        as evenly spaced, sees no phase shorter than three of them, and nothing in fewer than six.

        Args:
            of: As for `curve`.
            feature: Which; the mean over all by default.
            penalty: Times log n for each change; larger finds fewer.

        Returns:
            The first step of each new phase, rising; empty where there is one phase.

        Raises:
            SettingError: The curve is unknown, or `penalty` not positive.
            FeatureCountError: There is no such feature.
            MissingExtraError: ruptures is not installed.
        """
        return tuple(self.steps[place] for place in change_points(self.curve(of, feature), penalty))

    @public
    def top(
        self, n: int = 10, *, of: str = "impact", at: TrainingStep | None = None, since: TrainingStep | None = None
    ) -> list[tuple[int, float]]:
        """Features with the largest values at a step, or those that changed most since another.

        Args:
            n: How many.
            of: `"impact"`, `"density"`, `"curvature"` or `"match"`.
            at: A checkpoint's step; the last by default.
            since: An earlier step: features are then ranked by how many times larger or smaller the value is at `at`.

        Returns:
            Features and values, or with `since` the natural logs of the ratios, a thousandth of each feature's largest
            value added to both so that zeros count.

        Raises:
            SettingError: No checkpoint has that step, or the curve is not one of features.
        """
        rows = self._curves(of)
        if rows.dim() == 1:
            raise SettingError(f"of={of!r} is of all features together. Accepted: {', '.join(map(repr, BY_FEATURE))}.")
        place = len(self) - 1 if at is None else self._place(at)
        values = rows[place] if since is None else log_curve(rows)[place] - log_curve(rows)[self._place(since)]
        order = values.nan_to_num().abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(k, float(values[k])) for k in order]

    def as_rows(self) -> list[dict[str, Any]]:
        """One flat dict per checkpoint, means over features: for a table of your own."""
        curves = {name: self.curve(name).tolist() for name in self._known()}
        curves |= {name: values.tolist() for name, values in self.errors.items()}
        curves |= {"share_random": self.share_random.tolist(), "match_random": self.match_random.tolist()}
        curves |= {
            "advantage": self.advantage.tolist(),
            "staleness": self.staleness.tolist(),
            "is_stale": self.is_stale.tolist(),
        }
        return [
            {"step": step} | {name: values[row] for name, values in curves.items() if name != "error"}
            for row, step in enumerate(self.steps)
        ]

    def table(self) -> str:
        """One line per checkpoint, means over features; `*` marks home, `!` where the features are stale."""
        return "\n".join([_head(self), *(_line(self, row, place) for place, row in enumerate(self.as_rows()))])

    def __repr__(self) -> str:
        """The table of checkpoints, then the drift."""
        head = f"Track of {self.n_features} features over {len(self)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}"
        cut = [f"Interrupted after {len(self)} of {self.n_asked} checkpoints."] if len(self) < self.n_asked else []
        return "\n".join([head, self.table(), *cut, f"drift: {self.drift}"])

    def _known(self) -> tuple[str, ...]:
        return tuple(name for name in (*BY_FEATURE, *OF_ALL) if name != "match" or self.match is not None)

    def _curves(self, of: str) -> Float[Tensor, "*curve"]:
        if of == "match" and self.match is None:
            raise SettingError(
                "There is no match: features were not fitted at each checkpoint. Call pf.track(…, refit=True)."
            )
        if of not in self._known():
            known = self._known()
            raise SettingError(
                f"of={of!r} is unknown. Accepted: {', '.join(map(repr, known))}; nearest: {nearest(str(of), known)}."
            )
        return self.errors[_FIT] if of == "error" else getattr(self, of)

    def _place(self, step: TrainingStep) -> int:
        if step not in self.steps:
            close = min(self.steps, key=lambda known: abs(known - step))
            raise SettingError(f"No checkpoint has step {step}. The nearest has {close}; track.steps holds all.")
        return self.steps.index(step)


def _head(track: Track) -> str:
    match = f" {'match':>6} {'(rand)':>6}" if track.match is not None else ""
    return (
        f"{'step':>10} {'impact':>9} {'density':>7} {'curvature':>9} {'moved':>9} {'share':>6} {'(rand)':>6} {'error':>6} "
        f"{'pca':>6} {'random':>6} {'svd_w':>6}{match}"
    )


def _line(track: Track, row: Mapping[str, Any], place: int) -> str:
    match = f" {row['match']:6.3f} {row['match_random']:6.3f}" if track.match is not None else ""
    mark = f" {'*' if place == track.home else ''}{'!' if row['is_stale'] else ''}".rstrip()
    return (
        f"{row['step']!s:>10} {row['impact']:9.3g} {row['density']:7.3f} {row['curvature']:9.3g} {_or_dash(row['norm'], 9)} "
        f"{_or_dash(row['share'], 6)} {_or_dash(row['share_random'], 6)} {row[_FIT]:6.3f} {row['control_pca']:6.3f} "
        f"{row[_RANDOM]:6.3f} {row['control_svd_w']:6.3f}{match}{mark}"
    )


def _or_dash(value: float, width: int) -> str:
    return f"{'–':>{width}}" if value != value else f"{value:{width}.3g}"


def track_of(
    steps: Sequence[TrainingStep],
    rows: Sequence[TrackRow],
    features: Fitted,
    *,
    home: int | None,
    home_errors: Mapping[str, float],
    n_asked: int,
) -> Track[Fitted]:
    """Put the checkpoints' rows together as a track."""

    def numbers(name: str) -> Float[Tensor, " checkpoint"]:
        return torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)

    match = [row.match for row in rows if row.match is not None]
    return Track(
        steps=tuple(steps),
        impact=torch.stack([row.impact for row in rows]),
        density=torch.stack([row.density for row in rows]),
        curvature=torch.stack([row.curvature for row in rows]),
        moves=torch.stack([row.moves for row in rows]),
        norm=numbers("norm"),
        share=numbers("share"),
        share_random=numbers("share_random"),
        errors={name: torch.tensor([row.errors[name] for row in rows], dtype=torch.float64) for name in rows[0].errors},
        match=torch.stack(match) if match else None,
        match_random=numbers("match_random"),
        home=home,
        home_errors=home_errors,
        features=features,
        n_asked=n_asked,
    )
