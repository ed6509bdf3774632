"""`background=`: other samples that features for a target are to leave alone."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from param_features.adapters import Adapter
from param_features.divergence import Divergence, Reference
from param_features.errors import FeatureCountError, InputError, SettingError
from param_features.gradients import (
    GradientEngine,
    Harvester,
    HarvestSettings,
    OutputInfo,
    SampleGradients,
    inspect_output,
    limited,
    plan_samples,
)
from param_features.inputs import ModelInputs, read_either
from param_features.processes import ALONE, Processes
from param_features.references import collect_references

_MOST = 8192
_N_MEAN = 16


@dataclass(frozen=True)
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
        settings: What was asked.
        data: As the model takes it.
    """

    settings: Background
    data: ModelInputs

    def stores(
        self,
        engine: GradientEngine,
        divergence: Divergence,
        reference: str | Tensor,
        given: Tensor | None,
        harvest: HarvestSettings,
        n_features: int,
        generator: torch.Generator,
        progress: bool,
        processes: Processes = ALONE,
    ) -> tuple[SampleGradients, SampleGradients]:
        """Training and held-out gradients at random positions.

        Args:
            engine: Takes them.
            divergence: The target's.
            reference: What outputs are compared with, drawn from the background itself.
            given: The user's own references, where it is such.
            harvest: The target's settings, of which the number of samples is not heeded.
            n_features: How many features are fitted to them.
            generator: Draws rows, positions and references.
            progress: Whether to show progress bars.
            processes: Who share the batches.

        Raises:
            SampleCountError: There are fewer training samples than features.
        """
        pool = collect_references(engine, divergence, self.data, reference, given, _N_MEAN, generator)
        kind = reference if isinstance(reference, str) else "given"
        settings = replace(harvest, n_samples=self.settings.n_samples, max_samples=_MOST)
        drawn = Reference(kind, pool if kind in ("mean", "given") else None)
        harvester = Harvester(engine, divergence, drawn, settings).agreed(processes)
        plan = plan_samples(
            self.data,
            per_position=engine.per_position,
            settings=limited(settings, harvester, self.data),
            n_features=n_features,
            generator=generator,
        )

        def store(rows: Tensor, title: str) -> SampleGradients:
            more = {"progress": progress, "title": title, "processes": processes}
            return harvester.store(self.data.rows(rows), plan.n_slots, generator, **more)

        return store(plan.train, "background"), store(plan.held_out, "held out")


def read_background(adapter: Adapter, background: Any, output: OutputInfo, n_features: int, method: str) -> ReadBackground:
    """What was given as `background=`.

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
        data = read_either(adapter, settings.data)
    except InputError as error:
        raise InputError(f"background=: {error}") from error
    found = inspect_output(adapter, data)
    if (found.per_position, found.d_output) != (output.per_position, output.d_output):
        raise InputError(
            f"Outputs have shape {found.shape} for the background and {output.shape} for the target. Give data of one kind."
        )
    return ReadBackground(settings, data)
