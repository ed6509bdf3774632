import dataclasses
from collections import Counter

import pytest
import torch

import param_features as pf
from param_features.errors import NonFiniteError, NotBoundError, SettingError
from param_features.problem import ModelInputs, read_inputs
from param_features.report import contents
from param_features.report.document import histogram, read_page
from param_features.report.samples import digits, image_bytes, kind_of


@pytest.fixture(scope="module")
def pursued(tiny_hooked, tiny_tokens):
    """Two parameters and a pursuit fit, in which V_in and V_out differ."""
    fit = pf.FitSettings(steps=20, batch_size=64)
    names = ["blocks.0.attn.W_K", "blocks.0.mlp.W_in"]
    return pf.decompose(tiny_hooked, names, tiny_tokens, n_features=6, l0=2, fit=fit, progress=False)


@pytest.fixture(scope="module")
def found(pursued, tiny_tokens):
    inputs = read_inputs(pursued.engine.adapter, tiny_tokens[:12], None)
    curve = pursued.errors_by_l0(tiny_tokens[:12], n_samples=64)
    return contents(pursued, inputs, curve, n_examples=4)


def test_one_pass_reads_activations_and_codes(pursued, tiny_tokens):
    readings = read_page(pursued, read_inputs(pursued.engine.adapter, tiny_tokens[:8], None))
    torch.testing.assert_close(readings.acts, pursued.activations(tiny_tokens[:8]))
    assert torch.equal(readings.is_kept, pursued.codes(tiny_tokens[:8]) != 0)
    assert readings.is_real.all()


def test_padding_is_no_sample(pursued, tiny_tokens):
    mask = torch.ones(6, 10, dtype=torch.long)
    mask[0, :4] = 0
    inputs = read_inputs(pursued.engine.adapter, {"input_ids": tiny_tokens[:6], "attention_mask": mask}, None)
    readings = read_page(pursued, inputs)
    assert readings.is_real.sum(1).tolist() == [6, 10, 10, 10, 10, 10]
    assert (readings.acts[0, :6] != 0).any(1).all()
    assert not readings.acts[0, 6:].any()


def test_every_feature_has_its_numbers(pursued, tiny_tokens, found):
    density = (pursued.codes(tiny_tokens[:12]) != 0).double().mean((0, 1))
    largest = pursued.activations(tiny_tokens[:12]).abs().amax((0, 1))
    assert [row["density"] for row in found["features"]] == [digits(value) for value in density.tolist()]
    for row, expected in zip(found["features"], largest.tolist(), strict=True):
        assert abs(row["largest"]) == digits(expected)
        assert sum(row["histogram"]["counts"]) == 120
        assert sum(sum(shares) for shares in row["weight"].values()) == pytest.approx(1, abs=1e-3)
        assert len(row["weight"]["blocks.0.attn.W_K"]) == 2


def test_examples_are_those_of_top_examples(pursued, tiny_tokens, found):
    strings = found["vocabulary"]
    for k in range(6):
        best = pursued.top_examples(k, 4, tokens=tiny_tokens[:12])
        assert [example.row for example in best] == [shown["row"] for shown in found["features"][k]["examples"]]
        for example, shown in zip(best, found["features"][k]["examples"], strict=True):
            assert strings[shown["tokens"][shown["at"]]] == example.tokens[example.position]
            assert shown["acts"][shown["at"]] == shown["act"] == digits(example.activation)
            assert (None if shown["next"] is None else strings[shown["next"]]) == example.next_token


def test_tokens_are_counted_over_the_top_examples(pursued, tiny_tokens, found):
    best = pursued.top_examples(2, 50, tokens=tiny_tokens[:12])
    expected = Counter(example.tokens[example.position] for example in best)
    shown = {found["vocabulary"][token]: n for token, n in found["features"][2]["on"]}
    assert len(shown) == min(8, len(expected))
    assert all(expected[token] == n for token, n in shown.items())


def test_neighbours_are_the_largest_cosines(pursued, found):
    gram = pursued.v_out.gram()
    nearest = found["features"][3]["nearest"]
    others = sorted((abs(float(gram[3, k])) for k in range(6) if k != 3), reverse=True)
    assert [abs(cosine) for _, cosine in nearest] == pytest.approx(others, rel=1e-3)
    assert 3 not in [k for k, _ in nearest]


def test_lists_of_moved_logits_keep_their_sign(found):
    for row in found["features"]:
        assert row["up"] or row["down"]
        assert all(change > 0 for _, change in row["up"])
        assert all(change < 0 for _, change in row["down"])


def test_overview_names_controls_that_match(pursued, tiny_tokens):
    metrics = pf.Metrics(dict(pursued.metrics) | {"control_pca": 0.0})
    matched = dataclasses.replace(pursued, metrics=metrics)
    inputs = read_inputs(pursued.engine.adapter, tiny_tokens[:4], None)
    curve = pursued.errors_by_l0(tiny_tokens[:4], n_samples=40, l0s=[1, 2])
    overview = contents(matched, inputs, curve, n_examples=1)["overview"]
    assert "control_pca" in overview["matched_by"]
    assert overview["curve"]["l0"] == [1, 2]
    assert overview["error"] == digits(pursued.metrics["reconstruction_error"])


def test_images_and_vectors_are_shown_as_such(classifier, images):
    call = {"n_features": 3, "l0": 1, "steps": 5, "progress": False}
    features = pf.decompose(classifier, "*weight", inputs=images, **call)
    inputs = read_inputs(features.engine.adapter, None, images[:20])
    curve = features.errors_by_l0(inputs=images[:20])
    found = contents(features, inputs, curve, n_examples=3)
    assert found["kind"] == "images"
    shown = found["features"][0]["examples"][0]
    with torch.no_grad():
        output = classifier(images[shown["row"] : shown["row"] + 1]).flatten()
    assert shown["output"] == pytest.approx(output.tolist(), rel=1e-3)
    assert "on" not in found["features"][0]


def test_pixels_run_from_the_smallest_to_the_largest_value():
    image = torch.tensor([[[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]])
    import base64

    found = image_bytes(image)
    assert (found["height"], found["width"]) == (2, 3)
    assert list(base64.b64decode(found["rgb"]))[::3] == [0, 128, 255, 255, 128, 0]


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(4, 3, 5, 5), "images"),
        (torch.zeros(4, 7, 5, 5), "inputs"),
        (torch.zeros(4, 9), "vectors"),
        (torch.zeros(4, 900), "inputs"),
    ],
)
def test_kinds(tensor, kind):
    assert kind_of(ModelInputs((tensor,), {}), per_position=False) == kind


def test_histogram_counts_every_value_once():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    found = histogram(values)
    width = (found["to"] - found["from"]) / 40
    tenth = sum(1 for value in values.tolist() if found["from"] + 9 * width <= value < found["from"] + 10 * width)
    assert sum(found["counts"]) == 500
    assert abs(found["counts"][9] - tenth) <= 1
    assert sum(histogram(torch.zeros(7))["counts"]) == 7


def test_a_number_that_is_none_is_refused():
    with pytest.raises(NonFiniteError, match="is nan, which would be shown as nothing"):
        digits(float("nan"))


def test_refusals(pursued, tmp_path):
    with pytest.raises(SettingError, match="n_examples=0 and n_rows=200 must be positive"):
        pursued.report(tmp_path / "x.html", n_examples=0)
    with pytest.raises(NotBoundError, match="report"):
        dataclasses.replace(pursued, engine=None).report(tmp_path / "x.html")
    assert not list(tmp_path.iterdir())
