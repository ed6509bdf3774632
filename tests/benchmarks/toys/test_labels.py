"""Labels over token positions: features that tell them by construction, controls that cannot, and what is refused."""

import dataclasses

import pytest
import torch
from torch import nn

from benchmarks.toys.labels import LabelScores, LabelToy
from param_features.errors import SettingError
from param_features.measure.examples import shares

N_ROWS, N_POS = 64, 6


class Averager(nn.Module):
    """Tokens to logits: the next token is guessed from the average of those so far."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed, self.mix, self.unembed = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens):
        so_far = self.embed(tokens).cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        return self.unembed(torch.tanh(self.mix(so_far)))


@pytest.fixture(scope="module")
def toy():
    generator = torch.Generator().manual_seed(1)
    inputs, probes = torch.randint(12, (2, N_ROWS, N_POS), generator=generator)
    return LabelToy(
        name="averager",
        model=Averager().eval(),
        params=("mix.weight",),
        inputs=inputs,
        n_features=6,
        l0=2,
        divergence="kl",
        settings={"reference": "uniform", "steps": 30},
        probes=probes,
        labels={},
        counted=torch.ones(N_ROWS, N_POS, dtype=torch.bool),
    )


@pytest.fixture(scope="module")
def fit(toy):
    return toy.decompose()


def where_strongest(fit, toy, feature, share=0.2):
    """Positions at which a feature's |activation| is among the highest."""
    strength = fit.activations(toy.probes)[..., feature].abs()
    return strength >= strength.flatten().quantile(1 - share)


def test_a_label_made_from_a_feature_is_told_by_that_feature(toy, fit):
    labels = {str(feature): where_strongest(fit, toy, feature) for feature in (1, 4)}
    scores = dataclasses.replace(toy, labels=labels).score(fit)
    assert dict(scores.feature) == {"1": 1, "4": 4}
    assert dict(scores.auroc) == pytest.approx({"1": 1.0, "4": 1.0})
    assert max(scores.controls["shuffled"].values()) < 0.8
    assert max(scores.controls["random"].values()) < 1
    assert set(scores.controls) == {"random", "sampled", "principal", "norm", "shuffled"}
    numbers = scores.numbers
    assert (numbers["labels"], numbers["told"], numbers["auroc"]) == (2, 2, pytest.approx(1))
    assert numbers["told_shuffled"] == 0
    assert numbers["error"] == fit.metrics["reconstruction_error"]
    assert repr(scores).startswith("of 2 labels, told (mean area under ROC): 2 (1.00)")


def test_the_norm_tells_where_the_gradient_is_large_and_so_do_random_directions(toy, fit):
    norm = fit.activations(toy.probes).norm(dim=-1)
    scores = dataclasses.replace(toy, labels={"large": norm >= norm.flatten().quantile(0.8)}).score(fit)
    assert scores.controls["norm"]["large"] > 0.9
    assert scores.controls["shuffled"]["large"] < 0.8


def test_a_feature_is_chosen_on_one_half_and_measured_on_the_other(toy):
    label = torch.rand(N_ROWS, N_POS, generator=torch.Generator().manual_seed(2)) < 0.5
    is_first = torch.arange(N_ROWS)[:, None] < N_ROWS // 2
    first_only = torch.where(is_first, label, ~label)
    second_only = torch.where(is_first, ~label, label)
    told = toy._areas(torch.stack([second_only, first_only], 2).float(), {"label": label})
    assert told == {"label": (0.0, 1)}


def test_positions_that_do_not_count_are_left_out(toy):
    label = torch.rand(N_ROWS, N_POS, generator=torch.Generator().manual_seed(2)) < 0.5
    counted = torch.arange(N_POS).expand(N_ROWS, N_POS) > 2
    strength = torch.where(counted, label, ~label).float().unsqueeze(2)
    assert toy._areas(strength, {"label": label})["label"][0] == pytest.approx(0.5, abs=0.1)
    assert dataclasses.replace(toy, counted=counted)._areas(strength, {"label": label}) == {"label": (1.0, 0)}


def test_told_alone_is_what_random_directions_do_not_tell():
    areas = {"both": 0.95, "fit": 0.91, "random": 0.6, "neither": 0.7}
    random = {"both": 0.99, "fit": 0.89, "random": 0.95, "neither": 0.5}
    scores = LabelScores(auroc=areas, feature=dict.fromkeys(areas, 0), controls={"random": random}, error=0.5)
    assert scores.told_alone == ("fit",)
    assert (scores.numbers["told"], scores.numbers["told_random"], scores.numbers["told_alone"]) == (2, 2, 1)


def test_rare_labels_are_left_out_and_no_label_is_refused(toy, fit):
    rare = torch.zeros(N_ROWS, N_POS, dtype=torch.bool)
    rare[0] = True
    common = where_strongest(fit, toy, 0)
    scores = dataclasses.replace(toy, labels={"rare": rare, "common": common}).score(fit)
    assert set(scores.auroc) == {"common"}
    with pytest.raises(SettingError, match=r"None of 1 labels has 20 positions in each half of 64 probe rows.*n_probes=128"):
        dataclasses.replace(toy, labels={"rare": rare}).score(fit)


def test_a_share_is_the_activation_beside_all_others(toy, fit):
    acts = fit.activations(toy.probes)
    share = shares(acts)[..., 2]
    labelled = dataclasses.replace(toy, labels={"prominent": share >= share.flatten().quantile(0.8)})
    scores = labelled.score(fit, by="share")
    assert (scores.auroc["prominent"], scores.feature["prominent"]) == (pytest.approx(1), 2)
    by_activation = labelled.score(fit)
    assert by_activation.auroc["prominent"] < 1
    assert by_activation.controls["norm"] == scores.controls["norm"]


def test_an_unknown_ranking_is_refused(toy, fit):
    with pytest.raises(SettingError, match=r"by='rank' is unknown. Accepted: 'activation', 'share'"):
        toy.score(fit, by="rank")
