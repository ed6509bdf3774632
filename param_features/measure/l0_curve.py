"""Reconstruction error against l0, of a fit and of its controls on the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from param_features.errors import SampleCountError, SettingError
from param_features.fit import Dictionary, Encoder, check_l0, rounds_for
from param_features.gradients import GradientEngine, Harvester, HarvestSettings, SampleGradients, SampleProbe
from param_features.machine import typed
from param_features.measure.controls import control_dictionaries, dictionary_errors
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
    """

    l0s: tuple[float, ...]
    errors: Mapping[str, tuple[float, ...]]
    n_samples: int
    n_principal: int

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
    dictionary: Dictionary,
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

    def fit(l0: float) -> float:
        encoder = Encoder(rounds_for(l0, dictionary.n_features)) if is_pursued else dictionary.encoder
        return replace(dictionary, encoder=encoder).error(store, l0)

    n_features, rank = dictionary.n_features, dictionary.rank
    controls = control_dictionaries(train, engine.subset, n_features=n_features, rank=rank, generator=generator)
    errors = {"reconstruction_error": tuple(map(fit, ordered))}
    for name, control in controls.items():
        errors[name] = tuple(dictionary_errors(control, store, ordered, is_pursued=is_pursued))
    return L0Curve(ordered, errors, store.n_samples, train.n_samples)
