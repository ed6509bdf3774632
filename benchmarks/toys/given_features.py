"""Features whose directions are given: for trying on the truth what is built on features, whatever a fit does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from param_features.features import ParamFeatures, decompose
from param_features.fit.formats import LowRank
from param_features.fitted.metrics import Metrics


def given_features(
    model: nn.Module, params: str | Sequence[str], directions: LowRank, *, inputs: Tensor, reference: Any
) -> ParamFeatures:
    """Features with these unit-norm directions as V_in and V_out; nothing is fitted and nothing measured: no metrics.

    Cost: a harvest of `inputs`, and one optimiser step whose outcome is thrown away.

    Args:
        model: The model.
        params: The parameters that the directions are of.
        directions: Unit-norm directions.
        inputs: Data; a part of them become the features' examples.
        reference: What outputs are compared with, as in `pf.decompose`.
    """
    fit = decompose(
        model,
        params,
        n_features=directions.n_features,
        inputs=inputs,
        divergence="se",
        reference=reference,
        steps=1,
        progress=False,
    )
    dictionary = replace(fit.dictionary, v_in=directions, v_out=directions, threshold=0.0)
    return replace(fit, dictionary=dictionary, metrics=Metrics({}))
