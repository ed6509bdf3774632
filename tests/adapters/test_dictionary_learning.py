"""Dictionaries of dictionary_learning: its folders read without it, and its objects by their own code."""

import json

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.adapters import read_sae
from param_features.errors import AdapterError, FeatureMismatchError

D_IN, N = 6, 9


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.7


LINEAR = {"encoder.weight": drawn(N, D_IN), "decoder.weight": drawn(D_IN, N + 1)[:, :N]}
MATRICES = {"W_enc": drawn(D_IN, N), "b_enc": drawn(N), "W_dec": drawn(N, D_IN), "b_dec": drawn(D_IN)}
THRESHOLD = torch.tensor(0.5)
K = {"k": torch.tensor(2, dtype=torch.int), "threshold": THRESHOLD}
FILES = {
    "AutoEncoder": LINEAR | {"bias": drawn(D_IN), "encoder.bias": drawn(N)},
    "AutoEncoderNew": LINEAR | {"encoder.bias": drawn(N), "decoder.bias": drawn(D_IN)},
    "GatedAutoEncoder": LINEAR
    | {"decoder_bias": drawn(D_IN), "r_mag": drawn(N), "gate_bias": drawn(N + 2)[:N], "mag_bias": drawn(N + 3)[:N]},
    "JumpReluAutoEncoder": MATRICES | {"threshold": drawn(N).abs()},
    "AutoEncoderTopK": LINEAR | {"encoder.bias": drawn(N), "b_dec": drawn(D_IN)} | K,
    "BatchTopKSAE": LINEAR | {"encoder.bias": drawn(N), "b_dec": drawn(D_IN)} | K,
    "MatryoshkaBatchTopKSAE": MATRICES | K | {"group_sizes": torch.tensor([4, 5])},
}
"""What the library saves of each class, by its own names."""


def by_hand(kind, file, x):
    """Codes and the reconstruction of one sample, as the class's `encode` and `decode` say."""
    weight, decoder = file.get("encoder.weight"), file.get("decoder.weight")
    if kind == "AutoEncoder":
        codes = (weight @ (x - file["bias"]) + file["encoder.bias"]).relu()
        return codes * decoder.norm(dim=0), decoder @ codes + file["bias"]  # loading gives every feature unit norm
    if kind == "AutoEncoderNew":
        codes = (weight @ x + file["encoder.bias"]).relu()
        return codes, decoder @ codes + file["decoder.bias"]
    if kind == "GatedAutoEncoder":
        read = weight @ (x - file["decoder_bias"])
        codes = torch.where(read + file["gate_bias"] > 0, (file["r_mag"].exp() * read + file["mag_bias"]).relu(), 0.0)
        return codes, decoder @ codes + file["decoder_bias"]
    if kind == "JumpReluAutoEncoder":
        read = x @ file["W_enc"] + file["b_enc"]
        codes = torch.where(read > file["threshold"], read, 0.0)
        return codes, codes @ file["W_dec"] + file["b_dec"]
    if kind == "MatryoshkaBatchTopKSAE":
        read = ((x - file["b_dec"]) @ file["W_enc"] + file["b_enc"]).relu()
        codes = torch.where(read > THRESHOLD, read, 0.0)
        return codes, codes @ file["W_dec"] + file["b_dec"]
    read = (weight @ (x - file["b_dec"]) + file["encoder.bias"]).relu()
    least = read.sort(descending=True).values[1] if kind == "AutoEncoderTopK" else THRESHOLD
    codes = torch.where(read >= least, read, 0.0)
    return codes, decoder @ codes + file["b_dec"]


def folder_of(kind, where, *, state=None, trainer=None, buffer=None):
    where.mkdir(exist_ok=True)
    torch.save(FILES[kind] if state is None else state, where / "ae.pt")
    record = {"trainer": {"dict_class": kind, "k": 2, "layer": 0} | (trainer or {}), "buffer": buffer or {"io": "out"}}
    (where / "config.json").write_text(json.dumps(record))
    return where


@pytest.mark.parametrize("kind", FILES)
def test_every_class_is_read_from_its_folder(kind, tmp_path):
    acts = drawn(20, D_IN)
    found = read_sae(folder_of(kind, tmp_path))
    assert (found.n_features, found.d_in, found.d_out, found.architecture) == (N, D_IN, D_IN, kind)
    codes, rebuilt = map(torch.stack, zip(*(by_hand(kind, FILES[kind], sample) for sample in acts), strict=True))
    assert 0 < float((codes != 0).double().mean()) < 1
    torch.testing.assert_close(torch.cat(list(found.encode(acts))), codes)
    torch.testing.assert_close(found.reconstruct(acts), rebuilt)
    reading = found.read(acts.reshape(4, 5, D_IN))
    torch.testing.assert_close(reading.codes.flatten(0, 1), codes)
    torch.testing.assert_close(reading.rebuilt.flatten(0, 1), rebuilt)
    torch.testing.assert_close(codes @ found.decoder + found.bias, rebuilt)
    with pytest.raises(FeatureMismatchError, match=f"{kind} SAE at an unnamed place reads 6 numbers"):
        found.reconstruct(drawn(3, 5))


@pytest.mark.parametrize(
    ("trainer", "buffer", "place"),
    [
        ({"submodule_name": "resid_post_layer_3"}, {"io": "out"}, "blocks.3.hook_resid_post"),
        ({"submodule_name": "resid_post_layer_3"}, {"io": "in"}, None),
        ({"submodule_name": "mlp_3"}, {"io": "out"}, None),
        ({"submodule_name": None}, {"io": "out"}, None),
    ],
)
def test_the_place_is_taken_where_the_record_names_it(trainer, buffer, place, tmp_path):
    assert read_sae(folder_of("AutoEncoderTopK", tmp_path, trainer=trainer, buffer=buffer)).hook_name == place


