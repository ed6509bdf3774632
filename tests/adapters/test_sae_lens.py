"""SAEs of sae-lens as they are read here, against what sae-lens itself gives."""

import sys

import pytest
import torch

from param_features.adapters import autoencoder as module
from param_features.adapters import read_sae
from param_features.adapters.sae_lens import is_sae
from param_features.errors import AdapterError, FeatureMismatchError, MissingExtraError
from tests.saes import D_IN, D_SAE, TRANSCODERS, random_sae, sae_library

ARCHITECTURES = {
    "standard": {},
    "jumprelu": {},
    "gated": {},
    "topk": {"k": 2},
    "abstopk": {"k": 2},
    "matching_pursuit": {},
}


@pytest.fixture
def acts():
    return torch.randn(7, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_every_architecture_encodes_and_rebuilds_as_sae_lens_does(architecture, normalize, acts, monkeypatch):
    sae = random_sae(architecture, normalize_activations=normalize, **ARCHITECTURES[architecture])
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 3 * D_SAE)
    found = read_sae(sae)
    chunks = list(found.encode(acts))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    with torch.no_grad():
        codes = torch.cat([sae.encode(row[None]) for row in acts])
        torch.testing.assert_close(torch.cat(chunks), codes)
        torch.testing.assert_close(found.reconstruct(acts), torch.cat([sae.decode(sae.encode(row[None])) for row in acts]))
    assert (found.n_features, found.d_in, found.architecture) == (D_SAE, D_IN, architecture)
    assert (codes != 0).any()


@pytest.mark.parametrize("architecture", TRANSCODERS)
@pytest.mark.parametrize("d_out", [4, D_IN])
def test_a_transcoder_writes_elsewhere_what_sae_lens_gives(architecture, d_out, acts, monkeypatch):
    places = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
    sae = random_sae(architecture, d_out=d_out, metadata=places)
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 3 * D_SAE)
    found = read_sae(sae)
    assert (found.is_transcoder, found.d_in, found.d_out) == (True, D_IN, d_out)
    assert (found.hook_name, found.hook_name_out) == tuple(places.values())
    assert found.description == f"{architecture} from blocks.0.ln2.hook_normalized to blocks.0.hook_mlp_out"
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(list(found.encode(acts))), sae.encode(acts))
        torch.testing.assert_close(found.reconstruct(acts), sae(acts))
        codes, rebuilt, skipped = found.read(acts)
        torch.testing.assert_close(codes, sae.encode(acts))
        torch.testing.assert_close(rebuilt if skipped is None else rebuilt + skipped, sae(acts))
    assert (skipped is None) == ("skip" not in architecture)


def test_heads_are_joined_and_what_the_sae_remembers_of_them_stays():
    heads = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    sae = random_sae(reshape_activations="hook_z", metadata={"hook_name": "blocks.0.attn.hook_z"})
    with torch.no_grad():
        expected, rebuilt = sae.encode(heads), sae(heads)
    before = (sae.reshape_fn_in, sae.reshape_fn_out, sae.d_head, sae.hook_z_reshaping_mode)
    found = read_sae(sae)
    torch.testing.assert_close(torch.cat(list(found.encode(heads))), expected)
    torch.testing.assert_close(found.reconstruct(heads), rebuilt)
    torch.testing.assert_close(torch.cat(list(found.encode(heads.flatten(1)))), expected)
    assert (sae.reshape_fn_in, sae.reshape_fn_out, sae.d_head, sae.hook_z_reshaping_mode) == before
    with torch.no_grad():
        torch.testing.assert_close(sae(heads), rebuilt)


def test_activations_of_another_precision_are_taken_and_given_back(acts):
    found = read_sae(random_sae())
    assert next(found.encode(acts.double())).dtype == torch.float32
    assert found.reconstruct(acts.double()).dtype == torch.float64


def test_a_folder_is_loaded(acts, tmp_path):
    sae = random_sae("jumprelu", metadata={"hook_name": "blocks.1.hook_resid_post", "neuronpedia_id": "gpt2-small/1-res-x"})
    sae.save_model(tmp_path)
    found = read_sae(tmp_path)
    assert torch.equal(next(found.encode(acts)), next(read_sae(sae).encode(acts)))
    assert found.hook_name == "blocks.1.hook_resid_post"
    assert found.url(12) == "https://neuronpedia.org/gpt2-small/1-res-x/12"
    assert "jumprelu SAE at blocks.1.hook_resid_post" in found.description


def test_a_pair_is_asked_of_the_hub(monkeypatch):
    library, asked = sae_library(), []
    monkeypatch.setattr(library.SAE, "from_pretrained", lambda *args, **kwargs: asked.append(args) or random_sae())
    assert read_sae(("gpt2-small-res-jb", "blocks.8.hook_resid_pre")).n_features == D_SAE
    assert asked == [("gpt2-small-res-jb", "blocks.8.hook_resid_pre")]


def test_without_metadata_there_is_no_place_and_no_page():
    found = read_sae(random_sae())
    assert found.hook_name is None
    assert found.url(0) is None


def test_another_length_is_refused():
    with pytest.raises(
        FeatureMismatchError, match=r"reads 6 numbers, and a sample's activation has shape \(4,\).*hook_name="
    ):
        next(read_sae(random_sae()).encode(torch.zeros(2, 4)))


@pytest.mark.parametrize("given", [3, torch.nn.Linear(2, 2), ("one",), None])
def test_what_is_no_sae_is_refused(given):
    with pytest.raises(AdapterError, match=f"sae is a {type(given).__name__}.*save_model.*from_pretrained"):
        read_sae(given)


def test_an_sae_in_training_is_refused():
    library = sae_library()
    sae = library.BatchTopKTrainingSAE(library.BatchTopKTrainingSAEConfig(d_in=4, d_sae=6, k=2))
    with pytest.raises(AdapterError, match="depends on the batch.*save_inference_model"):
        read_sae(sae)


def test_a_temporal_sae_is_refused():
    sae = random_sae("temporal", d_sae=64, n_heads=1, bottleneck_factor=8, kval_topk=2)
    with pytest.raises(AdapterError, match="TemporalSAE.*depend on the positions before it"):
        read_sae(sae)


def test_an_sae_is_recognised_by_name_alone():
    base = type("SAE", (), {"__module__": "sae_lens.saes.sae"})
    assert is_sae(type("TopKSAE", (base,), {"__module__": "elsewhere"})())
    assert not is_sae(type("SAE", (), {"__module__": "elsewhere"})())


def test_a_missing_library_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtraError, match=r'pip install "param_features\[sae\]"'):
        read_sae("folder")
