"""The report of components: their matrix and numbers where directions stand, and no curve of gradients."""

import pytest
import torch

from param_features.report import contents, write_report
from param_features.report.samples import digits

W_K, W_IN = "blocks.0.attn.W_K", "blocks.0.mlp.W_in"


@pytest.fixture(scope="module")
def found(tiny_components):
    return contents(tiny_components, tiny_components.own_examples, None, n_examples=3)


def test_components_are_measured_by_importance_and_their_own_score(found, tiny_components):
    overview = found["overview"]
    assert (overview["noun"], overview["measured"], overview["score"]) == ("Component", "importance, 0 to 1", "rounded")
    assert overview["error"] == 0.2 and overview["curve"] is None
    assert ["components", "7"] in overview["facts"]
    assert overview["matched_by"] == ["control_rotated"] and overview["verdict"]["is_warning"]
    density = (tiny_components.samples()[1] != 0).double().mean(0)
    assert [row["density"] for row in found["features"]] == [digits(value) for value in density.tolist()]


def test_a_component_has_its_matrix_and_largest_entries(found, tiny_components):
    part = found["features"][4]["part"]
    U, V = tiny_components.component(4)
    assert (part["site"], part["number"], part["size"]) == (W_IN, 1, digits(float(U.norm() * V.norm())))
    assert part["writes"][0] == [int(U.abs().argmax()), digits(float(U[U.abs().argmax()]))]
    assert [place for place, _ in part["reads"]] == V.abs().topk(8).indices.tolist()


def test_the_page_opens(found, page, tmp_path):
    page.goto(write_report(tmp_path / "report.html", "Seven components", found).as_uri())
    page.wait_for_selector("#errors .main-svg")
    assert page.inner_text("#feature h2") == "Component 0"
    assert f"number 0 of {W_K}" in page.inner_text("#feature")
    assert not page.locator("#curve").is_visible()


def test_the_whole_report_is_written_from_the_facade(tiny_components, tmp_path):
    path = tiny_components.report(tmp_path / "all.html", tokens=torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), n_examples=1)
    assert "7 components of blocks.0.attn.W_K" in path.read_text()
