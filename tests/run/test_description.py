"""`pf.describe`: what is recognised, by the layers alone and on data."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import AdapterError, ModelStateError
from tests.adapters import zoo
from tests.models import Classifier, Recurrent, hooked_transformer


def test_a_plain_module_by_its_layers():
    found = pf.describe(Recurrent())
    assert found.library == "Recurrent"
    assert (found.adapter, found.n_layers, found.processing, found.tokens) == ("ModuleAdapter", None, "", "")
    assert found.factored == ("out.weight", "out.bias")
    assert found.dense == dict.fromkeys(
        ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"), "no layer rule"
    )
    assert "lstm.weight_ih_l0[f]" in found.parts
    assert found.n_params == sum(p.numel() for p in Recurrent().parameters())
    assert (found.dtypes, found.devices, found.is_checked) == ({"float32": 6}, {"cpu": 6}, False)


def test_what_is_printed():
    lines = dict(line.split(maxsplit=1) for line in str(pf.describe(Recurrent())).splitlines())
    assert lines["model"] == "Recurrent, read by ModuleAdapter"
    assert lines["parameters"] == "116 in 6 tensors, float32 on cpu"
    assert lines["factored"] == "out.{weight, bias}"
    assert lines["dense"] == "lstm.{weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0} (no layer rule)"
    assert lines["parts"].startswith("lstm.{weight_ih_l0[i|f|g|o], ")
    assert "pf.describe(model, tokens)" in lines["routes"]


def test_data_show_rules_that_do_not_hold():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.einsum("ni,oi->no", x, self.weight)

    model = nn.Sequential(Doubled(3, 3), nn.Linear(3, 2))
    assert pf.describe(model).dense == {}
    found = pf.describe(model, inputs=torch.randn(4, 3))
    assert found.dense == {"0.weight": "its rule disagrees with autograd here"}
    assert found.is_checked
    assert "compared with autograd" in str(found)


def test_data_show_a_parameter_that_nothing_reads():
    model = Classifier()
    model.unused = nn.Linear(2, 2)
    found = pf.describe(model, inputs=torch.randn(4, 1, 6, 6))
    assert found.dense == dict.fromkeys(("unused.weight", "unused.bias"), "no gradient reaches it on two samples")


def test_layers_share_a_line_and_tied_weights_are_named(tiny_hooked, tiny_tokens):
    found = pf.describe(tiny_hooked, tiny_tokens)
    assert found.library.startswith("transformer_lens 3.")
    assert (found.adapter, found.n_layers) == ("HookedTransformerAdapter", 2)
    assert found.processing == "LN: not folded"
    assert found.tokens == "vocabulary 20, context 12, no tokenizer"
    assert found.dense == {}
    assert pf.describe(tiny_hooked).dense == {"pos_embed.W_pos": "no layer rule"}
    assert "blocks.*.attn.{" in str(found)
    assert "blocks.1" not in str(found)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "lm_head": nn.Linear(3, 5)})
    model["lm_head"].weight = model["embed"].weight
    assert pf.describe(model).tied == {"lm_head.weight": "embed.weight"}


def test_a_bridges_tied_weights_are_named_by_transformer_lens_alone():
    pytest.importorskip("transformer_lens")
    assert pf.describe(zoo.booted(zoo.hf_gpt2)).tied == {"unembed.W_U": "embed.W_E"}


def test_folded_weights_are_said():
    folded = hooked_transformer(n_layers=1, normalization_type="LNPre")
    assert pf.describe(folded).processing == "LNPre: folded into the weights"


def test_nothing_is_run_without_data_and_a_model_without_values_is_described():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2))
    assert pf.describe(model).devices == {"meta": 2}
    with pytest.raises(ModelStateError, match="meta device"):
        pf.describe(model, inputs=torch.randn(2, 3))


def test_no_model_is_refused():
    with pytest.raises(AdapterError, match="Load the model first"):
        pf.describe("gpt2")
