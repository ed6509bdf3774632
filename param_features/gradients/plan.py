"""Choosing each parameter's route, and checking the choice against plain autograd on the user's own model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor, nn

from param_features.errors import AdapterError, ModelStateError, NoGradientError
from param_features.gradients.capture import Capture, with_gradients
from param_features.gradients.cut import find_cut
from param_features.gradients.dense import gradients_of
from param_features.gradients.engine import GradientEngine, Origin, Routes
from param_features.gradients.foreign_forward import DISAGREES, FAILS, unproven_rules
from param_features.gradients.head import LinearHead, gives_output
from param_features.gradients.mapping import CANNOT_MAP
from param_features.gradients.operations import Viewed
from param_features.gradients.owners import gathering_sites
from param_features.gradients.rules.registry import rule_for
from param_features.gradients.types import Gradients
from param_features.params import Adapter, ParamSubset, ParamView, Watched, all_parameters, held_still
from param_features.problem import ModelInputs, OutputInfo, Problem

_GATHERED_ROWS = 16
_INFLUENCE_ROWS = 256
_NO_GRADIENT = "no gradient reaches it on two samples"
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def build_engine(problem: Problem, say: Callable[[str], None]) -> GradientEngine:
    """Plan the engine, and say which parameters take the slow route.

    Raises:
        NoGradientError: The output is not computed from a parameter.
    """
    engine = plan_engine(problem)
    check_influence(engine, problem.data)
    for name, why in engine.routes.why_dense.items():
        say(f"{name}: dense gradients ({why}); slower, the same answer.")
    return engine


def plan_engine(problem: Problem) -> GradientEngine:
    """Give every parameter a factored rule where one exists and holds on this model, the dense route otherwise.

    Two samples are compared with a loop of `torch.autograd.grad`, sample by sample, so that a rule is never trusted
    where the model uses the parameter in a way its rule does not know. Cost: a few passes over two rows.

    Raises:
        AdapterError: The model reads a parameter past the module that holds it, so that no route can follow it.
    """
    adapter, subset, output = problem.adapter, problem.subset, problem.output
    taps = {view.name: adapter.taps(view) for view in subset.views}
    ruled = {name: uses for name, uses in taps.items() if uses and all(rule_for(use.rule, use.attribute) for use in uses)}
    routes, positions = _routes(subset, ruled, {}), problem.positions.elsewhere
    gathering = gathering_sites(adapter, [tap for uses in ruled.values() for tap in uses], problem.data)
    engine = GradientEngine(adapter, subset, routes, output.per_position, positions, gathering)
    check = _Check(engine, problem.data.rows(slice(0, 2)), output, problem.data)
    unproven = unproven_rules(engine, check.inputs)
    engine = replace(engine, routes=_routes(subset, ruled, unproven))
    check = replace(check, engine=engine)
    through_head = _through_head(check, engine.routes)
    if through_head is not None:
        return _noted(engine, through_head, problem)
    routes = _watched(check, _routes(subset, ruled, unproven | check.failures(engine.routes)))
    routes = replace(routes, is_vmapped=check.vmap_works(routes))
    check.refuse_second_handles(routes)
    through_head = _through_head(check, routes) if routes.watched else None
    return _noted(engine, through_head or routes, problem)


def _through_head(check: "_Check", routes: Routes) -> Routes | None:
    """The routes by way of the head, where all parameters lie below it and it makes the outputs; None otherwise."""
    adapter = check.engine.adapter
    head, through_head = adapter.head(), replace(routes, through_head=True)
    if head is None or routes.dense or _holds_one(head, check.engine.subset):
        return None
    if not gives_output(adapter, check.inputs) or check.failures(through_head):
        return None
    product = LinearHead.of(adapter)
    return _with_cut(check, replace(through_head, is_linear=product is not None and product.agrees(head)))


def _holds_one(head: nn.Module, subset: ParamSubset) -> bool:
    """Whether a parameter is the head's own, which its cotangents would go past."""
    return any(view.stored is parameter for parameter in all_parameters(head) for view in subset.views)


def _watched(check: "_Check", routes: Routes) -> Routes:
    """The routes with those dense parameters watched at torch's operations whose every use is understood there."""
    open_names = [name for name in routes.dense if routes.why_dense[name] != _NO_GRADIENT]
    views = [view for name in open_names if Viewed.is_known(view := check.engine.subset[name])]
    views = check.understood(views) if views else []
    for is_shared in (False, True):
        watched = {view.name: Viewed.of(view, is_shared=is_shared) for view in views if view.name in routes.dense}
        failures = check.failures(Routes({}, watched=watched)) if watched else {}
        agreed = {name: viewed for name, viewed in watched.items() if name not in failures}
        why = {name: reason for name, reason in routes.why_dense.items() if name not in agreed}
        routes = replace(routes, watched=routes.watched | agreed, dense=tuple(why), why_dense=why)
    return routes


