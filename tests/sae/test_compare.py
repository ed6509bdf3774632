"""Parameter features beside SAE features, where it is known which go together."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import (
    AdapterError,
    FeatureCountError,
    FeatureMismatchError,
    InputError,
    NotBoundError,
    SettingError,
    UnknownHookError,
)
from param_features.fit.formats import LowRank
from param_features.measure.examples import shares
from param_features.problem import read_inputs
from param_features.sae.sides import parameter_sides, random_sae_side, random_unit
from tests.components import made_components
from tests.saes import random_sae, sae_library, sae_of
from tests.test_restoration import assert_same, snapshot

N = 8
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(autouse=True, scope="module")
def _library():
    return sae_library()


class Layered(nn.Module):
    """One matrix; what it reads is at `place`."""

    def __init__(self):
        super().__init__()
        self.place, self.out = nn.Identity(), nn.Linear(N, 5, bias=False)

    def forward(self, x):
        return self.out(self.place(x))


@pytest.fixture(scope="module")
def sparse_inputs():
    """Each of eight numbers is there in a sixth of the samples."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3000, N, generator=generator) < 1 / 6) * (0.5 + torch.rand(3000, N, generator=generator))


@pytest.fixture(scope="module")
def by_hand(sparse_inputs):
    """Feature k < 6 moves all outputs where number k is there; features 6 and 7 read numbers 6 and 7 at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Layered()
    call = {"n_features": N, "l0": 2, "steps": 3, "progress": False, "n_samples": 500, "reference": "mean"}
    found = pf.decompose(model, "out.weight", inputs=sparse_inputs, **call)
    left = torch.ones(N, 5, 1) / 5**0.5
    rows = LowRank({"out.weight": (left, torch.eye(N).unsqueeze(2))})
    return found.with_directions(rows)


@pytest.fixture(scope="module")
def planted(by_hand, sparse_inputs):
    """The SAE has features for numbers 0 to 5 in reverse, one for the sum of all, and one that is never active."""
    reads = torch.zeros(N, 8)
    for feature in range(6):
        reads[5 - feature, feature] = 1
    reads[:, 7] = -1
    return pf.compare(by_hand, sae_of(reads, hook_name="place"), inputs=sparse_inputs, n_top=40)


class TestPlanted:
    def test_what_goes_together_is_found_and_the_rest_has_no_counterpart(self, planted):
        assert sorted(planted.of_features.shared) == [0, 1, 2, 3, 4, 5]
        assert sorted(planted.only_features) == [6, 7]
        assert sorted(planted.of_sae.shared) == [0, 1, 2, 3, 4, 5]
        for feature in range(6):
            assert planted.pairs(feature, 1)[0].sae_feature == 5 - feature
            assert planted.sae_pairs(5 - feature, 1)[0].feature == feature
        assert not planted.of_sae.counted[6:].any()
        assert planted.only_sae == []

    def test_controls_have_none(self, planted):
        for side in (planted.of_features, planted.of_sae):
            assert side.n_above("random") <= 1
            assert side.n_above("shuffled") == 0
            assert side.threshold > side.median("shuffled")

    def test_pairs_hold_the_tables_numbers(self, planted):
        pair = planted.pairs(2, 3)[0]
        assert pair.correlation == float(planted.tables.correlation[2, 3])
        assert pair.auroc == pytest.approx(float(planted.tables.auroc[2, 3]))
        assert pair.auroc > 0.9
        assert pair.sae_auroc == pytest.approx(float(planted.tables.reverse_auroc[2, 3]))
        assert pair.url is None
        best = [each.overlap for each in planted.pairs(2, by="overlap")]
        assert best == sorted(best, reverse=True)
        assert [each.feature for each in planted.table()] == list(range(N))
        assert [each.sae_feature for each in planted.sae_table()] == list(range(6))

    def test_numbers_are_those_of_codes(self, planted, by_hand, sparse_inputs):
        codes = by_hand.codes(inputs=sparse_inputs)
        assert planted.metrics["features"]["l0"] == pytest.approx(float((codes != 0).sum(1).double().mean()))
        assert planted.metrics["random_features"]["l0"] == pytest.approx(planted.metrics["features"]["l0"], rel=0.01)
        assert planted.metrics["sae"]["l0"] == pytest.approx(float((sparse_inputs[:, :6] > 0).sum(1).double().mean()))
        assert planted.metrics["sae"]["dead"] == 2
        assert "purity_token" not in planted.metrics["sae"]

    def test_a_view_shows_inputs_by_number(self, planted):
        view = planted.view(1, 3)
        assert [row.tokens for row in view.rows[::2]] == [row.tokens for row in view.rows[1::2]]
        assert all(re.fullmatch(r"input \d+", row.tokens[0]) for row in view.rows)

    def test_links_stand_where_the_metadata_name_a_page(self, by_hand, sparse_inputs):
        sae = sae_of(torch.eye(N), hook_name="place")
        sae.cfg.metadata.neuronpedia_id = "toy/<0>"
        found = pf.compare(by_hand, sae, inputs=sparse_inputs[:200])
        assert found.pairs(0)[0].url.startswith("https://neuronpedia.org/toy/<0>/")
        assert '<a href="https://neuronpedia.org/toy/&lt;0&gt;/' in found._repr_html_()


@pytest.fixture(scope="module")
def sae():
    return random_sae(d_in=16, d_sae=12, metadata={"hook_name": HOOK})


@pytest.fixture(scope="module")
def found(tiny_features, sae, tiny_tokens):
    return pf.compare(tiny_features, sae, tiny_tokens, n_top=10)


class TestTokens:
    def test_strengths_and_codes_are_those_of_the_features(self, tiny_features, tiny_tokens):
        inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens, None)
        own, random, calibration = parameter_sides(tiny_features, inputs, torch.Generator().manual_seed(0), n_calibrating=2)
        assert len({float(each[5, 0]) for each in (random.strengths, *calibration)}) == 3
        acts = tiny_features.activations(tiny_tokens).flatten(0, 1)
        torch.testing.assert_close(own.strengths, shares(acts), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own.codes, tiny_features.codes(tiny_tokens).flatten(0, 1), rtol=1e-4, atol=1e-6)
        assert random.strengths.shape == own.strengths.shape
        assert not torch.allclose(random.strengths, own.strengths, atol=0.1)

    def test_random_directions_have_unit_norm_and_the_same_shapes(self, tiny_features):
        drawn = random_unit(tiny_features.v_out, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn.norm(), torch.ones_like(drawn.norm()))
        for name, (left, right) in tiny_features.v_out.factors.items():
            assert [part.shape for part in drawn.factors[name]] == [left.shape, right.shape]

    def test_a_random_sae_keeps_as_many(self):
        acts = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)) + 4
        side = random_sae_side(acts, 40, 3.0, torch.Generator().manual_seed(0))
        assert side.numbers({}, 10)["l0"] == pytest.approx(3, rel=0.02)

    def test_purity_weighs_features_by_their_top_samples(self, found):
        for side in ("features", "random_features", "sae", "random_sae", "any_samples"):
            for name in ("purity_token", "purity_next"):
                assert 0 < found.metrics[side][name] <= 1

    def test_the_same_seed_gives_the_same_numbers(self, found, tiny_features, sae, tiny_tokens):
        same, other = (pf.compare(tiny_features, sae, tiny_tokens, n_top=10, seed=seed) for seed in (0, 1))
        assert repr(same) == repr(found)
        assert not torch.equal(other.of_features.random, found.of_features.random)
        torch.testing.assert_close(other.tables.correlation, found.tables.correlation)

    def test_a_view_marks_one_text_by_both(self, found, tiny_features, sae, tiny_tokens):
        view = found.view(2, 3)
        best = found.pairs(2, 1)[0].sae_feature
        assert f"feature 2 and SAE feature {best}" in view.title
        acts = tiny_features.activations(tiny_tokens)
        sample = int(found.top[0, 2])
        row, position = divmod(sample, 10)
        assert view.rows[0].title.startswith(f"feature 2: {float(acts[row, position, 2]):+.4f}")
        assert view.rows[1].title.startswith(f"SAE feature {best}: ")
        assert view.rows[0].tokens == view.rows[1].tokens
        assert view.rows[0].marked == position
        assert max(abs(value) for line in view.rows for value in line.values) == pytest.approx(1)
        shown = torch.tensor(view.rows[0].values)
        torch.testing.assert_close(
            shown / shown[position], (acts[row, :, 2] / acts[row, position, 2]).to(shown)[: len(shown)]
        )
        assert found.sae_view(best, 2).rows[0].title.startswith(f"SAE feature {best}")

    def test_padding_is_no_sample(self, tiny_features, sae):
        texts = [[1, 2, 3, 4, 5, 6], [6, 7, 8]] * 4
        found = pf.compare(tiny_features, sae, texts, n_top=4)
        assert found.n_samples == 36
        assert {len(row.tokens) for row in found.view(0, 8).rows} <= {3, 6}

    def test_the_features_own_examples_are_the_default(self, tiny_features, sae):
        assert pf.compare(tiny_features, sae, n_top=5).n_samples == len(tiny_features.examples) * 10

    def test_what_is_printed_holds_both_sides_and_their_controls(self, found):
        text = repr(found)
        for title in ("with a counterpart", "best correlation", "l0", "density", "dead", "purity_token", "purity_next"):
            assert title in text
        assert "shuffled" in text
        page = found._repr_html_()
        assert page.count("<tr>") == page.count("</tr>") == len(found.lines()) + 1 + 6
        assert "<script" not in page

    def test_the_model_is_left_as_it_was(self, tiny_features, sae, tiny_tokens):
        model = tiny_features.engine.adapter.module
        before = snapshot(model)
        pf.compare(tiny_features, sae, tiny_tokens[:4], n_top=5).view(0)
        assert_same(before, snapshot(model))


@pytest.fixture(scope="module")
def signed():
    sae = random_sae("abstopk", d_in=16, d_sae=12, k=3, metadata={"hook_name": HOOK})
    with torch.no_grad():
        sae.b_enc[4] = -20.0  # always active, and always negative
    return sae


@pytest.fixture(scope="module")
def beside(tiny_features, signed, tiny_tokens):
    return pf.compare(tiny_features, signed, tiny_tokens, n_top=10)


class TestSigned:
    """Features that are active in both directions count by the size of their activations, as parameter features do."""

    def test_a_strength_is_the_size_of_an_activation(self, beside, signed, tiny_features, tiny_tokens):
        acts = tiny_features.engine.adapter.model.run_with_cache(tiny_tokens)[1][HOOK].flatten(0, 1).float()
        with torch.no_grad():
            codes = signed.encode(acts)
        assert (codes < 0).any(0).sum() > 6 and (codes[:, 4] <= 0).all()
        torch.testing.assert_close(beside.sae_strengths.to_dense(), codes)
        ours = shares(tiny_features.activations(tiny_tokens).flatten(0, 1)).double()
        for pair in beside.pairs(2, 12):
            theirs = codes[:, pair.sae_feature].abs().double()
            expected = torch.corrcoef(torch.stack([ours[:, 2], theirs]))[0, 1]
            assert pair.correlation == pytest.approx(float(expected), abs=1e-4)
        assert bool(beside.of_sae.counted[4])
        torch.testing.assert_close(beside.sae_top[0], codes.abs().argmax(0))

    def test_its_random_directions_are_signed_too(self, beside):
        assert beside.metrics["random_sae"]["l0"] == pytest.approx(beside.metrics["sae"]["l0"], rel=0.05)
        acts = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)) + 4
        side = random_sae_side(acts, 40, 3.0, torch.Generator().manual_seed(0), signed=True)
        codes = side.codes.to_dense()
        assert 0.3 < float((codes[codes != 0] < 0).double().mean()) < 0.7
        torch.testing.assert_close(side.strengths.to_dense(), codes.abs())

    def test_a_view_keeps_the_sign(self, beside):
        assert beside.sae_view(4, 1).rows[0].title.startswith("SAE feature 4: -")


class TestErrors:
    def test_features_without_a_model(self, tiny_features, sae, tiny_tokens):
        with pytest.raises(NotBoundError, match="compare"):
            pf.compare(replace(tiny_features, engine=None), sae, tiny_tokens)

    def test_no_sae(self, tiny_features, tiny_tokens):
        with pytest.raises(AdapterError, match="sae is a Linear"):
            pf.compare(tiny_features, nn.Linear(2, 2), tiny_tokens)

    @pytest.mark.parametrize("changes", [{"n_top": 0}, {"level": 0}, {"level": 1}])
    def test_settings(self, tiny_features, sae, tiny_tokens, changes):
        with pytest.raises(SettingError, match="n_top=.*level="):
            pf.compare(tiny_features, sae, tiny_tokens, **changes)

    def test_places(self, tiny_features, tiny_tokens, sae):
        with pytest.raises(InputError, match="hook_name="):
            pf.compare(tiny_features, random_sae(d_in=16), tiny_tokens)
        with pytest.raises(UnknownHookError, match="blocks.1.hook_resid_post"):
            pf.compare(tiny_features, sae, tiny_tokens, hook_name="block.1.hook_resid_post")
        with pytest.raises(FeatureMismatchError, match="reads 16 numbers"):
            pf.compare(tiny_features, sae, tiny_tokens, hook_name="blocks.1.mlp.hook_post")

    def test_numbers_of_features(self, found):
        with pytest.raises(FeatureCountError, match="no parameter feature 6. They are numbered 0 to 5"):
            found.pairs(6)
        with pytest.raises(FeatureCountError, match="no SAE feature 12"):
            found.sae_view(12)
        with pytest.raises(SettingError, match="'cosine' is unknown.*'correlation'"):
            found.pairs(0, by="cosine")


def test_of_chosen_positions_these_alone_are_compared_labelled_and_shown(tiny_hooked, tiny_tokens, sae):
    call = {"n_features": 4, "l0": 1, "progress": False, "fit": pf.FitSettings(steps=3, batch_size=32)}
    features = pf.decompose(tiny_hooked, "blocks.0.attn.W_K", tiny_tokens, positions=slice(4, 8, 2), **call)
    found = pf.compare(features, sae, tiny_tokens, n_top=5)
    assert found.n_samples == 2 * len(tiny_tokens)
    acts = features.activations(tiny_tokens)[:, [4, 6]].flatten(0, 1)
    strongest = int(shares(acts)[:, 1].argmax())
    row, position = strongest // 2, 4 + 2 * (strongest % 2)
    assert tuple(found.inputs.sample_places[found.top[0, 1]].tolist()) == (row, position)
    shown = found.view(1, n=1).rows[0]
    assert shown.tokens[shown.marked] == str(int(tiny_tokens[row, position]))
    assert shown.title.startswith(f"feature 1: {features.activations(tiny_tokens[[row]])[0, position, 1]:+.4f}")
    theirs = found.view(1, n=1).rows[1]
    assert [value != 0 for place, value in enumerate(theirs.values) if place not in (4, 6)] == [False] * (
        len(theirs.values) - 2
    )


def test_components_are_compared_by_importance_beside_random_parts_that_read_the_same():
    """One part reads number 2 and is needed where that is there: the SAE's feature for it fires on the same samples."""
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.rand(600, N, generator=generator) < 1 / 6) * (0.5 + torch.rand(600, N, generator=generator))
    found = made_components(Layered(), {"out.weight": 3}, inputs=inputs)
    dictionary = found.dictionary
    dictionary.parts["out.weight"].V.copy_(torch.eye(N)[[2, 4, 5]])
    for tensor, value in zip(dictionary.net.weights, (1.0, 0.0, 0.3, 0.0), strict=True):
        tensor.fill_(value)
    found = pf.ParamComponents.of(replace(found, _example_readings=[]))
    sae = sae_of(torch.eye(N), hook_name="place")
    comparison = pf.compare(found, sae, inputs=inputs)
    assert comparison.tables.correlation.argmax(1).tolist() == [2, 4, 5]
    assert sorted(comparison.of_features.shared) == [0, 1, 2]
    needed, control = parameter_sides(found, found.read(None, inputs, "compare"), generator, n_calibrating=1)[:2]
    assert torch.equal(needed.strengths, found.activations(inputs=inputs))
    counts = [(side.codes > 0).sum(1).double().mean() for side in (needed, control)]
    assert counts[0] == pytest.approx(float(counts[1]), rel=0.01)
