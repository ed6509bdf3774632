"""Per-sample gradients by a loop of `torch.autograd.grad`, and the engine's own beside them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from param_features.gradients import GradientEngine, Routes, plan_engine
from param_features.params import Adapter, ParamSubset, adapter_for, select
from param_features.problem import KL, ModelInputs, Problem, inspect_output, read_inputs


@dataclass(frozen=True)
class Case:
    """A model with its planned engine, its data and one random cotangent for every place of the output."""

    model: nn.Module
    engine: GradientEngine
    data: ModelInputs
    cotangents: Tensor

    def with_routes(self, **changes) -> "Case":
        """The same case by other routes."""
        return replace(self, engine=replace(self.engine, routes=replace(self.engine.routes, **changes)))

    def dense(self, *, is_vmapped: bool) -> "Case":
        """The same case, every parameter by the dense route."""
        routes = Routes({}, dense=self.engine.subset.names, is_vmapped=is_vmapped)
        return replace(self, engine=replace(self.engine, routes=routes))

    def gradients(self, positions: Tensor | None = None) -> list[dict[str, Tensor]]:
        """By the engine, for each slot, [sample *shape of the parameter]."""
        positions = self.last_positions if positions is None else positions
        found = []

        def cotangent_of(outputs: Tensor, row: Tensor, position: Tensor) -> Tensor:
            chosen = self.cotangents[row, position] if self.engine.per_position else self.cotangents[row].flatten(1)
            assert chosen.shape == outputs.shape
            return chosen

        def consume(slot: int, gradients) -> None:
            assert slot == len(found)
            found.append({name: self.engine.subset[name].from_matrix(g.dense().matrix) for name, g in gradients.items()})

        self.engine.each_slot(self.data, positions, cotangent_of, consume)
        return found

    @property
    def last_positions(self) -> Tensor:
        return torch.full((len(self.data), 1), self.cotangents.shape[1] - 1 if self.engine.per_position else 0)

    def by_autograd(self, positions: Tensor | None = None) -> dict[str, Tensor]:
        """One sample at a time, on the model's own parameters, which are left with `requires_grad` as they were."""
        positions = (self.last_positions if positions is None else positions)[:, 0]
        tensors = [view.stored for view in self.engine.subset.views]
        flags = [tensor.requires_grad for tensor in tensors]
        rows = []
        for index, position in enumerate(positions):
            for tensor in tensors:
                tensor.requires_grad_(True)
            one = self.data.rows([index])
            output = self.engine.adapter.tensor_of(self.model(*one.args, **one.kwargs))[0]
            chosen = (output[position], self.cotangents[index, position])
            output, cotangent = chosen if self.engine.per_position else (output, self.cotangents[index])
            grads = torch.autograd.grad((output * cotangent).sum(), tensors, allow_unused=True)
            rows.append([torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)])
        for tensor, flag in zip(tensors, flags, strict=True):
            tensor.requires_grad_(flag)
        views = self.engine.subset.views
        return {
            view.name: torch.stack([view.layout.read(grad) for grad in grads])
            for view, grads in zip(views, zip(*rows, strict=True), strict=True)
        }


def problem_of(adapter: Adapter, subset: ParamSubset, data: ModelInputs) -> Problem:
    """A problem whose divergence plays no part."""
    return Problem(adapter, subset, data, inspect_output(adapter, data), KL(), "sample")


def case_of(model: nn.Module, params="*", *, tokens=None, inputs=None, seed: int = 0) -> Case:
    """Plan the engine as `pf.decompose` does."""
    adapter = adapter_for(model)
    subset = select(adapter.views(), params, adapter.aliases(), adapter.parts())
    data = read_inputs(adapter, tokens, inputs)
    problem = problem_of(adapter, subset, data)
    output, generator = problem.output, torch.Generator().manual_seed(seed)
    cotangents = torch.randn(len(data), *output.shape[1:], generator=generator, dtype=torch.float64).to(output.dtype)
    return Case(model, plan_engine(problem), data, cotangents)


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Equal up to rounding, parameter by parameter; a gradient that is zero must be zero up to rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        gap = (found[name] - tensor).norm()
        assert gap <= tolerance * tensor.norm() + 1e-13, f"{name}: off by {gap:.1e} of {tensor.norm():.1e}"


def assert_every_route_agrees(case: Case, *, vmaps: bool = True) -> None:
    """The planned routes, the dense route mapped and in a loop, and plain autograd give the same gradients."""
    expected = case.by_autograd()
    assert any(tensor.norm() > 1e-3 for tensor in expected.values())
    assert_equal_gradients(case.gradients()[0], expected)
    assert_equal_gradients(case.dense(is_vmapped=False).gradients()[0], expected)
    if vmaps:
        assert_equal_gradients(case.dense(is_vmapped=True).gradients()[0], expected)