def _noted(engine: GradientEngine, routes: Routes, problem: Problem) -> GradientEngine:
    """The engine with its routes, and with what they were planned for."""
    subset, head = engine.subset, engine.adapter.head()
    tapped = [
        module
        for taps in routes.taps.values()
        for tap in taps
        for module in (tap.layer, tap.input.module, tap.output.module)
        if isinstance(module, nn.Module)  # an expert is a part of one
    ]
    used = [*tapped, *([] if head is None else [head])]
    rows = replace(problem, data=problem.data.rows(slice(0, 2)), pairs=None, known=None)
    forms = {view.name: (view.modes, len(view.places)) for view in subset.views}
    return replace(engine, routes=routes, origin=Origin(rows, Watched.of(engine.adapter.module, subset, used), forms))


def _with_cut(check: "_Check", routes: Routes) -> Routes:
    """The routes with a cut where the model has one that holds."""
    cut = replace(routes, cut=find_cut(replace(check.engine, routes=routes), check.inputs))
    return cut if cut.cut is not None and not check.failures(cut) else routes


def check_influence(engine: GradientEngine, inputs: ModelInputs) -> None:
    """Refuse a parameter that the output is not computed from, before gradients of many samples are taken.

    Only what autograd cannot reach is refused here: a gradient that is zero on some inputs may not be so on others.
    Cost: a forward pass of 32 rows, spread over the data; of up to 256 where a parameter is not reached at once.

    Raises:
        NoGradientError: Names the first parameter that is reached from none of these rows.
    """
    spread = torch.arange(0, len(inputs), -(-len(inputs) // _INFLUENCE_ROWS))
    unreached = list(engine.subset.views)
    for index in spread[torch.randperm(len(spread), generator=torch.Generator().manual_seed(0))].split(32):
        rows = inputs.rows(index.sort().values)
        with held_still(engine.adapter.module):
            leaves = [view.stored.requires_grad_() for view in unreached]
            output = engine.adapter.run(*rows.args, **rows.kwargs)
            gradients = (
                torch.autograd.grad(output.sum(), leaves, allow_unused=True)
                if output.requires_grad
                else [None] * len(leaves)
            )
        unreached = [view for view, gradient in zip(unreached, gradients, strict=True) if gradient is None]
        if not unreached:
            return
    with held_still(engine.adapter.module), with_gradients([unreached[0].owner]):
        engine.adapter.run(*inputs.rows(slice(0, 1)).args, **inputs.rows(slice(0, 1)).kwargs)
    raise NoGradientError(
        f"{unreached[0].name!r} has no gradient: the output of {len(spread)} inputs is not computed from it. Leave it out "
        "of params=, or check that the inputs reach it and that the model reads this Parameter itself."
    )


def _routes(subset: ParamSubset, ruled: dict, failures: dict[str, str]) -> Routes:
    why = {name: failures.get(name, "no layer rule") for name in subset.names if name not in ruled or name in failures}
    return Routes({name: ruled[name] for name in subset.names if name not in why}, tuple(why), why_dense=why)


@dataclass(frozen=True)
class _Check:
    """Compares routes with plain autograd on two samples."""

    engine: GradientEngine
    inputs: ModelInputs
    output: OutputInfo
    data: ModelInputs

    def failures(self, routes: Routes) -> dict[str, str]:
        """For each factored parameter whose rule fails here, why."""
        factored = [name for name in self.engine.subset.names if name in routes.factored]
        if not factored:
            return {}
        views = ParamSubset(tuple(self.engine.subset[name] for name in factored))
        engine = replace(self.engine, subset=views, routes=replace(routes, dense=()))
        try:
            gradients = self._gradients(engine)
            wrong = [name for name in factored if not self._agrees(gradients, name)]
        except ModelStateError:
            raise
        except FAILS as error:
            if len(factored) == 1:
                return {factored[0]: f"its rule failed: {error}" if self._has_gradient(factored[0]) else _NO_GRADIENT}
            failures = {name: why for alone in factored for name, why in self.failures(routes.only([alone])).items()}
            return failures or dict.fromkeys(factored, f"its rule failed beside the others': {error}")
        return {name: DISAGREES if self._has_gradient(name) else _NO_GRADIENT for name in wrong}

    def understood(self, views: list[ParamView]) -> list[ParamView]:
        """Those of some parameters whose every use is an operation with a rule, on as many rows for every input.

        A model that gathers rows from its samples, as many as there happen to be, shows it by their numbers. Cost: a forward
        pass; of up to 16 further inputs, one by one, where an output has no axis for positions.
        """
        watched = {view.name: Viewed.of(view) for view in views}
        engine = replace(self.engine, routes=Routes({}, watched=watched))
        try:
            capture = self._captured(engine, self.inputs)
            if any(use.output.dim() == 2 for use in capture.uses):
                spread = torch.arange(0, len(self.data), -(-len(self.data) // _GATHERED_ROWS)).tolist()
                single = [self._captured(engine, self.data.rows([row])) for row in spread]
                views = [view for view in views if len({each.n_rows_of(view.stored) for each in single}) == 1]
        except FAILS:
            return views  # each is then tried by itself
        return [view for view in views if capture.is_understood(view.stored)]

    def _captured(self, engine: GradientEngine, inputs: ModelInputs) -> Capture:
        with held_still(engine.adapter.module), engine.capturing(len(inputs)) as capture:
            engine.root(inputs, capture)
        return capture

    def vmap_works(self, routes: Routes) -> bool:
        """Whether the dense route runs under vmap and agrees with plain autograd."""
        if not routes.dense:
            return True
        views = ParamSubset(tuple(self.engine.subset[name] for name in routes.dense))
        engine = replace(self.engine, subset=views, routes=Routes({}, routes.dense, must_vmap=True))
        try:
            gradients = self._gradients(engine)
        except (*CANNOT_MAP, ValueError):
            return False
        return all(self._agrees(gradients, name) for name in views.names)

    def refuse_second_handles(self, routes: Routes) -> None:
        """Refuse a parameter that the dense loop gets wrong: replacing it does not reach all of its uses.

        What a layer rule or vmap gets right needs no loop: hooks are the module's, and vmap replaces too.

        Raises:
            AdapterError: The loop disagrees with plain autograd; names the parameter.
        """
        looped = (*routes.watched, *(() if routes.is_vmapped else routes.dense))
        if not looped:
            return
        views = ParamSubset(tuple(self.engine.subset[name] for name in looped))
        gradients = self._gradients(replace(self.engine, subset=views, routes=Routes({}, looped, is_vmapped=False)))
        for name in views.names:
            if not self._agrees(gradients, name):
                raise AdapterError(
                    f"The model reads {name!r} past the module that holds it (through a second handle, a cached or a "
                    "compiled copy), so it cannot be replaced for a while. Let forward read it as its module's attribute, "
                    "or leave it out of params=."
                )

    def _gradients(self, engine: GradientEngine) -> Gradients:
        gradients: Gradients = {}

        def fixed(output: Tensor, *_: Tensor) -> Tensor:
            return self._cotangent.to(output)

        engine.each_slot(self.inputs, self._positions, fixed, lambda _, slot_gradients: gradients.update(slot_gradients))
        return gradients

    @property
    def _positions(self) -> Int[Tensor, "batch slot"]:
        return last_positions(self.inputs, self.output).unsqueeze(1)

    @property
    def _cotangent(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(self.inputs), self.output.d_output, generator=generator, dtype=torch.float64)

    def _has_gradient(self, name: str) -> bool:
        return any(bool(row[name].any()) for row in self._oracle)

    def _agrees(self, gradients: Gradients, name: str) -> bool:
        view = self.engine.subset[name]
        matrices = gradients[name].dense().matrix
        if matrices.shape != (len(self.inputs), *view.matrix_shape):
            return False
        oracle = torch.stack([view.to_matrix(row[name]) for row in self._oracle]).to(matrices.dtype)
        tolerance = _TOLERANCE.get(view.tensor.dtype, 1e-3)
        return bool((matrices - oracle).norm() <= tolerance * oracle.norm() + 1e-12)

    @cached_property
    def _oracle(self) -> list[dict[str, Tensor]]:
        rows = []
        with held_still(self.engine.adapter.module):
            for row in range(len(self.inputs)):
                sample_inputs = self.inputs.rows([row])
                cotangent = torch.zeros(1, *self.output.shape[1:], dtype=self.output.dtype)
                if self.output.per_position:
                    cotangent[0, self._positions[row, 0]] = self._cotangent[row].to(cotangent.dtype)
                else:
                    cotangent = self._cotangent[row].reshape(cotangent.shape).to(cotangent.dtype)
                cotangent = cotangent.to(sample_inputs.tensors[0].device)
                rows.append(_plain_gradient(self.engine.adapter, self.engine.subset, sample_inputs, cotangent))
        return rows


def _plain_gradient(adapter: Adapter, subset: ParamSubset, inputs: ModelInputs, cotangent: Tensor) -> dict[str, Tensor]:
    """As `per_sample_gradient`, at the model's own parameters; `held_still` takes `requires_grad` back."""
    leaves = {view.name: view.stored.requires_grad_() for view in subset.views}
    gradients = gradients_of(adapter.run(*inputs.args, **inputs.kwargs), leaves, cotangent)
    return {view.name: view.layout.read(gradients[view.name]) for view in subset.views}


def last_positions(inputs: ModelInputs, output: OutputInfo) -> Int[Tensor, " batch"]:
    """The last real position of each row; zeros when a sample is an input."""
    return inputs.last_positions if output.per_position else torch.zeros(len(inputs), dtype=torch.long)
