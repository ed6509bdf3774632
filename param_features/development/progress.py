"""Progress measures: the loss when only features keep what training gave them, and when all but them do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from param_features.changes import ParamMatrices, chosen_matrices, projected, read_state
from param_features.circuits import Metric, checked_values, read_metric
from param_features.errors import SettingError
from param_features.fit.formats import LowRank
from param_features.fitted import Fitted
from param_features.gradients import GradientEngine
from param_features.machine import own_modes, public
from param_features.measure import random_like
from param_features.params import held_still
from param_features.problem import ModelInputs

_BATCH = 64


@dataclass(frozen=True)
class ProgressLosses:
    """Mean losses of a model whose decomposed parameters are trained in part only.

    Attributes:
        trained: With the weights as they are.
        restricted: Where only the part in the features' span keeps its trained value.
        excluded: Where only the part outside the span does.
        untrained: Where no part does.
        restricted_random: As `restricted`, for as many random directions of the same shapes and ranks.
        excluded_random: As `excluded`, for these.
    """

    trained: float
    restricted: float
    excluded: float
    untrained: float
    restricted_random: float
    excluded_random: float

    def __repr__(self) -> str:
        """All six losses."""
        return (
            f"ProgressLosses: trained {self.trained:.4f}, restricted {self.restricted:.4f} (random directions "
            f"{self.restricted_random:.4f}), excluded {self.excluded:.4f} ({self.excluded_random:.4f}), untrained "
            f"{self.untrained:.4f}"
        )


@public
@own_modes()
def progress_losses(
    features: Fitted,
    tokens: Any = None,
    *,
    chosen: Sequence[int] | None = None,
    initial: Any = "mean",
    loss: Any = "loss",
    inputs: Any = None,
    seed: int = 0,
) -> ProgressLosses:
    """Restricted and excluded loss: what features alone do, and what is left without them.

    With P the projection onto the features' span, the restricted loss is that of P W + (1 − P) W₀, the excluded loss that of
    (1 − P) W + P W₀. A model that has grokked keeps a low restricted loss and a high excluded one; while it memorises, the
    excluded loss falls too. All other parameters stay as trained.

    Cost: six forward passes, and eigendecompositions of n_features² matrices.

    Args:
        features: Bound to the trained model.
        tokens: Rows [row, pos], or strings; the features' own held-out examples by default.
        chosen: Features that count; all by default.
        initial: W₀: weights before training (a state dict, a module, or a file of one), or `"mean"`: each parameter's mean
            over its entries.
        loss: `"loss"`, the mean cross-entropy of the tokens that follow; or a function of the model's output to one number
            for each row, called on 64 rows at a time; or another metric of `pf.circuit`.
        inputs: Instead of tokens, anything that the module takes.
        seed: Of the random directions.

    Raises:
        NotBoundError: The features were loaded without a model.
        FeatureCountError: There is no such feature.
        SettingError: `chosen` is empty, or `initial` or the loss is unknown.
        UnknownParameterError: A decomposed parameter is missing in `initial`.
        InputError: Inputs that the model cannot take, or weights of other shapes.
        OutputError: The loss does not give one number for each row.

    Source: Nanda et al. 2023 (2301.05217), section 5.1, for Fourier components of the logits; here for parts of the weights.
    """
    engine, metric = features.bound_engine("progress_losses"), read_metric(loss)
    rows = features.inputs_or_examples(tokens, inputs)
    directions = features.v_out if chosen is None else _chosen(features, chosen)
    random = random_like(directions, torch.Generator().manual_seed(seed))
    undone = _to_initial(engine, initial)
    undone_inside, undone_random = _inside(directions, undone), _inside(random, undone)

    def mean_loss(delta: ParamMatrices) -> float:
        return _mean_loss(engine, rows, metric, delta)

    return ProgressLosses(
        trained=mean_loss({}),
        restricted=mean_loss(_less(undone, undone_inside)),
        excluded=mean_loss(undone_inside),
        untrained=mean_loss(undone),
        restricted_random=mean_loss(_less(undone, undone_random)),
        excluded_random=mean_loss(undone_random),
    )


def _chosen(features: Fitted, chosen: Sequence[int]) -> LowRank:
    if not chosen:
        raise SettingError("chosen= is empty. Give numbers of features, or leave it out for all of them.")
    for feature in chosen:
        features.check_feature(feature)
    return features.v_out.rows(list(chosen))


def _to_initial(engine: GradientEngine, initial: Any) -> ParamMatrices:
    """W₀ − W, the change that undoes the training."""
    trained = chosen_matrices(engine, engine.subset.tensors)
    if isinstance(initial, str) and initial == "mean":
        return {name: matrix.mean() - matrix for name, matrix in trained.items()}
    before = chosen_matrices(engine, read_state(initial))
    return {name: before[name] - matrix for name, matrix in trained.items()}


def _inside(directions: LowRank, delta: ParamMatrices) -> ParamMatrices:
    """The part of a change that lies in the directions' span. Cost: |W| for each direction, one after the other."""
    steps = projected(directions, delta).steps
    factors = directions.map(lambda tensor: tensor.detach().double().cpu()).factors
    return {name: einsum(steps, left, right, "k, k o rank, k i rank -> o i") for name, (left, right) in factors.items()}


def _less(whole: ParamMatrices, part: ParamMatrices) -> ParamMatrices:
    return {name: matrix - part[name] for name, matrix in whole.items()}


@torch.no_grad()
def _mean_loss(engine: GradientEngine, inputs: ModelInputs, metric: Metric, delta: ParamMatrices) -> float:
    """The mean loss over rows, with W + Δ."""
    views = {view.name: view for view in engine.subset.views}
    moved = {name: views[name].from_matrix(matrix).to(views[name].tensor.device) for name, matrix in delta.items()}
    with held_still(engine.adapter.module), engine.subset.edited(moved):
        parts = [_losses(engine, inputs.rows(slice(n, n + _BATCH)), metric) for n in range(0, len(inputs), _BATCH)]
    return float(torch.cat(parts).mean())


def _losses(engine: GradientEngine, inputs: ModelInputs, metric: Metric) -> Float[Tensor, " row"]:
    output = engine.adapter.run(*inputs.args, **inputs.kwargs)
    return checked_values(metric.on(engine.adapter, inputs)(output), len(inputs), metric.name).double().cpu()
