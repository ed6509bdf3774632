"""`background=`: other samples that features for a target are to leave alone."""

from dataclasses import dataclass, replace
from typing import Any

from param_features.errors import FeatureCountError, InputError, SettingError
from param_features.machine import public
from param_features.problem.inputs import read_either
from param_features.problem.output import inspect_output
from param_features.problem.problem import Problem


@public
@dataclass(frozen=True, eq=False)
class Background:
    """Samples that features are to leave alone, and how: `background=pf.Background(data, …)`.

    Attributes:
        data: Whatever `tokens=` takes; or what `inputs=` takes, for modules that take no tokens.
        n_features: How many of the features rebuild the background's gradients, half of them by default. They are fitted to
            the background alone and come last; they keep its reconstruction, whatever the others do.
        weight: Of the penalty on the other features' effects on the background. A feature pays for itself where its
            coordinates' mean square on the target, as a share of the target's mean square gradient, exceeds `weight` times
            that of its effects on the background; 0 asks for nothing.
        n_samples: Samples of the background, training and held out; as many as fit in memory, up to 8,192, by default.
    """

    data: Any
    n_features: int | None = None
    weight: float = 3.0
    n_samples: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.weight < 0:
            raise SettingError(
                f"weight={self.weight} of the background must not be negative; 0 asks for nothing, 3 is the default."
            )

    def n_own(self, n_features: int) -> int:
        """How many of `n_features` are the background's.

        Raises:
            FeatureCountError: None is left for the target.
        """
        n_own = n_features // 2 if self.n_features is None else self.n_features
        if not 0 <= n_own < n_features:
            raise FeatureCountError(
                f"The background has n_features={n_own} of the {n_features} features asked for. Accepted: 0 to "
                f"{n_features - 1}, since at least one is for the target."
            )
        return n_own


@dataclass(frozen=True)
class ReadBackground:
    """A background that the model can take.

    Attributes:
        settings: What the user chose.
        problem: That of the target, with the background's samples for its data.
    """

    settings: Background
    problem: Problem


def read_background(target: Problem, background: Any, n_features: int, method: str) -> ReadBackground:
    """Read what the user gave as `background=`.

    Raises:
        InputError: The model cannot take it, or gives outputs of another shape.
        FeatureCountError: It has all of the features.
        SettingError: The method weighs no samples against others.
    """
    if method == "hessian":
        raise SettingError(
            "background= with method='hessian', which weighs no samples against others. Use method='l3d' with a background."
        )
    settings = background if isinstance(background, Background) else Background(background)
    settings.n_own(n_features)
    try:
        data = read_either(target.adapter, settings.data)
    except InputError as error:
        raise InputError(f"background=: {error}") from error
    positions = target.positions.elsewhere.given
    output = inspect_output(target.adapter, data).sampled(target.divergence, positions)
    if (output.per_position, output.d_output) != (target.output.per_position, target.output.d_output):
        raise InputError(
            f"Outputs have shape {output.shape} for the background and {target.output.shape} for the target. Give data of "
            "one kind."
        )
    reference = target.reference if target.pairs is None else "sample"
    known = target.known if target.pairs is None and target.kind == "given" else None
    problem = replace(target, data=data, output=output, reference=reference, pairs=None, known=known)
    return ReadBackground(settings, problem.sampled_at(positions))
