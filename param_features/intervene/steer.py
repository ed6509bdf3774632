"""Steering: the model runs with W + Σ δ_k v_k while a block lasts."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import InputError, SettingError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine, check_rules, following
from param_features.intervene.combine import combined
from param_features.intervene.late_backward import refusing_late_backward
from param_features.intervene.positions import Where, added_at
from param_features.machine import Block, shown
from param_features.params import ParamSubset

Coefficients = Mapping[int, float]
"""δ by feature: how far to step along its unit-norm direction, in units of the weights."""


class Steering(Block):
    """A change of the weights that lasts as long as a `with` block; may be entered many times, also inside itself."""

    def __init__(self, coefficients: Coefficients, begin: Callable[[], AbstractContextManager]) -> None:
        """Remember how to begin; nothing is changed yet."""
        shown = ", ".join(f"{feature}: {delta:+.3g}" for feature, delta in list(coefficients.items())[:8])
        super().__init__(begin, f"features.steer({{{shown}{', …' if len(coefficients) > 8 else ''}}})")
        self._coefficients = dict(coefficients)

    @property
    def coefficients(self) -> dict[int, float]:
        """δ by feature."""
        self._is_used = True
        return self._coefficients

    def __enter__(self) -> "Steering":
        """Change the weights."""
        super().__enter__()
        return self

    def __repr__(self) -> str:
        """The steering with its first few coefficients, and whether it acts."""
        return f"Steering({self._call.removeprefix('features.steer(').removesuffix(')')}), {self._state}"


def steering(engine: GradientEngine, v_out: LowRank, coefficients: Coefficients, where: Where | None) -> Steering:
    """W + Σ δ_k v_k for the whole batch, or where a mask says so."""
    if where is None:
        deltas = deltas_of(v_out, coefficients, engine.subset)

        def begin() -> AbstractContextManager:
            now = following(engine)
            return _block(now, now.subset.edited(deltas if now is engine else deltas_of(v_out, coefficients, now.subset)))

        return Steering(coefficients, begin)
    _with_rules(engine)
    direction = combined_direction(v_out, coefficients)

    def begin_at() -> AbstractContextManager:
        now = _with_rules(engine)
        return _block(now, added_at(now, direction, where))

    return Steering(coefficients, begin_at)


def _with_rules(engine: GradientEngine) -> GradientEngine:
    """The engine for the model as it is now, of which every parameter has a layer rule."""
    now = following(engine)
    check_rules(
        now,
        needs="where= needs",
        instead="Leave where= out: the weight is then changed for the whole batch.",
    )
    return now


@contextmanager
def _block(engine: GradientEngine, change: AbstractContextManager) -> Iterator[None]:
    weights: dict[nn.Module, list[Tensor]] = {}
    for view in engine.subset.views:
        for owner, _ in view.places:
            weights.setdefault(owner, []).append(view.stored)
    with refusing_late_backward(engine.adapter.module, weights), change:
        yield


def deltas_of(v_out: LowRank, coefficients: Coefficients, subset: ParamSubset) -> dict[str, Float[Tensor, "*shape"]]:
    """Σ δ_k v_k as tensors of the parameters' shapes, by the subset's names. Cost: one |W|."""
    rows = v_out.rows(list(coefficients))
    matrices = combined(rows, torch.tensor(list(coefficients.values()), dtype=torch.float64))
    return {view.name: view.from_matrix(matrix) for view, matrix in zip(subset.views, matrices.values(), strict=True)}


def combined_direction(v_out: LowRank, coefficients: Coefficients) -> LowRank:
    """Σ δ_k v_k as one direction, whose rank is the sum of theirs."""
    rows = v_out.rows(list(coefficients))
    factors = {}
    for name, (left, right) in rows.factors.items():
        delta = torch.tensor(list(coefficients.values()), dtype=left.dtype, device=left.device)
        scaled = left * delta[:, None, None]
        factors[name] = tuple(part.transpose(0, 1).flatten(1).unsqueeze(0) for part in (scaled, right))
    return LowRank(factors)


def read_coefficients(coefficients: Any, check_feature: Callable[[int], None]) -> dict[int, float]:
    """The step δ of each feature, out of what the user gives as {feature: δ}.

    Raises:
        SettingError: It is no mapping, is empty, or a δ is no finite number.
        FeatureCountError: There is no such feature.
    """
    if not isinstance(coefficients, Mapping) or not coefficients:
        raise SettingError(f"Got {coefficients!r}. Give features with their step lengths, such as {{3: 0.5}}.")
    checked = {}
    for feature, delta in coefficients.items():
        check_feature(feature)
        number = delta.item() if isinstance(delta, Tensor) and delta.numel() == 1 else delta
        if not isinstance(number, Real) or isinstance(number, bool) or not math.isfinite(number):
            raise SettingError(f"δ of feature {feature} is {delta!r}. Give a finite number, such as 0.5.")
        checked[feature] = float(number)
    return checked


def read_where(where: Any, per_position: bool) -> Where | None:
    """The mask of sequences or positions that the user gives as where=; None for everywhere.

    Raises:
        InputError: It is no tensor (or list) of truth values, or has too many axes.
    """
    if where is None:
        return None
    try:
        mask = torch.as_tensor(where)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"where= is {shown(where)}. Give truth values, such as tokens == 5 or [True, False].") from None
    n_most = 2 if per_position else 1
    if mask.dtype != torch.bool or not 1 <= mask.dim() <= n_most or not mask.numel():
        shapes = "[batch] or [batch, pos]" if per_position else "[batch], since a sample is an input here"
        raise InputError(
            f"where= is {mask.dtype} of shape {tuple(mask.shape)}. Give truth values {shapes}, such as tokens == 5 or "
            "[True, False]."
        )
    return mask
