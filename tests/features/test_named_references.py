"""A reference may be given by its name wherever outputs are given."""

from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.errors import InputError, SettingError
from param_features.problem import REFERENCES

QUICK = {"n_features": 3, "l0": 1, "progress": False, "fit": pf.FitSettings(steps=3, batch_size=32)}


@pytest.fixture(scope="module")
def fits(tiny_hooked, tiny_tokens):
    call = {"params": "blocks.0.attn.W_K", "tokens": tiny_tokens, **QUICK}
    return {kind: pf.decompose(tiny_hooked, reference=kind, **call) for kind in ("sample", "mean", "uniform")}


@pytest.mark.parametrize("own", ["sample", "mean", "uniform"])
@pytest.mark.parametrize("named", REFERENCES)
@pytest.mark.parametrize("call", ["activations", "codes"])
def test_every_name_means_what_its_outputs_do(fits, tiny_hooked, tiny_tokens, own, named, call):
    features, tokens = fits[own], tiny_tokens[:3]
    found = getattr(features, call)(tokens, reference=named)
    assert found.shape == (3, 10, 3)
    assert torch.equal(found, getattr(features, call)(tokens, reference=named))
    if named == own or {named, own} == {"sample", "label"}:
        expected = getattr(features, call)(tokens)
    elif named == "uniform":
        expected = getattr(features, call)(tokens, reference=torch.zeros(20))
    else:
        with torch.no_grad():
            outputs = tiny_hooked(features.examples.tokens).softmax(-1)
        drawn = features.question_with(named).references
        n_same = sum(bool(torch.isclose(outputs, row, atol=1e-6).all(-1).any()) for row in drawn)
        assert n_same == (0 if named == "mean" else len(drawn))
        expected = getattr(features, call)(tokens, reference=drawn.log())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_name_that_is_none_and_outputs_that_cannot_be_drawn_are_refused(fits, tiny_tokens):
    features = fits["sample"]
    with pytest.raises(SettingError, match="reference='unifrom' is unknown.*nearest: 'uniform'"):
        features.activations(tiny_tokens, reference="unifrom")
    with pytest.raises(SettingError, match="reference='uniform' is a distribution over logits"):
        numbers = pf.decompose(torch.nn.Linear(4, 2), "weight", inputs=torch.randn(30, 4), **QUICK)
        numbers.activations(inputs=torch.randn(2, 4), reference="uniform")
    bare = replace(features, examples=None)
    with pytest.raises(InputError, match="saved without examples"):
        bare.activations(tiny_tokens, reference="mean")
    assert bare.activations(tiny_tokens, reference="uniform").shape == (40, 10, 3)


def test_a_reference_without_values_is_refused(tiny_hooked, tiny_tokens, fits):
    bare = torch.zeros(20, device="meta")
    with pytest.raises(InputError, match="reference= is on the meta device"):
        pf.decompose(tiny_hooked, "blocks.0.attn.W_K", tiny_tokens, reference=bare, **QUICK)
    with pytest.raises(InputError, match="reference= is on the meta device"):
        fits["sample"].activations(tiny_tokens, reference=bare)
