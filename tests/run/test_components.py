"""`pf.decompose(method="components")`: what it takes, which matrices it takes, and what it refuses."""

import pytest
import torch
from torch import nn

import param_features as pf
from tests.models import hooked_transformer, integers

MATRIX = "blocks.0.attn.W_Q"
pytestmark = pytest.mark.usefixtures("few_metrics")


@pytest.fixture(scope="module")
def model():
    return hooked_transformer(dtype=torch.float32)


TOKENS = integers(20, 40, 10)


def decomposed(model, params=MATRIX, tokens=TOKENS, **changes):
    settings = {"method": "components", "n_features": 3, "steps": 2, "progress": False}
    return pf.decompose(model, params, tokens, **settings | changes)


def test_it_returns_components_of_a_matrix_with_their_record(model):
    found = decomposed(model, fit="vpd", seed=4)
    assert found.n_features == 3 and list(found.params) == [MATRIX]
    assert found.config["method"] == "components" and found.config["n_components"] == {MATRIX: 3}
    assert found.config["fit"]["importance"] == "model" and found.config["steps_done"] == 2
    assert len(found.examples) == 4  # a tenth of the rows
    assert found.metrics["n_samples"] == 36 * 10


def test_one_seed_gives_the_same_bits(model):
    one, other = (decomposed(model, seed=1).dictionary.parts[MATRIX] for _ in range(2))
    assert torch.equal(one.U, other.U) and torch.equal(one.V, other.V)
    assert not torch.equal(one.V, decomposed(model, seed=2).dictionary.parts[MATRIX].V)


def test_numbers_are_given_by_name_before_glob_and_left_to_the_shapes(model):
    wanted = {"blocks.1.*": 5, "blocks.1.attn.W_K": 4, "blocks.0.attn.W_[QK]": 6}
    found = decomposed(model, ["blocks.*.attn.W_[QK]", "blocks.0.mlp.W_in"], n_features=wanted)
    counts = {"blocks.0.attn.W_Q": 6, "blocks.0.attn.W_K": 6, "blocks.0.mlp.W_in": 32}
    assert found.config["n_components"] == counts | {"blocks.1.attn.W_Q": 5, "blocks.1.attn.W_K": 4}


def test_sizes_that_the_shapes_decide_are_said(model, capsys):
    decomposed(model, n_features=None, progress=True)
    assert "components: 32 of 1 matrices, 32 each, chosen from the shapes" in capsys.readouterr().err


def test_rows_are_whole_and_as_many_as_were_asked_for(model):
    found = decomposed(model, n_samples=95)
    assert found.metrics["n_samples"] == 90 and len(found.examples) == 1


class Odd(nn.Module):
    """A matrix twice in a pass, one in no pass, a table that is tied to a matrix, a grouped convolution, and one plain."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight
        self.twice, self.plain = nn.Linear(6, 6), nn.Linear(6, 6)
        self.grouped, self.norm = nn.Conv1d(6, 6, 1, groups=2), nn.LayerNorm(6)

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + self.twice(torch.relu(self.twice(x)))
        x = x + self.grouped(x.mT).mT
        return self.head(self.norm(x + torch.relu(self.plain(x))))


ODD = {
    "twice.weight": "applied more than once|2 places",
    "table.weight": "tied",
    "grouped.weight": "is not applied as a matrix|none here",
    "norm.weight": "is no matrix",
    "plain.bias": "is no matrix",
}


def odd():
    torch.manual_seed(0)
    return Odd()


def test_a_glob_leaves_out_what_has_no_components_with_one_notice():
    with pytest.warns(pf.errors.Notice, match="'table.weight' and 7 more are left out of params=") as notices:
        found = decomposed(odd(), "*", integers(7, 20, 5))
    assert list(found.params) == ["plain.weight"]
    assert sum("left out" in str(notice.message) for notice in notices) == 1


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_has_no_components_is_refused(name):
    with pytest.raises(pf.errors.AdapterError, match=f"{name}.*({ODD[name]})"):
        decomposed(odd(), [name, "plain.*"], integers(7, 20, 5))


def test_a_glob_of_which_nothing_is_left_is_refused(model):
    with pytest.raises(pf.errors.AdapterError, match=r"None of the chosen parameters has components. 'blocks.0.attn.b_Q'"):
        decomposed(model, "*.b_Q")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"reference": "mean"}, "reference= is not for method='components'.*'self'"),
        ({"reference": torch.zeros(20)}, "reference= is not for"),
        ({"l0": 3}, "l0= is not for .*importance_weight"),
        ({"background": TOKENS}, "background= is not for"),
        ({"store": "folder"}, "store= is not for .*tokens="),
        ({"harvest": pf.HarvestSettings(batch_size=3)}, "harvest=batch_size is not for"),
        ({"divergence": "sum"}, "'sum' is no distance"),
        ({"n_features": 0}, "n_features=0 must be"),
        ({"n_features": {MATRIX: 0}}, "n_features=0 of 'blocks.0.attn.W_Q'"),
        ({"n_features": {"blocks.0.attn.W_K": 3}}, "n_features gives a number for .*nearest: 'blocks.0.attn.W_Q'"),
        ({"fit": "spdd"}, "no preset 'spdd'"),
        ({"fit": pf.FitSettings()}, "takes pf.ComponentSettings"),
        ({"fit": {"rank": 2}}, "rank"),
        ({"tokens": TOKENS[:1]}, "1 sequences .* are too few"),
        ({"method": "l3d", "n_features": {MATRIX: 3}}, "n_features is a dict"),
        ({"method": "l3d", "fit": "spd"}, "only method='components' has presets"),
    ],
)
def test_what_it_cannot_heed_is_refused_by_name(model, given, match):
    with pytest.raises(pf.ParamFeaturesError, match=match):
        decomposed(model, **given)


def test_features_and_components_of_the_same_matrices_are_a_start(model, tmp_path):
    call = {"steps": 1, "fit": {"lr": 1e-12}, "n_features": 4}
    features = pf.decompose(model, MATRIX, TOKENS, n_features=2, steps=2, n_samples=40, progress=False)
    found = decomposed(model, start=features, **call)
    assert not torch.equal(found.dictionary.parts[MATRIX].V, decomposed(model, **call).dictionary.parts[MATRIX].V)
    again = decomposed(model, start=found, **call).dictionary.parts[MATRIX]
    overlap = torch.nn.functional.cosine_similarity(again.V, found.dictionary.parts[MATRIX].V).abs()
    assert overlap.min() > 0.99  # a tight frame stays as it is
    decomposed(model, start=features, checkpoints=tmp_path, **call)
    with pytest.raises(pf.errors.StoreError, match="start"):
        decomposed(model, start=found, checkpoints=tmp_path, **call)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"start": {"V": 1}}, "got start={'V': 1}. Accepted: features of pf.decompose"),
        ({"params": "blocks.1.attn.W_Q"}, "start= has nothing of 'blocks.1.attn.W_Q'"),
        ({"method": "l3d"}, "start= is for method='components', not 'l3d'"),
    ],
)
def test_what_is_no_start_is_refused(model, changes, told):
    start = decomposed(model)
    with pytest.raises(pf.errors.SettingError, match=told):
        decomposed(model, **{"start": start} | changes)
