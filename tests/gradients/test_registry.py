"""The registry of layer rules: look-up along the MRO, refusals, and a rule that a third party adds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from param_features.errors import RegistryError
from param_features.gradients import Factored, rules
from param_features.gradients.rules import register_rule, registry, rule_for
from tests.models import randomised
from tests.oracle import assert_every_route_agrees, case_of


@pytest.fixture(autouse=True)
def registered_only_here(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


class Transposed(nn.Module):
    """A foreign layer: y = x W, with no rule of its own, and by an operation that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        return torch.einsum("...i,io->...o", x, self.weight)


class Child(Transposed):
    pass


class LowRank(nn.Linear):
    """A linear layer with a parameter that nn.Linear has not."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.scale * functional.linear(x, self.weight, self.bias)


def case(layer):
    generator = torch.Generator().manual_seed(0)
    return case_of(
        randomised(nn.Sequential(layer, nn.Tanh()).double()), inputs=torch.randn(3, 4, generator=generator).double()
    )


def test_registering_twice_is_refused_and_keeps_the_first():
    first = rule_for(nn.Linear, "weight")
    with pytest.raises(RegistryError, match=r"'weight' already has the rule linear_weight.*subclass"):
        register_rule(nn.Linear, "weight")(lambda *_: None)
    assert rule_for(nn.Linear, "weight") is first


@pytest.mark.parametrize(
    ("key", "attribute", "known"),
    [
        (type("Sub", (nn.Linear,), {}), "weight", "linear_weight"),
        (nn.Conv1d, "bias", "convolution_bias"),
        ("matrix", "anything", "matrix"),
        (nn.Linear, "scale", None),
        (nn.Bilinear, "weight", None),
        ("nothing", "weight", None),
    ],
)
def test_look_up_follows_the_mro(key, attribute, known):
    assert getattr(rule_for(key, attribute), "__name__", None) == known


def test_a_subclass_may_have_a_rule_of_its_own():
    subclass = type("Sub", (nn.Linear,), {})
    own = register_rule(subclass, "weight")(lambda *_: None)
    assert rule_for(subclass, "weight") is own
    assert rule_for(nn.Linear, "weight") is not own


def test_a_subclass_that_leaves_forward_alone_inherits_the_rules():
    assert_every_route_agrees(found := case(type("Sub", (nn.Linear,), {})(4, 3)))
    assert set(found.engine.routes.taps) == {"0.weight", "0.bias"}


def test_a_subclass_with_another_forward_is_found_out():
    found = case(LowRank())
    assert found.engine.routes.taps == {}
    assert set(found.engine.routes.watched) == {"0.weight", "0.bias", "0.scale"}
    assert_every_route_agrees(found)


@pytest.mark.parametrize("layer", [Transposed, Child])
def test_a_third_partys_rule_is_used(layer):
    assert case(layer()).engine.routes.why_dense == {"0.weight": "no layer rule"}
    register_rule(Transposed, "weight")(
        lambda layer, inputs, delta: (
            Factored(inputs.flatten(1, -2).unsqueeze(1), delta.flatten(1, -2).unsqueeze(1))
            if inputs.dim() > 2
            else Factored(inputs.unsqueeze(1), delta.unsqueeze(1))
        )
    )
    found = case(layer())
    assert found.engine.routes.dense == ()
    assert_every_route_agrees(found)


def named(name: str, module: str, *bases: type) -> type:
    return type(name, bases or (Transposed,), {"__module__": module})


def transposed(layer, inputs, delta):
    return Factored(inputs.unsqueeze(1), delta.unsqueeze(1))


@pytest.mark.parametrize(
    ("cls", "is_known"),
    [
        (named("Foreign", "library"), True),
        (named("Foreign", "library.models.layers"), True),
        (named("Mine", "elsewhere", named("Foreign", "library.layers")), True),
        (named("Mine", "elsewhere", named("Between", "elsewhere", named("Foreign", "library"))), True),
        (named("Foreign", "other_library"), False),
        (named("Foreign", "library_two.layers"), False),
        (named("foreign", "library"), False),
    ],
    ids=["itself", "deep inside", "subclass", "subclass of one", "another library", "a longer name", "another name"],
)
def test_a_rule_by_package_and_class_is_found_along_the_mro(cls, is_known):
    register_rule("library.Foreign", "weight")(transposed)
    assert (rule_for(cls, "weight") is transposed) == is_known
    assert rule_for(cls, "other") is None
    found = case(cls())
    assert found.engine.routes.why_dense == ({} if is_known else {"0.weight": "no layer rule"})
    assert_every_route_agrees(found)


def test_the_nearest_class_wins_and_a_class_comes_before_its_name():
    parent = named("Parent", "library")
    child = named("Child", "library", parent)
    rules = {key: register_rule(key, "weight")(lambda *_: None) for key in ("library.Parent", parent, "library.Child")}
    assert rule_for(child, "weight") is rules["library.Child"]
    assert rule_for(parent, "weight") is rules[parent]
    own = register_rule(child, "weight")(lambda *_: None)
    assert rule_for(child, "weight") is own
    assert rule_for(named("Grandchild", "library", child), "weight") is own


def test_a_name_is_registered_once_like_a_class():
    register_rule("library.Foreign", "weight")(transposed)
    with pytest.raises(RegistryError, match=r"'library.Foreign', 'weight' already has the rule transposed"):
        register_rule("library.Foreign", "weight")(transposed)
    register_rule("library.Foreign", "bias")(transposed)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda layer, inputs, delta: Factored(delta.unsqueeze(1), inputs.unsqueeze(1)), "disagrees with autograd"),
        (lambda layer, inputs, delta: Factored(2 * inputs.unsqueeze(1), delta.unsqueeze(1)), "disagrees with autograd"),
        (lambda layer, inputs, delta: inputs["none"], "its rule failed"),
    ],
    ids=["transposed", "twice too large", "raises"],
)
def test_a_wrong_rule_is_never_used(rule, why):
    register_rule(Transposed)(rule)
    found = case(Transposed())
    assert why in found.engine.routes.why_dense["0.weight"]
    assert_every_route_agrees(found)


def test_every_file_of_rules_is_imported_by_the_room():
    """A rule whose file nobody imports is not registered, and its layers would take the dense route in silence."""
    folder = Path(rules.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    in_a_fresh_process = "import sys, param_features; print(*(m for m in sys.modules if m.startswith('param_features.')))"
    done = subprocess.run([sys.executable, "-c", in_a_fresh_process], capture_output=True, text=True, check=True)
    assert files <= {name.rpartition(".")[2] for name in done.stdout.split() if name.startswith(f"{rules.__name__}.")}
