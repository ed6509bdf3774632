"""A model that peft wrapped is read as the Hugging Face model inside it."""

import warnings

import pytest
import torch

import param_features as pf
from tests.adapters.zoo import hf_llama

TOKENS = torch.randint(4, 20, (24, 6), generator=torch.Generator().manual_seed(1))
KEY = "model.layers.0.self_attn.k_proj"
QUICK = {"n_features": 2, "l0": 1, "steps": 2, "progress": False}


@pytest.mark.parametrize("mixed", [False, True])
def test_it_has_plain_names_left_padding_and_the_adapters_outputs(mixed, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(hf_llama(dtype=torch.float32), config, mixed=mixed).eval()
    assert pf.describe(wrapped).adapter == "HuggingFaceAdapter"
    features = pf.decompose(wrapped, f"{KEY}.weight", TOKENS, **QUICK)
    assert list(features.params) == [f"{KEY}.base_layer.weight"]
    padded = torch.cat([torch.full((2, 2), 3), TOKENS[:2]], 1)
    mask = torch.tensor([False] * 2 + [True] * 6).expand(2, 8)
    acts = features.activations({"input_ids": padded, "attention_mask": mask.long()})
    assert torch.allclose(acts[:, 2:], features.activations(TOKENS[:2]), atol=1e-4)
    with torch.no_grad():
        before = wrapped(TOKENS[:2]).logits
        assert torch.allclose(features.engine.adapter.run(TOKENS[:2]), before)
        with features.steer({0: 1.0}):
            assert not torch.allclose(wrapped(TOKENS[:2]).logits, before)
        assert torch.equal(wrapped(TOKENS[:2]).logits, before)
    features.to_lora(tmp_path / "lora", {0: 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(hf_llama(dtype=torch.float32), tmp_path / "lora")
