"""Weights that are no floating-point Parameters: refused by name, and no hindrance to the rest of the model."""

import re
import warnings

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import ModelStateError, NoGradientError, Notice
from tests.adapters.zoo import hf_llama

pytestmark = pytest.mark.filterwarnings("ignore:quantized.*an autograd kernel was not registered")
QUICK = {"n_features": 2, "l0": 1, "steps": 2, "n_samples": 24, "progress": False}
TOKENS = torch.randint(0, 11, (12, 4), generator=torch.Generator().manual_seed(0))
LAYER, OTHER = "model.layers.1.mlp.down_proj", "model.layers.0.mlp.down_proj.weight"


def dynamic(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


class Integers(nn.Module):
    """A linear layer that keeps its weight as integers with a scale."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, name: str, *, is_buffer: bool) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale, self.name = weight.abs().max() / 100, name
        values = (weight / self.scale + 100 * (dtype == torch.uint8)).round().to(dtype)
        if is_buffer:
            self.register_buffer(name, values)
        else:
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def forward(self, x):
        stored = getattr(self, self.name)
        return x @ ((stored.to(x) - 100 * (stored.dtype == torch.uint8)) * self.scale).T


KINDS = {
    "quantize_dynamic": lambda linear: dynamic(nn.Sequential(linear))[0],
    "int8 Parameter": lambda linear: Integers(linear, torch.int8, "weight", is_buffer=False),
    "uint8 Parameter": lambda linear: Integers(linear, torch.uint8, "weight", is_buffer=False),
    "int8 buffer": lambda linear: Integers(linear, torch.int8, "weight", is_buffer=True),
    "int32 buffer": lambda linear: Integers(linear, torch.int32, "qweight", is_buffer=True),
}


def with_quantised(kind: str) -> nn.Module:
    model = hf_llama(dtype=torch.float32)
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.down_proj = KINDS[kind](mlp.down_proj)
    return model


@pytest.mark.filterwarnings("ignore::param_features.errors.Notice")
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_refused_by_name_and_the_rest_of_the_model_works(kind):
    model = with_quantised(kind)
    for params in (f"{LAYER}.weight", f"*{LAYER[-20:]}.weight", re.compile(rf".*{LAYER[-20:]}\.weight")):
        with pytest.raises(NoGradientError, match=rf"{LAYER}.*(quantised layer|without quantisation).*[Dd]ecompose"):
            pf.decompose(model, params, TOKENS, **QUICK)
    listed = {info.name for info in pf.list_params(model)}
    described = pf.describe(model, TOKENS)
    if kind != "quantize_dynamic":  # its scale is that of the whole batch, which a rule cannot know
        assert OTHER in described.factored
    assert {*described.factored, *described.dense} == listed
    assert pf.decompose(model, OTHER, TOKENS, **QUICK).n_features == 2


def test_a_layer_that_passes_no_gradients_on_is_said():
    with pytest.warns(Notice, match=rf"'{LAYER}' are quantised by torch and pass no gradients on"):
        pf.decompose(with_quantised("quantize_dynamic"), OTHER, TOKENS, **QUICK)


@pytest.mark.filterwarnings("ignore::param_features.errors.Notice")
def test_a_model_quantised_throughout():
    model = dynamic(hf_llama(dtype=torch.float32))
    with pytest.raises(NoGradientError, match=r"'model.layers.0.self_attn.q_proj' is a quantised layer"):
        pf.decompose(model, "*.q_proj.weight", TOKENS, **QUICK)
    with pytest.raises(ModelStateError, match="is quantised and may share one scale"):
        pf.describe(model, TOKENS)


def test_a_quantised_layer_alone():
    for params in ("weight", "*", ""):
        with pytest.raises(pf.errors.ParamFeaturesError, match="quantised layer" if params else "chooses no parameter"):
            pf.decompose(dynamic(nn.Sequential(nn.Linear(4, 3)))[0], params, inputs=torch.ones(12, 4), **QUICK)


def test_packed_recurrent_layers_are_known():
    model = nn.ModuleDict({"lstm": nn.LSTM(4, 4), "cell": nn.GRUCell(4, 4)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRUCell}, dtype=torch.qint8)
    for name in ("lstm.weight_ih_l0", "cell.weight_hh"):
        with pytest.raises(NoGradientError, match=f"'{name.partition('.')[0]}' is a quantised layer"):
            pf.decompose(model, name, inputs=torch.ones(12, 4), **QUICK)
