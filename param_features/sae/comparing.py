"""`pf.compare`: parameter features next to SAE features."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.adapters import read_sae
from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.machine import own_modes, public
from param_features.measure import correlation_table, counterparts, feature_chunks, purity
from param_features.problem import ModelInputs
from param_features.sae.comparison import Comparison
from param_features.sae.matching import Matching
from param_features.sae.metrics import named_place
from param_features.sae.sides import Side, parameter_sides, random_sae_side, sae_side, shuffled
from param_features.sae.site import activations_at

_N_SHOWN = 30
# A set's strengths have their norm in common, so that one large set would be no substitute for several.
_N_CALIBRATING, _LEAST_SETS = 500, 5


@public
@own_modes()
def compare(
    features: Fitted,
    sae: Any,
    tokens: Any = None,
    *,
    inputs: Any = None,
    hook_name: str | None = None,
    n_top: int = 50,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Find which SAE features go with which parameter features on the same samples, and which have no counterpart.

    Parameter features are signed and move with the size of a sample's gradient; SAE features do neither. So the strength of
    a parameter feature at a sample is its share of the sample's activations, |c_k| / (‖c‖ + its mean), by which
    `top_examples` ranks too; that of an SAE feature is its activation, or the size of it where an SAE's activations are
    signed, as AbsTopK's are: a feature that says one thing where positive and another where negative is one feature here.
    docs/how-to/compare-with-an-sae.md has what other choices give. The strength of a component is its importance, and random
    parts that read the same inputs take the place of random directions.

    A feature has a counterpart where its best correlation exceeds `level` of the best correlations of random directions of
    the same rank, taken from the same gradients: at least 500, in five sets or more of as many as there are features. A
    further set, and the SAE's activations on shuffled samples, tell how often that happens by chance. Correlation tells
    which features fire together, not that one causes the other or that they mean the same: look at `comparison.view(k)`.

    Cost: one forward and one backward pass per position, and the tables: about a minute for 13,000 samples, 100 features and
    an SAE of 24,576. Memory: 16 bytes a pair of features, and the SAE's activations, sparse.

    Args:
        features: Bound to their model.
        sae: An SAE or a transcoder of sae-lens or dictionary_learning, its folder, or a pair (release, id) on the hub.
        tokens: As for `features.activations`, best of texts that neither was fitted on; the features' own held-out examples
            by default.
        inputs: The same, for models that take no tokens.
        hook_name: Where the SAE reads; what its metadata say by default.
        n_top: How many of its strongest samples stand for a feature in areas under ROC, overlaps and purity.
        level: Which share of random directions a counterpart must exceed.
        seed: Of the random directions and shuffles.

    Returns:
        Pairs either way, features without a counterpart, and both sets' l0, density, dead and purity beside random ones.

    Raises:
        NotBoundError: The features were loaded without a model.
        AdapterError: `sae` is no SAE.
        UnknownHookError: The model has no such place; lists the nearest.
        FeatureMismatchError: The SAE reads something of another size.
        InputError: The SAE names no place, or its place has no activation for each sample.
        SettingError: `n_top` or `level` is out of range.
    """
    features.bound_engine("compare")
    return compare_on(
        features, sae, features.inputs_or_examples(tokens, inputs), hook_name=hook_name, n_top=n_top, level=level, seed=seed
    )