class Dictionary(nn.Module):
    """What marks a class of the library."""


Dictionary.__module__ = "dictionary_learning.dictionary"


class BatchTopKSAE(Dictionary):
    """An object with code of its own, which counts whatever its weights look like."""

    def __init__(self, threshold=0.3):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 24), nn.Linear(24, 16, bias=False)
        self.threshold = torch.tensor(threshold)
        self.b_dec = nn.Parameter(torch.zeros(16))

    def encode(self, x):
        codes = torch.relu(self.encoder(x - self.b_dec))
        codes = codes * (codes > self.threshold)
        codes[:, 20:] = 0
        return codes

    def decode(self, codes):
        return self.decoder(codes) + self.b_dec


def test_an_object_is_read_by_its_own_code_everywhere(tiny_hooked, tiny_tokens, tiny_features):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ae, hook = BatchTopKSAE(), "blocks.0.hook_resid_post"
    acts = tiny_hooked.run_with_cache(tiny_tokens)[1][hook].flatten(0, 1)
    with torch.no_grad():
        codes = ae.encode(acts.float())
        error = float((ae.decode(codes) - acts).square().sum() / (acts - acts.mean(0)).square().sum())
    numbers = pf.sae.sae_metrics(ae, tiny_hooked, tiny_tokens, hook_name=hook)
    assert numbers["explained_variance"] == pytest.approx(1 - error, rel=1e-5)
    assert numbers["l0"] == pytest.approx(float((codes != 0).double().sum(1).mean()))
    found = pf.compare(tiny_features, ae, tiny_tokens, hook_name=hook, n_top=10)
    torch.testing.assert_close(found.sae_strengths.to_dense(), codes)
    effects = pf.circuits.indirect_effects(tiny_features, tiny_tokens[:3], saes={hook: ae}, n_check=0, ablation="zero")
    assert any(effects[f"{hook}/{k}"].abs().max() > 0 for k in range(20))
    assert effects[f"{hook}/23"].abs().max() == 0


class CrossCoder(Dictionary):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.decoder.weight = nn.Parameter(torch.zeros(2, N, D_IN))


@pytest.mark.parametrize("made", [CrossCoder, type("IdentityDict", (Dictionary,), {})])
def test_objects_without_one_place_and_weights_are_refused(made):
    with pytest.raises(AdapterError, match=f"sae is a {made.__name__} of dictionary_learning. Accepted: AutoEncoder, "):
        read_sae(made())


def without(kind, name):
    return {key: value for key, value in FILES[kind].items() if key != name}


@pytest.mark.parametrize(
    ("kind", "state", "trainer", "message"),
    [
        ("AutoEncoder", None, {"dict_class": "AutoEncoderTopk"}, "Accepted: AutoEncoder, .*nearest: 'AutoEncoderTopK'"),
        ("AutoEncoder", None, {"dict_class": ["CrossCoder"]}, "Accepted: AutoEncoder, "),
        ("GatedAutoEncoder", without("GatedAutoEncoder", "r_mag"), None, "holds no GatedAutoEncoder .*'r_mag'"),
        ("AutoEncoder", FILES["JumpReluAutoEncoder"], None, "holds no AutoEncoder "),
        ("AutoEncoderNew", FILES["AutoEncoderNew"] | {"decoder.bias": drawn(4)}, None, r"bias has shape \(4,\)"),
        ("JumpReluAutoEncoder", FILES["JumpReluAutoEncoder"] | {"threshold": drawn(4)}, None, "threshold has shape"),
        ("AutoEncoderTopK", FILES["AutoEncoderTopK"] | {"k": torch.tensor(99)}, None, "k is 99, and there are 9"),
        ("AutoEncoder", [1, 2], None, "no state_dict"),
        ("BatchTopKSAE", without("BatchTopKSAE", "threshold"), None, "no threshold.*depends on the batch"),
        (
            "MatryoshkaBatchTopKSAE",
            FILES["MatryoshkaBatchTopKSAE"] | {"threshold": torch.tensor(-1.0)},
            None,
            "no threshold",
        ),
    ],
)
def test_broken_folders_are_refused_by_name(kind, state, trainer, message, tmp_path):
    with pytest.raises(AdapterError, match=message):
        read_sae(folder_of(kind, tmp_path, state=state, trainer=trainer))


@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"trainer": 3}', "[" * 100_000])
def test_a_folder_without_its_record_says_what_is_missing(config, tmp_path):
    (folder_of("AutoEncoder", tmp_path) / "config.json").unlink()
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(AdapterError, match="config.json' cannot be read.*trainer names dict_class"):
        read_sae(tmp_path)


class Runs:
    def __reduce__(self):
        return print, ("this code ran",)


def test_no_code_of_a_file_runs(tmp_path, capsys):
    folder_of("AutoEncoder", tmp_path, state={"bias": Runs()})
    with pytest.raises(AdapterError, match="holds no AutoEncoder"):
        read_sae(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"no weights")
    with pytest.raises(AdapterError, match="holds no AutoEncoder"):
        read_sae(tmp_path)
    assert "this code ran" not in capsys.readouterr().out


def test_an_object_whose_threshold_was_never_set_is_refused():
    with pytest.raises(AdapterError, match="threshold_start_step"):
        read_sae(BatchTopKSAE(threshold=-1.0))
