"""What every call that reads a model refuses, alike: weights without values, that come and go, or that hold NaN."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import ModelStateError, NoGradientError, NonFiniteError

NAME = "0.weight"
INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
CALL = {"inputs": INPUTS, "n_samples": 30, "progress": False}
FIT = {"n_features": 3, "l0": 1, "steps": 3}
TAKE_GRADIENTS = {
    "decompose": lambda model, folder: pf.decompose(model, NAME, **CALL, **FIT),
    "harvest": lambda model, folder: pf.harvest(model, NAME, directory=folder / "store", **CALL),
    "estimate": lambda model, folder: pf.estimate(model, NAME, inputs=INPUTS, n_features=3),
    "sweep": lambda model, folder: pf.sweep(model, NAME, n_features=[2, 3], l0=[1], steps=3, **CALL),
}
READ_WEIGHTS = {
    "load": lambda model, folder: pf.load(folder / "saved", model=model),
    "edit": lambda model, folder: pf.load(folder / "saved").edit(model, {0: 0.1}),
    "steered": lambda model, folder: pf.load(folder / "saved").steered(model, {0: 0.1}),
}
CALLS = TAKE_GRADIENTS | READ_WEIGHTS | {"describe": lambda model, folder: pf.describe(model, inputs=INPUTS)}


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def offloaded() -> nn.Module:
    """Every weight on the CPU's side of a hook, on the meta device between calls."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(plain(), execution_device=torch.device("cpu"))


def partly_offloaded(folder) -> nn.Module:
    """The first layer on the disk."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.dispatch_model(plain(), {"0": "disk", "1": "cpu", "2": "cpu"}, "cpu", offload_dir=folder / "weights")


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return plain()


def with_nan() -> nn.Module:
    model = plain()
    with torch.no_grad():
        model.get_parameter(NAME)[0, 0] = torch.nan
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds features of the plain module."""
    path = tmp_path_factory.mktemp("problem")
    pf.decompose(plain(), NAME, **CALL, **FIT).save_pretrained(path / "saved")
    return path


def flags(model: nn.Module) -> list[tuple[bool, bool]]:
    return [(parameter.requires_grad, parameter.is_meta) for parameter in model.parameters()]


@pytest.mark.parametrize("call", CALLS)
def test_a_module_with_its_weights_serves_every_call(call, folder):
    CALLS[call](plain(), folder)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_chosen_weight_that_comes_and_goes(call, is_whole, folder, tmp_path):
    model = offloaded() if is_whole else partly_offloaded(tmp_path)
    before = flags(model)
    if call == "describe" and not is_whole:
        found = pf.describe(model, inputs=INPUTS)
        assert found.factored == ("2.weight", "2.bias")
        assert found.dense == dict.fromkeys(("0.weight", "0.bias"), "offloaded: its values come and go with each call")
    else:
        with pytest.raises(ModelStateError, match=f"offloaded '{NAME}'.*give the layers"):
            CALLS[call](model, folder)
    assert flags(model) == before


@pytest.mark.parametrize("call", CALLS)
def test_weights_on_the_meta_device(call, folder):
    with pytest.raises(ModelStateError, match=f"'{NAME}' is on the meta device.*to_empty"):
        CALLS[call](plain().to("meta"), folder)


@pytest.mark.parametrize("call", [*TAKE_GRADIENTS, "describe"])
def test_weights_that_hold_nan(call, folder):
    with pytest.raises(NonFiniteError, match=f"'{NAME}' holds 1 values that are NaN.*Load a checkpoint"):
        CALLS[call](with_nan(), folder)


@pytest.mark.parametrize("call", [*TAKE_GRADIENTS, "describe", "load"])
def test_weights_made_in_inference_mode(call, folder):
    model = of_inference_mode()
    before = flags(model)
    with pytest.raises(NoGradientError, match=f"'{NAME}' was made under torch.inference_mode.*outside that block"):
        CALLS[call](model, folder)
    assert flags(model) == before


def test_quantised_weights_are_described_beside_the_others():
    class Scaled(nn.Module):
        """A linear layer after a table of whole numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(6, dtype=torch.int8), requires_grad=False)
            self.linear = nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(x * self.table.to(x) / 6)

    found = pf.describe(Scaled(), inputs=INPUTS)
    assert found.dense == {"table": "torch.int8: only floating-point weights have gradients"}
    assert found.factored == ("linear.weight", "linear.bias")


def test_an_offloaded_weight_is_known_by_its_values(folder):
    """Not by its name alone: with other values the features belong to another model."""
    accelerate = pytest.importorskip("accelerate")
    other = plain()
    with torch.no_grad():
        other.get_parameter(NAME).add_(1)
    with pytest.raises(pf.errors.FingerprintError, match="other weights"):
        pf.load(folder / "saved", model=accelerate.cpu_offload(other, execution_device=torch.device("cpu")))
