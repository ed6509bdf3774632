"""The report's part about an SAE: what it shows is what `pf.compare` says, and the page works in a browser."""

import copy
import warnings

import pytest
import torch

import param_features as pf
from param_features.problem import read_inputs
from param_features.report import contents, write_report
from param_features.report.samples import digits
from param_features.sae.comparing import compare_on
from tests.saes import random_sae

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def compared(tiny_features, tiny_tokens):
    sae = random_sae(
        d_in=tiny_features.engine.adapter.module.cfg.d_model, metadata={"hook_name": HOOK, "neuronpedia_id": "m/0"}
    )
    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens[:20], None)
    return compare_on(tiny_features, sae, inputs, n_top=10)


@pytest.fixture(scope="module")
def found(compared, tiny_features):
    curve = tiny_features.errors_by_l0(n_samples=50)
    return contents(tiny_features, compared.inputs, curve, n_examples=3, comparison=compared)


def test_features_have_their_pairs(compared, found):
    for k, row in enumerate(found["features"]):
        assert [pair["sae"] for pair in row["sae"]] == [pair.sae_feature for pair in compared.pairs(k, 3)]
        assert row["sae"][0]["correlation"] == digits(compared.pairs(k, 1)[0].correlation)
        assert row["shared"] == (k in compared.of_features.shared)
        assert row["sae"][0]["url"].startswith("https://")
    assert sorted(found["sae"]["only_features"]) == sorted(compared.only_features)


def test_marks_are_the_other_sides_activations_on_the_same_tokens(compared, found, tiny_features):
    module = tiny_features.engine.adapter.module
    _, cache = module.run_with_cache(compared.inputs.tokens)
    codes = compared.sae.encode(cache[HOOK].flatten(0, 1))
    codes = torch.cat(list(codes)).reshape(20, 10, -1)
    row = found["features"][1]
    for example in row["examples"]:
        expected = codes[example["row"], :, row["sae"][0]["sae"]]
        assert example["marks"] == pytest.approx(expected[: len(example["marks"])].tolist(), rel=1e-3, abs=1e-6)
    acts = tiny_features.activations(compared.inputs.tokens)
    for row in found["sae"]["features"]:
        for example in row["examples"]:
            expected = acts[example["row"], :, row["pair"]["feature"]]
            assert example["marks"] == pytest.approx(expected[: len(example["marks"])].tolist(), rel=1e-3, abs=1e-6)
            assert example["act"] > 0


def test_features_that_are_only_ever_negative_have_their_examples(tiny_features, tiny_tokens):
    sae = random_sae("abstopk", d_in=16, d_sae=12, k=3, metadata={"hook_name": HOOK})
    with torch.no_grad():
        sae.b_enc[4] = -20.0
    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens[:20], None)
    beside = compare_on(tiny_features, sae, inputs, n_top=10)
    page = contents(tiny_features, inputs, tiny_features.errors_by_l0(n_samples=50), n_examples=3, comparison=beside)
    shown = {row["pair"]["sae"]: row["examples"] for row in page["sae"]["features"]}
    assert shown[4] and all(example["act"] < 0 for example in shown[4])


def test_every_active_sae_feature_is_listed_least_correlated_first(compared, found):
    section = found["sae"]
    correlations = [row["pair"]["correlation"] for row in section["features"]]
    assert correlations == sorted(correlations)
    assert section["n_active"] == section["n_shown"] == len(correlations) == int(compared.of_sae.counted.sum())
    alone = [row["pair"]["sae"] for row in section["features"] if not row["shared"]]
    assert sorted(alone) == sorted(compared.only_sae)


def test_the_page_shows_both_sides(found, page, traffic, tmp_path):
    page.goto(write_report(tmp_path / "report.html", "t", found).as_uri())
    page.wait_for_selector("#errors .main-svg")
    assert page.locator("#sae-lines tr").count() == len(found["sae"]["lines"])
    assert page.locator("#sae-table tbody tr").count() == found["sae"]["n_shown"]
    page.select_option("#sae-filter", "alone")
    alone = sum(not row["shared"] for row in found["sae"]["features"])
    assert page.locator("#sae-table tbody tr").count() == alone
    assert page.locator("#feature .example").first.locator(".text").count() == 2
    assert page.locator("#feature a[href^='https://']").count() == 3
    page.select_option("#sae-filter", "all")
    page.locator("#sae-table summary").first.click()
    page.locator("#sae-table .example").first.wait_for()
    assert page.locator("#sae-table .example").first.locator(".text").count() == 2
    page.locator("#sae-table tbody a[href^='#feature-']").last.click()
    assert page.inner_text("#feature h2") == f"Feature {found['sae']['features'][-1]['pair']['feature']}"
    assert traffic.requests == traffic.errors == []


def test_hostile_tokens_run_nothing_in_either_line(found, page, traffic, tmp_path):
    hostile = copy.deepcopy(found)
    hostile["vocabulary"] = ["<img src=x onerror='window.pwned=1'>" for _ in hostile["vocabulary"]]
    for row in hostile["sae"]["features"]:
        row["label"] = "<img src=x onerror='window.pwned=1'>"
    page.goto(write_report(tmp_path / "report.html", "t", hostile).as_uri())
    page.wait_for_selector("#errors .main-svg")
    page.locator("#sae-table summary").first.click()
    page.locator("#sae-table .example").first.wait_for()
    assert page.locator("img").count() == 0
    assert page.evaluate("window.pwned") is None
    assert traffic.requests == traffic.errors == []


def test_report_takes_an_sae_from_its_folder(tiny_features, tiny_tokens, tmp_path):
    sae = random_sae(d_in=tiny_features.engine.adapter.module.cfg.d_model, metadata={"hook_name": HOOK})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae.save_model(str(tmp_path / "sae"))
    path = tiny_features.report(tmp_path / "report.html", tokens=tiny_tokens, sae=tmp_path / "sae", n_rows=10)
    assert "Comparison: 6 features of blocks.0.attn.W_K" in path.read_text(encoding="utf-8")


def test_an_sae_of_another_size_is_refused_before_anything_is_written(tiny_features, tmp_path):
    sae = random_sae(d_in=3, metadata={"hook_name": HOOK})
    with pytest.raises(pf.errors.FeatureMismatchError):
        tiny_features.report(tmp_path / "report.html", sae=sae)
    assert not list(tmp_path.iterdir())
