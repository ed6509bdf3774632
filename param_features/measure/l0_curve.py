"""Reconstruction error against l0, of a fit and of its controls on the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from param_features.errors import SampleCountError, SettingError
from param_features.fit import Encoder, GradientDictionary, check_l0, reconstruction_error, rounds_for
from param_features.fitted import Standing, lower, spread_of_ratio
from param_features.gradients import GradientEngine, Harvester, HarvestSettings, SampleGradients, SampleProbe
from param_features.machine import typed
from param_features.measure.controls import SampleErrors, control_dictionaries, sample_errors
from param_features.problem import ModelInputs, Question, Reference


@dataclass(frozen=True)
class L0Curve:
    """What `features.errors_by_l0` returns.

    Attributes:
        l0s: Features kept per sample on average, rising.
        errors: Under `reconstruction_error` (the fit), `control_pca`, `control_random` and `control_svd_w`: one
            reconstruction error for each l0; 0 is perfect, 1 predicts nothing.
        n_samples: Samples that they are measured on.
        n_principal: Others, from which the principal directions were taken.
        spreads: Of each control, at each l0 the standard error of the share by which the fit's error is lower.
    """

    l0s: tuple[float, ...]
    errors: Mapping[str, tuple[float, ...]]
    n_samples: int
    n_principal: int
    spreads: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def standings(self, control: str) -> dict[float, Standing]:
        """How the fit's error lies beside a control's at each l0; empty where the control was not measured."""
        errors = self.errors.get(control, ())
        spreads = self.spreads.get(control, (0.0,) * len(errors))
        rows = zip(self.l0s, self.errors["reconstruction_error"], errors, spreads, strict=False)
        return {l0: lower(error, of_control, spread=spread) for l0, error, of_control, spread in rows}

    def __repr__(self) -> str:
        """Print a table, one line for each dictionary."""
        head = f"{'l0':<21}" + "".join(f"{l0:>8g}" for l0 in self.l0s)
        rows = [f"{name:<21}" + "".join(f"{error:>8.3f}" for error in row) for name, row in self.errors.items()]
        return "\n".join([head, *rows])


def default_l0s(l0: float, n_features: int) -> tuple[float, ...]:
    """The fit's l0, its half, quarter, double and fourfold, as far as there are features."""
    return tuple(l0 * factor for factor in (0.25, 0.5, 1, 2, 4) if l0 * factor <= n_features)


def harvest_halves(
    engine: GradientEngine,
    question: Question,
    inputs: ModelInputs,
    *,
    n_samples: int,
    generator: torch.Generator,
) -> tuple[SampleGradients, SampleGradients]:
    """Gradients of one half of the rows for principal directions, and of the other half for measuring.

    Compared with references of the kind that the fit used; after a fit to pairs, each row's last real position with outputs
    drawn from the stored ones, since the partners are not kept. The first half gives up to four times as many samples.

    Cost: one forward pass of the inputs, and one backward pass of the layers above the parameters per position taken.

    Raises:
        SampleCountError: There are fewer than four rows.
        MemoryEstimateError: The gradients would not fit.
    """
    inputs = inputs.with_samples()
    if len(inputs) < 4:
        raise SampleCountError(
            f"Got {len(inputs)} sequences (inputs). One half is for the principal directions and one for measuring, and two "
            "are needed in each: give at least four, and better a hundred."
        )
    is_paired = question.kind == "pairs"
    drawn = Reference("pairs", question.references) if is_paired else question.drawn
    harvester = Harvester(SampleProbe(engine, inputs), question.divergence, drawn, HarvestSettings())
    half = len(inputs) // 2

    def harvest(rows: ModelInputs, n_wanted: int) -> SampleGradients:
        n_pos = rows.n_pos if engine.per_position else 1
        n_slots = 1 if is_paired else min(n_pos, -(-n_wanted // len(rows)))
        rows = rows.rows(slice(0, max(2, -(-n_wanted // n_slots))))
        return harvester.store(rows, n_slots, generator, progress=False, title="harvest")

    return harvest(inputs.rows(slice(0, half)), 4 * n_samples), harvest(inputs.rows(slice(half, None)), n_samples)


@typed
@torch.no_grad()
def errors_by_l0(
    dictionary: GradientDictionary,
    stores: tuple[SampleGradients, SampleGradients],
    engine: GradientEngine,
    *,
    l0s: Sequence[float],
    generator: torch.Generator,
) -> L0Curve:
    """The fit and three controls at several l0 on the same samples, each by the encoders that `decompose` scores it with.

    Args:
        dictionary: The features.
        stores: Samples for the principal directions, and others on which everything is measured: principal directions of
            the very samples that they are scored on would look better than they are.
        engine: Knows the parameters.
        l0s: Features kept per sample on average.
        generator: Draws the random directions.

    Cost: the principal directions, and at each l0 a few products of samples × features.

    Raises:
        SettingError: No l0 is given.
        FeatureCountError: One lies outside (0, n_features].
    """
    if not l0s:
        raise SettingError("l0s is empty. Give numbers between 0 and the number of features, such as [1, 5, 20].")
    ordered = tuple(sorted(float(l0) for l0 in l0s))
    for l0 in ordered:
        check_l0(l0, dictionary.n_features)
    train, store = stores
    is_pursued = dictionary.encoder.n_rounds is not None

    def fit(l0: float) -> SampleErrors:
        encoder = Encoder(rounds_for(l0, dictionary.n_features)) if is_pursued else dictionary.encoder
        return replace(dictionary, encoder=encoder).square_errors(store, l0)

    n_features, rank = dictionary.n_features, dictionary.rank
    controls = control_dictionaries(train, engine.subset, n_features=n_features, rank=rank, generator=generator)
    own = list(map(fit, ordered))
    errors, spreads = {"reconstruction_error": _totals(own)}, {}
    for name, control in controls.items():
        of_control = sample_errors(control, store, ordered, is_pursued=is_pursued)
        errors[name] = _totals(of_control)
        if len(of_control[0][0]) == len(own[0][0]):  # fewer directions take more samples
            spreads[name] = tuple(spread_of_ratio(a, b) for (a, _), (b, _) in zip(own, of_control, strict=True))
    return L0Curve(ordered, errors, store.n_samples, train.n_samples, spreads)


def _totals(errors: Sequence[SampleErrors]) -> tuple[float, ...]:
    return tuple(reconstruction_error(*of) for of in errors)