@own_modes()
def compare_on(
    features: Fitted,
    sae: Any,
    data: ModelInputs,
    *,
    hook_name: str | None = None,
    n_top: int = 50,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare as `compare` does, on inputs that are read already.

    Raises:
        SettingError: `n_top` or `level` is out of range.
    """
    if n_top < 1 or not 0 < level < 1:
        raise SettingError(f"n_top={n_top} and level={level}. n_top must be at least 1, and level lie between 0 and 1.")
    engine = features.bound_engine("compare")
    reader = read_sae(sae)
    place = named_place(reader, hook_name)
    acts = activations_at(engine.adapter, data, place, per_position=engine.per_position)
    theirs = sae_side(reader, acts)
    generator = torch.Generator().manual_seed(seed)
    n_sets = max(_LEAST_SETS, -(-_N_CALIBRATING // features.n_features))
    ours, control, calibration = parameter_sides(features, data, generator, n_calibrating=n_sets)
    l0 = theirs.codes._nnz() / len(acts)
    is_signed = bool((theirs.codes.values() < 0).any())
    random_sae = random_sae_side(acts.flatten(1), reader.n_features, l0, generator, signed=is_signed)
    labels = _labels(data) if engine.per_position else {}
    tables = counterparts(ours.strengths, theirs.strengths, n_top=n_top)
    of_features, of_sae = _matchings(tables.correlation, theirs, ours, control, calibration, level, generator)
    metrics = {
        "features": ours.numbers(labels, n_top),
        "random_features": control.numbers(labels, n_top),
        "sae": theirs.numbers(labels, n_top),
        "random_sae": random_sae.numbers(labels, n_top),
        "any_samples": _chance(labels, len(acts), n_top, generator),
    }
    return Comparison(
        features=features,
        sae=reader,
        hook_name=place,
        inputs=data,
        n_samples=len(acts),
        n_top=n_top,
        level=level,
        tables=tables,
        of_features=of_features,
        of_sae=of_sae,
        metrics=metrics,
        top=_strongest(ours.strengths),
        sae_top=_strongest(theirs.strengths),
        sae_strengths=theirs.codes,
    )


def _matchings(
    correlation: Float[Tensor, "feature other"],
    theirs: Side,
    ours: Side,
    control: Side,
    calibration: Sequence[Float[Tensor, "sample feature"]],
    level: float,
    generator: torch.Generator,
) -> tuple[Matching, Matching]:
    """Match the sets in both directions: best correlations, thresholds and controls."""
    calibrating = [correlation_table(strengths, theirs.strengths) for strengths in calibration]
    random = correlation_table(control.strengths, theirs.strengths)
    reordered = correlation_table(ours.strengths, shuffled(theirs, generator).strengths)
    active = _active(ours), _active(theirs)
    matchings = []
    for axis in (0, 1):
        best, by_chance, by_shuffling = (table.amax(1 - axis) for table in (correlation, random, reordered))
        is_active = active[axis]
        drawn = torch.cat([table.amax(1 - axis)[is_active if axis else slice(None)] for table in calibrating])
        threshold = max(_quantile(drawn, level), _quantile(by_shuffling[is_active], level))
        matchings.append(Matching(best, threshold, by_chance, by_shuffling, is_active))
    return matchings[0], matchings[1]


def _active(side: Side) -> Tensor:
    """Mark the features that have a strength above zero on some sample."""
    return torch.cat([(chunk > 0).any(0) for chunk in feature_chunks(side.strengths)])


def _quantile(values: Tensor, level: float) -> float:
    return float(values.double().quantile(level)) if len(values) else float("inf")


def _strongest(strengths: Float[Tensor, "sample feature"]) -> Int[Tensor, "rank feature"]:
    """Find the samples on which each feature is strongest, strongest first."""
    n = min(_N_SHOWN, strengths.shape[0])
    return torch.cat([chunk.topk(n, dim=0).indices for chunk in feature_chunks(strengths)], 1)


def _labels(inputs: ModelInputs) -> dict[str, Int[Tensor, " sample"]]:
    """Label every sample with its token, and with the token after it; -1 where there is none."""
    if inputs.tokens is None:
        return {}
    rows = [[*row, -1] for row in inputs.token_rows]
    places = inputs.sample_places.tolist()
    return {
        name: torch.tensor([rows[row][position + ahead] for row, position in places])
        for name, ahead in (("token", 0), ("next", 1))
    }


def _chance(
    labels: dict[str, Tensor], n_samples: int, n_top: int, generator: torch.Generator, n_draws: int = 200
) -> dict[str, float]:
    """Measure the mean purity of as many samples drawn at random."""
    drawn = torch.rand(n_samples, n_draws, dtype=torch.float32, generator=generator)
    is_drawn = drawn <= drawn.kthvalue(min(n_top, n_samples), dim=0).values
    return {f"purity_{name}": float(purity(is_drawn, label).nanmean()) for name, label in labels.items()}
