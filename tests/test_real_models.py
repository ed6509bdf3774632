"""One set of saved features on the real model as four libraries hold it."""

import pytest
import torch

import param_features as pf
from param_features.adapters import TransformerBridgeAdapter
from param_features.params import adapter_for

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated"),
    pytest.mark.filterwarnings("ignore:LanguageModel is deprecated"),
]


def hooked(stories):
    pytest.importorskip("transformer_lens")
    try:
        return stories.load_hooked(), {}
    except ImportError:
        pytest.skip("TransformerLens 4 has no HookedTransformer")


def bridge(stories):
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge

    hf, tokenizer = stories.load_hf()
    return TransformerBridge.boot_transformers("any", hf_model=hf, tokenizer=tokenizer, device="cpu").eval(), {}


def hugging_face(stories):
    hf, tokenizer = stories.load_hf()
    return hf, {"tokenizer": tokenizer}


def nnsight(stories):
    library = pytest.importorskip("nnsight")
    hf, tokenizer = stories.load_hf()
    return library.LanguageModel(hf, tokenizer=tokenizer), {}


LIBRARIES = {"HookedTransformer": hooked, "TransformerBridge": bridge, "Hugging Face": hugging_face, "nnsight": nnsight}
NAMES = {
    "HookedTransformer": "blocks.2.attn._W_K",
    "TransformerBridge": "blocks.2.attn._W_K",
    "Hugging Face": "model.layers.2.self_attn.k_proj.weight",
    "nnsight": "model.layers.2.self_attn.k_proj.weight",
}


@pytest.fixture(scope="module")
def saved(stories, tmp_path_factory):
    """Features found on a bridge, which both versions of TransformerLens have, and their activations there."""
    model, _ = bridge(stories)
    call = {"n_features": 20, "l0": 4, "steps": 100, "n_samples": 3000, "progress": False}
    features = pf.decompose(model, "blocks.2.attn.W_K", stories.load_tokens(max_sequences=400), **call)
    folder = tmp_path_factory.mktemp("features")
    features.save_pretrained(folder)
    return folder, features.activations(stories.load_tokens(max_sequences=2))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("route", ["vjp", "jvp"])
def test_activations_agree_however_the_model_is_held(library, route, stories, saved):
    folder, expected = saved
    model, settings = LIBRARIES[library](stories)
    features = pf.load(folder, model=model, **settings)
    assert list(features.params) == [NAMES[library]]
    found = features.activations(stories.load_tokens(max_sequences=2), route=route)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    text = "Once upon a time, there was a little girl."
    assert features.activations([text]).shape == (1, len(adapter_for(model).reading(**settings).to_ids(text)), 20)


def test_the_saved_name_shape_and_orientation_are_transformer_lens_own(stories, saved):
    folder, _ = saved
    record = pf.load(folder).params["blocks.2.attn._W_K"]
    assert (record.shape, record.fold) == ((4, 64, 8), "head i o -> (head o) i")
    model, _ = bridge(stories)
    assert isinstance(adapter_for(model), TransformerBridgeAdapter)
    assert torch.equal(pf.load(folder, model=model).engine.subset["blocks.2.attn._W_K"].tensor, model.blocks[2].attn.W_K)
