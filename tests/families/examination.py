"""What the library does on one family, each claim held against plain autograd and an edited model.

Only the library's own refusals are taken down as such: any other error, and any wrong number, is raised.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import param_features as pf
from param_features.errors import ParamFeaturesError
from param_features.params import Adapter, ParamView, adapter_for, held_still
from tests.adapters.zoo import assert_same, snapshot
from tests.families.family import Family
from tests.oracle import Case, assert_equal_gradients, case_of

_STEP = 0.5
_FIT = {"n_features": 2, "l0": 1, "steps": 2, "n_samples": 30, "progress": False}


@dataclass(frozen=True)
class Findings:
    """A row of the table.

    Attributes:
        model: Class of the model.
        factored: Parameters whose gradients stay factored.
        dense: Parameters that take the dense route, each with the reason.
        refused: What is refused, each with the error: a parameter's name, `"jvp"`, `"where="`, or `"everything"`.
    """

    model: str
    factored: tuple[str, ...] = ()
    dense: dict[str, str] = field(default_factory=dict)
    refused: dict[str, ParamFeaturesError] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """A family's model on two rows."""

    family: Family
    model: Any

    @classmethod
    def of(cls, family: Family) -> "Examination":
        return cls(family, family.model())

    @cached_property
    def adapter(self) -> Adapter:
        return adapter_for(self.model)

    @cached_property
    def data(self) -> dict[str, Any]:
        return self.family.data(2)

    def output(self) -> Tensor:
        """What the user's own call of the model gives."""
        args, kwargs = self._arguments
        with torch.no_grad():
            return self.adapter.tensor_of(self.model(*args, **kwargs)).clone()

    @property
    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value = next(iter(self.data.values()))
        return ((), value) if isinstance(value, dict) else ((value,), {})

    @cached_property
    def reached(self) -> list[ParamView]:
        """The parameters that autograd reaches from the output."""
        args, kwargs = self._arguments
        views = list(self.adapter.views().values())
        with held_still(self.adapter.module):
            leaves = [view.stored.requires_grad_() for view in views]
            output = self.adapter.tensor_of(self.model(*args, **kwargs))
            gradients = torch.autograd.grad(output.sum(), leaves, allow_unused=True)
        return [view for view, gradient in zip(views, gradients, strict=True) if gradient is not None]

    def findings(self) -> Findings:
        """Everything that is claimed about the family."""
        named = type(getattr(self.model, "original_model", self.model)).__name__
        self.output()  # some models settle at their first run
        before = snapshot(self.adapter.module)
        try:
            names = self._check_names()
            case, refused = self._gradients(names)
            refused |= self._check_features()
        except ParamFeaturesError as error:
            return Findings(named, refused={"everything": error})
        finally:
            assert_same(before, snapshot(self.adapter.module))
        routes = case.engine.routes
        return Findings(named, tuple(routes.taps), dict(routes.why_dense), refused)

    def _check_names(self) -> list[str]:
        """Every parameter that the output is computed from is listed under a name that chooses it."""
        listed = str(pf.list_params(self.model))
        names = [view.name for view in self.reached]
        assert names and all(name in listed for name in names)
        return names

    def _gradients(self, names: list[str]) -> tuple[Case, dict[str, ParamFeaturesError]]:
        """The engine's gradients of two samples are those of a loop of autograd, for all parameters together."""
        refused: dict[str, ParamFeaturesError] = {}
        try:
            case = case_of(self.model, names, **self.data)
        except ParamFeaturesError:
            for name in names:
                try:
                    case_of(self.model, name, **self.data)
                except ParamFeaturesError as error:
                    refused[name] = error
            if len(refused) == len(names):
                raise
            case = case_of(self.model, [name for name in names if name not in refused], **self.data)
        expected = case.by_autograd()
        assert sum(bool(gradient.norm() > 1e-9) for gradient in expected.values()) > len(expected) / 2
        assert_equal_gradients(case.gradients()[0], expected, self.family.rounding)
        return case, refused

    def _check_features(self) -> dict[str, ParamFeaturesError]:
        """Features of one parameter: activations by each route, steering, and the model afterwards."""
        features = pf.decompose(self.model, self.family.param, **self.family.data(24), **_FIT)
        refused: dict[str, ParamFeaturesError] = {}
        for route in ("vjp", "jvp"):
            try:
                self._check_activations(features, route)
            except ParamFeaturesError as error:
                refused[route] = error
        self._check_steering(features)
        try:
            self._check_steering(features, where=[True, False])
        except ParamFeaturesError as error:
            refused["where="] = error
        return refused

    def _check_activations(self, features: pf.ParamFeatures, route: str) -> None:
        """At the last sample of either row they are V_in on autograd's gradient of the divergence."""
        found = features.activations(**self.data, route=route)
        args, kwargs = self._arguments
        views = features.engine.subset.views  # several for a stack of experts
        with held_still(self.adapter.module):
            leaf = views[0].stored.requires_grad_()
            output = self.adapter.tensor_of(self.model(*args, **kwargs))
            samples = output[:, -1] if found.dim() == 3 else output.flatten(1)
            values = features.question.value(samples)
            gradients = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values])
        expected = torch.zeros(len(values), features.n_features, dtype=torch.float64)
        for view, directions in zip(views, features.v_in.materialize().values(), strict=True):
            matrices = torch.stack([view.to_matrix(view.layout.read(gradient)) for gradient in gradients])
            expected += torch.einsum("soi,foi->sf", matrices.double(), directions.double())
        found = (found[:, -1] if found.dim() == 3 else found).double()
        assert expected.norm() > 1e-9, "too small to say anything"
        assert (found - expected).norm() <= self.family.rounding * expected.norm(), f"activations by {route}"

    def _check_steering(self, features: pf.ParamFeatures, where: list[bool] | None = None) -> None:
        """The effect is that of the weight edited by hand, in the rows that are steered; afterwards nothing is left."""
        before, edited = self.output(), self._edited(features)
        assert (edited - before).norm() > 1e-7 * before.norm()
        with features.steer({0: _STEP}, where=where):
            steered = self.output()
        expected = edited if where is None else torch.stack([edited[0], before[1]])
        gap = (steered - expected).norm()
        assert gap <= self.family.rounding * (edited - before).norm() + 1e-12, f"steering, where={where}"
        assert torch.equal(self.output(), before)

    def _edited(self, features: pf.ParamFeatures) -> Tensor:
        """The output with the feature's direction added to the weight in place."""
        views = features.engine.subset.views
        stored, kept = views[0].stored, views[0].stored.detach().clone()
        with torch.no_grad():
            for view in views:
                change = _STEP * features.direction(0)[view.name].to(stored)
                stored.copy_(view.layout.write(view.tensor + change, stored))
            output = self.output()
            stored.copy_(kept)
        return output
