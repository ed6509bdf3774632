"""Adding a feature for some sequences or positions only: at the layer's output, where the weight itself stays as it is."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from param_features.errors import AdapterError, InputError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine, argument, at_least_float32, by_row
from param_features.gradients.rules import required_rule
from param_features.intervene.within_forward import WithinForward
from param_features.machine import full_precision, has_saved_tensor_hooks, saved_as_they_are, uncompiled
from param_features.params import Tap, hooked

Where = Bool[Tensor, "batch"] | Bool[Tensor, "batch pos"]


@contextmanager
def added_at(engine: GradientEngine, direction: LowRank, where: Where) -> Iterator[None]:
    """Run the model as if a direction were added to its parameters, for the marked sequences or positions alone.

    What a weight's change ΔW adds to its layer's output is the transpose of the layer rule applied to ΔW (ΔW a for a
    matrix), so it is added there. No weight is touched. Cost: one small product per call of the layer.

    Args:
        engine: Knows where each parameter's input and output can be tapped.
        direction: One direction, δ and all.
        where: True where it acts: [batch], or [batch pos] in a model of tokens.

    Raises:
        InputError: Inside the block, the model is run on a batch of another shape.
    """
    with uncompiled(), ExitStack() as hooks, hooked():
        for name, taps in engine.routes.taps.items():
            for tap in taps:
                for handle in _hooked(tap, direction.factors[name], where):
                    hooks.callback(handle.remove)
        yield


def check_rules(engine: GradientEngine, *, needs: str, instead: str) -> None:
    """Refuse parameters whose part of an output cannot be told apart.

    Args:
        engine: Knows each parameter's route.
        needs: What needs the rule, with its verb.
        instead: What to do without.

    Raises:
        AdapterError: A parameter has no layer rule here, or its layer goes on to compute from what it gives.
    """
    for name, taps in engine.routes.taps.items():
        if any(tap.output in engine.gathering for tap in taps):
            raise AdapterError(
                f"{needs} the positions of a batch in order, and the layer of {name!r} is called on some. {instead}"
            )
        if any(tap.input.which == "call" for tap in taps):
            raise AdapterError(
                f"{needs} what {name!r} itself gives, and its layer shows only what all experts give together. {instead}"
            )
    dense = [name for name in engine.subset.names if name not in engine.routes.taps]
    if dense:
        why = engine.routes.why_dense.get(dense[0], "its layer shows no module around it")
        raise AdapterError(f"{needs} a layer rule for every parameter, and {dense[0]!r} has none here ({why}). {instead}")


def _hooked(tap: Tap, factors: tuple[Tensor, Tensor], where: Where) -> Iterator[WithinForward | RemovableHandle]:
    """Add the direction's part to the tapped output, computed from the tapped input of the same pass."""

    def act(source: Tensor, output: Tensor) -> Tensor:
        change = _change(tap, source, output, factors, len(where))
        return output + (change * _spread(where, output)).to(output.dtype)

    return acting_at(tap, act)


def acting_at(tap: Tap, act: Callable[[Tensor, Tensor], Tensor]) -> Iterator[WithinForward | RemovableHandle]:
    """Act at a tap so that each call of its layer passes on what `act` makes of (tapped input, tapped output).

    Hooks of the user and traces of nnsight see the output with its change, as they would with a changed weight.
    """
    inputs: list[Tensor] = []

    def change(forward: Callable, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return act(inputs[-1], output) if isinstance(output, Tensor) and inputs else output

    yield WithinForward(tap.output.module, change)
    yield from _watched(tap, lambda tensor: inputs.__setitem__(slice(None), [tensor]))


def _watched(tap: Tap, receive: Callable[[Tensor], None]) -> Iterator[WithinForward | RemovableHandle]:
    """Hand on the tensor that reaches the tap's input, after every hook that might change it."""
    module, place = tap.input.module, tap.input.which
    if place == "output":

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            receive(output)

        handle = module.register_forward_hook(keep)
        yield handle
        # Hooks that the user adds later run later: before each call ours moves behind them.
        hooks = cast(OrderedDict, module._forward_hooks)
        yield module.register_forward_pre_hook(lambda *_: hooks.move_to_end(handle.id))
        return

    def watch(forward: Callable, *args: Any, **kwargs: Any) -> Any:
        tensor = argument(args, kwargs, place)
        if tensor is not None:
            receive(tensor)
        return forward(*args, **kwargs)

    yield WithinForward(module, watch)


def _change(tap: Tap, source: Tensor, output: Tensor, factors: tuple[Tensor, Tensor], n_rows: int) -> Tensor:
    """The change of the output: ∂⟨rule(source, δ), v⟩/∂δ, which is linear in δ."""
    rule = required_rule(tap.rule, tap.attribute)
    with full_precision(), torch.inference_mode(False):
        source = source.clone() if source.is_inference() else source
        source = by_row(at_least_float32(source) if source.is_floating_point() else source, n_rows)
        left, right = (factor.to(source.device) for factor in factors)
        if source.is_floating_point():
            left, right = left.to(source.dtype), right.to(source.dtype)

        def overlap(delta: Tensor) -> Tensor:
            gradient = rule(tap.layer, source, by_row(delta, n_rows))
            gradient = gradient if tap.rows is None else gradient.rows(tap.rows.to(delta.device))
            return gradient.inner(left, right).sum()

        return _transposed(overlap, torch.zeros(output.shape, dtype=left.dtype, device=output.device))


def _transposed(function: Callable[[Tensor], Tensor], probe: Tensor) -> Tensor:
    """The gradient of a function that is linear in `probe`, with a graph to whatever else it is computed from.

    By torch.func, which can itself be mapped and differentiated forward; it takes no saved-tensor hooks, and under these no
    other transform of torch.func is about.
    """
    if not has_saved_tensor_hooks():
        value, pull, *_ = torch.func.vjp(function, probe)
        return pull(torch.ones_like(value))[0]
    has_graph = torch.is_grad_enabled()
    with saved_as_they_are(), torch.enable_grad():
        probe.requires_grad_()
        gradient = torch.autograd.grad(function(probe), probe, create_graph=True)[0]
    return gradient if has_graph else gradient.detach()


def _spread(where: Where, output: Tensor) -> Tensor:
    """The mask with the output's axes: [batch pos ...], batch and positions perhaps merged into one."""
    where = where.to(output.device)
    merged = where.numel()
    if where.dim() == 2 and output.shape[:2] != where.shape and output.shape[:1] == (merged,):
        where = where.flatten()
    elif where.dim() == 1 and len(output) > merged and len(output) % merged == 0:
        where = where.repeat_interleave(len(output) // merged)
    if output.shape[: where.dim()] != where.shape:
        raise InputError(
            f"where= has shape {tuple(where.shape)}, and the model is run on {tuple(output.shape[: where.dim()])}. Run it "
            "on the sequences that where= speaks of; one truth value for each sequence, [batch], suits every length."
        )
    return where.reshape(*where.shape, *(1,) * (output.dim() - where.dim()))
