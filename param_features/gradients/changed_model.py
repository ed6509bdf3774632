"""A model that changes after its features were bound to it: followed with a notice where the answer is clear, or refused."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from param_features.errors import FingerprintError, ModelStateError
from param_features.gradients.engine import GradientEngine
from param_features.gradients.plan import plan_engine
from param_features.machine import notify
from param_features.params import ParamSubset, ParamView, check_present, check_ready, has_stand_ins, is_any_edited
from param_features.problem import inspect_output

_AGAIN = "Put it back as it was, or decompose the model as it is now."


def following(engine: GradientEngine) -> GradientEngine:
    """The engine for the model as it is now; a `Notice` where the decomposed parameters have changed since it was planned.

    Other weights, in place or in a module that took the place of another, are followed: the routes are planned anew where
    modules changed. What this library itself adds to weights for a while is no change.

    Cost: a walk through the modules and two sums over the parameters; a plan where modules changed.

    Raises:
        ModelStateError: A parameter is gone, or has a device or a precision that the features or their inputs have not.
        FingerprintError: A parameter has another shape, or is tied otherwise.
    """
    if engine.origin is None or has_stand_ins():
        return engine
    now = _planned(engine)
    assert now.origin is not None
    before = engine.origin.watched
    changed = before.other_values(now.subset)
    if changed:
        notify(
            f"{_named(changed)} other weights than those that were decomposed. The model is read as it is now, along the "
            "features of the weights before: decompose it anew for features of its own."
        )
    elif not before.has_modules_of(now.origin.watched):
        notify(
            f"{engine.subset.names[0]!r} or a layer around it was replaced, wrapped or moved in the model, with the same "
            "weights. The model is read as it is now."
        )
    return now


def is_as_planned(engine: GradientEngine) -> bool:
    """Whether the parameters are those that the engine was planned for, and nothing is steered: what was read then holds."""
    origin = engine.origin
    if origin is None or has_stand_ins() or is_any_edited():
        return False
    return origin.watched.is_in_place and not origin.watched.other_values(engine.subset)


def _planned(engine: GradientEngine) -> GradientEngine:
    """The engine, or the latest that followed it, if the model still has its modules; else a new one."""
    for known in (engine, *engine.followers[-1:]):
        if known.origin is not None and known.origin.watched.is_in_place:
            return known
    assert engine.origin is not None
    check_ready(engine.adapter)
    subset = _subset_now(engine)
    problem = replace(engine.origin.problem, subset=subset)
    dtype = inspect_output(problem.adapter, problem.data).dtype
    followed = plan_engine(replace(problem, output=replace(problem.output, dtype=dtype)))
    engine.followers[:] = [followed]
    return followed


def _subset_now(engine: GradientEngine) -> ParamSubset:
    known = engine.adapter.views() | engine.adapter.parts()
    assert engine.origin is not None
    subset = ParamSubset(tuple(_view_now(engine, view, known) for view in engine.subset.views))
    check_present(subset)
    for view, kind in zip(subset.views, engine.origin.watched.kinds, strict=True):
        _check_kind(view, *kind, has_float_inputs=any(map(torch.is_floating_point, engine.origin.problem.data.tensors)))
    subset.check_finite()
    return subset


def _view_now(engine: GradientEngine, view: ParamView, known: Mapping[str, ParamView]) -> ParamView:
    """Where a parameter is now, under its old name: in its module, wherever that lies, or else in that of its name."""
    held = [
        other for other in known.values() if (view.owner, view.attribute) in other.places and other.layout == view.layout
    ]
    now = next(iter(held), None) or known.get(engine.adapter.aliases().get(view.name, view.name))
    if now is None:
        raise ModelStateError(f"The model no longer has {view.name!r}, which was decomposed. {_AGAIN}")
    modes, n_places = engine.origin.forms[view.name]  # pyright: ignore[reportOptionalMemberAccess]
    if now.modes != modes:
        raise FingerprintError(f"{view.name!r} is now {now.modes.matrix_shape}, and was {modes.matrix_shape}. {_AGAIN}")
    if len(now.places) != n_places:
        raise FingerprintError(
            f"{view.name!r} was held by {n_places} module(s) when it was decomposed and is held by {len(now.places)} now "
            f"(tied weights), which makes other gradients. {_AGAIN}"
        )
    return replace(now, name=view.name)


def _check_kind(view: ParamView, dtype: torch.dtype, device: torch.device, *, has_float_inputs: bool) -> None:
    """Refuse another device or precision than the features have, or another dtype than the inputs kept with them."""
    now, precision = view.stored, torch.promote_types(dtype, torch.float32)
    is_other = torch.promote_types(now.dtype, torch.float32) != precision or (has_float_inputs and now.dtype != dtype)
    if now.device != device or is_other:
        raise ModelStateError(
            f"{view.name!r} is {now.dtype} on {now.device} now and was {dtype} on {device} when it was decomposed, as its "
            f"features and their inputs still are. Bring the model back with model.to({device.type!r}, {dtype}), or "
            "decompose it as it is now."
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 1} more have" if len(names) > 1 else " has"
    return f"{names[0]!r}{more}"
