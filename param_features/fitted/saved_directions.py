"""Directions that are read from gradients, in files."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from param_features.files import FORMAT, Origin, Part, shown
from param_features.fit import Encoder, GradientDictionary
from param_features.fit.formats import LowRank
from param_features.fitted.metrics import ALWAYS
from param_features.fitted.saved_kind import SavedKind
from param_features.params import ParamRecord

_OFF_UNIT = 1e-2
"""How far a norm may lie from 1: directions of bfloat16 have two digits."""

_SIDES = ("left", "right")


def _tensors(dictionary: GradientDictionary) -> dict[str, Tensor]:
    titles = {"v_out": dictionary.v_out, **({} if dictionary.is_tied else {"v_in": dictionary.v_in})}
    return {
        f"{title}/{name}/{side}": factor
        for title, rows in titles.items()
        for name, factors in rows.factors.items()
        for side, factor in zip(_SIDES, factors, strict=True)
    }


def _record(dictionary: GradientDictionary) -> dict[str, Any]:
    return {
        "is_tied": dictionary.is_tied,
        "threshold": dictionary.threshold,
        "n_rounds": dictionary.encoder.n_rounds,
    }


def _read(
    tensors: Mapping[str, Tensor], whole: Part, params: Mapping[str, ParamRecord], origin: Origin
) -> tuple[GradientDictionary, Collection[str]]:
    titles = ("v_out",) if whole.flag("is_tied") else ("v_out", "v_in")
    directions = {title: _directions(tensors, title, params, origin) for title in titles}
    v_out = directions["v_out"]
    _check_unit(v_out, origin)
    if "v_in" in directions and directions["v_in"].n_features != v_out.n_features:
        origin.refuse(f"holds {v_out.n_features} directions in v_out and {directions['v_in'].n_features} in v_in")
    n_rounds = None if whole.is_null("n_rounds") else whole.count("n_rounds", least=1, most=v_out.n_features)
    threshold = whole.number("threshold", least=0)
    known = {f"{title}/{name}/{side}" for title in titles for name in params for side in _SIDES}
    return GradientDictionary(directions.get("v_in", v_out), v_out, threshold, Encoder(n_rounds)), known


def _directions(tensors: Mapping[str, Tensor], title: str, params: Mapping[str, ParamRecord], origin: Origin) -> LowRank:
    """Both factors of every parameter, of the shapes that its record says.

    Raises:
        StoreError: One is missing, or of another shape or dtype.
    """
    factors = {}
    for name, record in params.items():
        pair = tuple(_factor(tensors, f"{title}/{name}/{side}", origin) for side in ("left", "right"))
        shapes = [tuple(tensor.shape) for tensor in pair]
        n_features, rank = shapes[0][0], shapes[0][2]
        if min(n_features, rank) < 1 or shapes != [(n_features, d, rank) for d in record.matrix_shape]:
            origin.refuse(
                f"holds {title}/{shown(name)} of shapes {shapes[0]} and {shapes[1]}; accepted: [feature, "
                f"{record.matrix_shape[0]}, rank] and [feature, {record.matrix_shape[1]}, rank] with at least one of each"
            )
        factors[name] = pair
    if len({(len(left), left.dtype) for pair in factors.values() for left in pair}) != 1:
        origin.refuse(f"holds {title} whose parameters differ in the number of features or in dtype")
    return LowRank(factors)


def _factor(tensors: Mapping[str, Tensor], name: str, origin: Origin) -> Tensor:
    factor = tensors.get(name)
    if factor is None:
        origin.refuse(f"lacks the tensor {shown(name)}")
    if not factor.is_floating_point() or factor.dim() != 3 or not bool(factor.isfinite().all()):
        origin.refuse(
            f"holds {shown(name)}, {factor.dtype} of shape {tuple(factor.shape)}; accepted: finite floats [feature, d, rank]"
        )
    return factor


def _check_unit(v_out: LowRank, origin: Origin) -> None:
    norm = v_out.map(lambda tensor: tensor.float() if tensor.dtype != torch.float64 else tensor).norm()
    worst = int((norm - 1).abs().nan_to_num(torch.inf).argmax())
    if not abs(float(norm[worst]) - 1) <= _OFF_UNIT:
        origin.refuse(f"holds v_out whose direction {worst} has norm {float(norm[worst]):.4g}; accepted: 1")


DIRECTIONS = SavedKind(FORMAT, ("is_tied", "threshold"), ("n_rounds",), ALWAYS, _tensors, _record, _read)
"""Directions of features."""
