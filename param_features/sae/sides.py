"""Two sets of features on the same samples, and random ones to stand beside either."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.adapters import SparseAutoencoder
from param_features.fit import Reading, read_gradients, threshold_for
from param_features.fit.formats import LowRank
from param_features.fitted import Fitted
from param_features.measure import feature_chunks, purity, shares, top_samples
from param_features.problem import ModelInputs
from param_features.sae.component_sides import component_readings

_THRESHOLD_NUMBERS = 2**25


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two compared sets: how strong its features are on the samples.

    Attributes:
        strengths: How much each feature says at each sample, at least 0; dense, or sparse in the COO layout.
        codes: What is kept, zero elsewhere.
    """

    strengths: Float[Tensor, "sample feature"]
    codes: Float[Tensor, "sample feature"]

    def numbers(self, labels: Mapping[str, Int[Tensor, " sample"]], n_top: int) -> dict[str, float]:
        """Measure `n_features`, `l0`, `density` (median), `dead`, and for each kind of label the top samples' mean purity.

        A feature counts in the purity by the number of its top samples, n_top at most: one that is active on a single
        sample is pure for nothing.
        """
        density = torch.cat([(chunk != 0).double().mean(0) for chunk in feature_chunks(self.codes)])
        tops = [top_samples(chunk, n_top) for chunk in feature_chunks(self.strengths)]
        weight = torch.cat([top.sum(0) for top in tops]).clamp(max=n_top).double()
        numbers = {
            "n_features": float(len(density)),
            "l0": float(density.sum()),
            "density": float(density.median()),
            "dead": float((density == 0).sum()),
        }
        for name, label in labels.items():
            pure = torch.cat([purity(top, label) for top in tops]).double()
            counted = ~pure.isnan()
            numbers[f"purity_{name}"] = float((pure * weight)[counted].sum() / weight[counted].sum())
        return numbers


class ParameterSides(NamedTuple):
    """Parameter features, and random directions read from the same gradients.

    Attributes:
        features: The features.
        control: As many random directions of the same ranks.
        calibration: Strengths of further such sets.
    """

    features: Side
    control: Side
    calibration: list[Float[Tensor, "sample feature"]]


def parameter_sides(
    features: Fitted, inputs: ModelInputs, generator: torch.Generator, *, n_calibrating: int
) -> ParameterSides:
    """Read the features and sets of random directions from the same samples; features from their gradients.

    Of components a strength is an importance, and random parts are read as `component_readings` does. Of features:

    Strengths are shares: |activation| over the norm of the sample's activations (see `measure.examples.shares`). Random
    directions have unit norm; the control's codes are made as the features' are, and keep as many per sample.

    Cost: one backward pass per position, and a pursuit for the features and the control.
    """
    if features.dictionary.kind == "components":
        ours, control, *others = component_readings(features, inputs, generator, n_random=1 + n_calibrating)
        return ParameterSides(Side(ours, ours), Side(control, control), others)
    engine = features.bound_engine("compare")
    dictionary = features.dictionary.of_gradients("This side reads gradients", "Read components by their importances.")
    drawn = [random_unit(features.v_out, generator) for _ in range(1 + n_calibrating)]
    readings: dict[str, Reading] = {str(place): rows.inner for place, rows in enumerate(drawn)}
    readings |= {"acts": features.v_in.inner, "overlaps": dictionary.code_directions.inner}
    padded = read_gradients(engine, features.question, inputs, readings)
    is_real = torch.ones(padded["acts"].shape[:2], dtype=torch.bool)
    if engine.per_position and inputs.sample_mask is not None:
        is_real = inputs.sample_mask.cpu()
    by_reading = {name: values[is_real] for name, values in padded.items()}
    codes = dictionary.codes(by_reading["overlaps"])
    l0 = max(float((codes != 0).sum(1).double().mean()), 1e-6)
    random_codes, _ = dictionary.encoder.kept(by_reading["0"], drawn[0].gram().cpu(), l0)
    return ParameterSides(
        features=Side(shares(by_reading["acts"]), codes),
        control=Side(shares(by_reading["0"]), random_codes),
        calibration=[shares(by_reading[str(place)]) for place in range(1, len(drawn))],
    )


def sae_side(sae: SparseAutoencoder, acts: Float[Tensor, "sample ..."]) -> Side:
    """Read the SAE's features as sparse tensors, which hold what is not zero; a strength is the activation's size."""
    codes = torch.cat([chunk.to_sparse() for chunk in sae.encode(acts)]).coalesce()
    return Side(codes.abs(), codes)


def random_sae_side(
    acts: Float[Tensor, "sample d_in"], n_features: int, l0: float, generator: torch.Generator, *, signed: bool = False
) -> Side:
    """Draw random directions, and keep their largest overlaps with the centred activations, l0 a sample.

    Only positive ones count, or with `signed` both signs by their size, as in the SAE that they stand beside.
    """
    rows = torch.nn.functional.normalize(
        torch.randn(n_features, acts.shape[1], dtype=torch.float32, generator=generator), dim=1
    )
    centred = (acts - acts.mean(0)).float()
    size = max(1, _THRESHOLD_NUMBERS // n_features)
    calibrating = centred[torch.randperm(len(centred), generator=generator)[:size]] @ rows.T
    sizes = torch.abs if signed else torch.relu
    threshold = threshold_for(sizes(calibrating), min(max(l0, 1e-6), n_features))
    parts = []
    for chunk in centred.split(size):
        overlaps = chunk @ rows.T
        parts.append((overlaps * (sizes(overlaps) >= max(threshold, 1e-30))).to_sparse())
    codes = torch.cat(parts).coalesce()
    return Side(codes.abs(), codes)


def shuffled(side: Side, generator: torch.Generator) -> Side:
    """Put the samples in another order: every association is gone, every distribution stays."""
    order = torch.randperm(side.strengths.shape[0], generator=generator)
    return Side(side.strengths.index_select(0, order), side.codes.index_select(0, order))


def random_unit(like: LowRank, generator: torch.Generator) -> LowRank:
    """Draw random directions of the same shapes, ranks and number, of unit norm."""
    drawn = like.map(lambda tensor: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor))
    norm = drawn.norm().clamp(min=1e-30)
    return LowRank({name: (left / norm[:, None, None], right) for name, (left, right) in drawn.factors.items()})
