import base64
import builtins
import dataclasses
import importlib

import pytest
import torch

import param_features as pf
from param_features.errors import FeatureCountError, InputError, MissingExtraError, SettingError, UnknownParameterError
from param_features.measure.weight import weight_by_head
from param_features.plots.features import _blocks
from tests.browser import executable
from tests.models import hooked_transformer
from tests.saes import random_sae

pytest.importorskip("plotly")


def numbers(values) -> torch.Tensor:
    """A trace's data, which plotly may have packed."""
    if isinstance(values, dict):
        values = importlib.import_module("numpy").frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return torch.tensor([float("nan") if value is None else float(value) for value in values], dtype=torch.float64)


def rows(z) -> torch.Tensor:
    return torch.stack([numbers(row) for row in z])


def assert_named(figure):
    """Every plot says what it shows and what its axes count."""
    assert figure.layout.title.text
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert axis.title.text


@pytest.fixture(scope="module")
def several(tiny_hooked, tiny_tokens):
    """A fit of matrices with heads and one without."""
    params = ["blocks.0.attn.W_K", "blocks.0.attn.W_O", "blocks.0.mlp.W_in"]
    fit = pf.FitSettings(steps=20, selection="l1")
    return pf.decompose(tiny_hooked, params, tiny_tokens, n_features=5, l0=2, fit=fit, progress=False)


def test_density_counts_how_often_codes_are_not_zero(tiny_features, tiny_tokens):
    figure = pf.plot.density(tiny_features, tiny_tokens, n_bins=8)
    assert_named(figure)
    kept = tiny_features.codes(tiny_tokens) != 0
    shares = torch.stack([kept[..., feature].double().mean() for feature in range(6)])
    bars = figure.data[0]
    left, right = numbers(bars.x) - numbers(bars.width) / 2, numbers(bars.x) + numbers(bars.width) / 2
    alive, last = shares[shares > 0].log10(), right.max()
    expected = [
        int(((alive >= low) & ((alive < high) | (high == last))).sum()) for low, high in zip(left, right, strict=True)
    ]
    assert numbers(bars.y).tolist() == expected
    assert sum(expected) == int((shares > 0).sum())
    assert f"{int((shares == 0).sum())} kept by no sample" in figure.layout.title.text


def test_padding_is_no_sample(tiny_features):
    texts = [[1, 2, 3, 4], [5, 6]]
    acts, codes = tiny_features.samples(texts)
    assert acts.shape == codes.shape == (6, 6)
    both = [tiny_features.activations(torch.tensor([row]))[0] for row in texts]
    torch.testing.assert_close(acts, torch.cat(both), rtol=1e-5, atol=1e-8)


def test_pareto_draws_the_curve_and_its_controls(tiny_features, tiny_tokens):
    figure = pf.plot.pareto(tiny_features, tiny_tokens, l0s=[1, 3], n_samples=100)
    assert_named(figure)
    curve = tiny_features.errors_by_l0(tiny_tokens, l0s=[1, 3], n_samples=100)
    assert [trace.name for trace in figure.data] == [
        "features",
        "principal directions",
        "random directions",
        "singular directions of W",
        "the same of all training samples",
    ]
    assert (*figure.data[-1].x, *figure.data[-1].y) == (2, tiny_features.metrics["control_pca"])
    for trace, name in zip(figure.data, curve.errors, strict=False):
        assert numbers(trace.x).tolist() == [1, 3]
        assert numbers(trace.y).tolist() == list(curve.errors[name])


def test_pareto_of_several_fits_has_one_line_each(tiny_features):
    figure = pf.plot.pareto([tiny_features, tiny_features], l0s=[1], n_samples=40)
    assert [trace.name for trace in figure.data][:2] == ["fit 0: 6 features", "fit 1: 6 features"]
    assert len(figure.data) == 6
    with pytest.raises(SettingError, match="features is empty. Give a fit"):
        pf.plot.pareto([])


def test_activations_are_counted_by_whether_they_are_kept(tiny_features, tiny_tokens):
    figure = pf.plot.activations(tiny_features, 2, tiny_tokens, n_bins=7)
    assert_named(figure)
    assert "nats per unit step" in figure.layout.xaxis.title.text
    acts, codes = (
        values.flatten(0, 1)[:, 2] for values in (tiny_features.activations(tiny_tokens), tiny_features.codes(tiny_tokens))
    )
    bound, found = acts.abs().max(), {trace.name: trace for trace in figure.data}
    for name, kept in (("kept", codes != 0), ("not kept", codes == 0)):
        place = ((acts[kept] / bound + 1) * 4).floor().clamp(max=7).long()  # an even number of bars
        assert numbers(found[name].y).tolist() == torch.bincount(place, minlength=8).tolist()
    with pytest.raises(FeatureCountError, match="There is no feature 6"):
        pf.plot.activations(tiny_features, 6)


def test_direction_shows_shares_by_parameter_and_head(several):
    figure = pf.plot.direction(several, 1, param="blocks.0.mlp.W_in")
    shares, matrix = figure.data
    tensors = several.direction(1)
    total = sum(float(tensor.square().sum()) for tensor in tensors.values())
    heads = [float(tensors["blocks.0.attn.W_K"][head].square().sum()) / total for head in range(2)]
    assert list(shares.y) == list(tensors)
    assert list(shares.x) == ["whole", "0", "1"]
    found = dict(zip(tensors, rows(shares.z), strict=True))
    assert found["blocks.0.attn.W_K"][1:].tolist() == pytest.approx(heads, rel=1e-5)
    assert found["blocks.0.mlp.W_in"][0] == pytest.approx(
        float(tensors["blocks.0.mlp.W_in"].square().sum()) / total, rel=1e-5
    )
    assert rows(shares.z).nan_to_num().sum() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(rows(matrix.z).float(), tensors["blocks.0.mlp.W_in"].T.float())
    assert matrix.zmax == -matrix.zmin == pytest.approx(float(tensors["blocks.0.mlp.W_in"].abs().max()))


def test_direction_without_parts_is_one_matrix_and_needs_no_model():
    features = pf.decompose(
        torch.nn.Linear(6, 4), "weight", inputs=torch.randn(80, 6, generator=torch.Generator().manual_seed(0)),
        n_features=3, l0=1, steps=5, progress=False,
    )  # fmt: skip
    (matrix,) = pf.plot.direction(dataclasses.replace(features, engine=None), 2).data
    torch.testing.assert_close(rows(matrix.z).float(), features.direction(2)["weight"])
    with pytest.raises(UnknownParameterError, match="'bias' was not decomposed. Parameters here: weight"):
        pf.plot.direction(features, 2, param="bias")


def test_shares_of_a_matrix_whose_heads_are_the_middle_axis():
    tensor = torch.arange(12.0).reshape(3, 2, 2)
    found = weight_by_head({"w": tensor}, {"w": "o head i -> o (head i)"})
    assert found["w"].tolist() == pytest.approx([float(tensor[:, h].square().sum() / tensor.square().sum()) for h in (0, 1)])


def test_large_matrices_are_shown_by_their_largest_entries():
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found = _blocks(matrix, 2, 3)
    assert found.shape == (3, 3)
    for row in range(3):
        for column in range(3):
            block = matrix[2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten()
            assert found[row, column] == block[block.abs().argmax()]


def test_compare_finds_each_features_nearest_and_chance_does_not():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(500, 4, generator=generator)
    two = torch.stack([-one[:, 2], one[:, 0] + torch.randn(500, generator=generator), torch.ones(500)], 1)
    figure = pf.plot.compare(one, two)
    assert_named(figure)
    found, chance = (numbers(trace.y) for trace in figure.data)
    each = [max(abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) for b in two.T[:2]) for a in one.T]
    assert found.tolist() == pytest.approx(sorted(each, reverse=True), abs=1e-5)
    assert found[:2].min() > 0.6 > 0.2 > chance.max()


def test_compare_shows_counterparts_beside_random_directions(tiny_features, tiny_tokens):
    d_model = tiny_features.engine.adapter.module.cfg.d_model
    sae = random_sae(d_in=d_model, metadata={"hook_name": "blocks.0.hook_resid_post"})
    comparison = pf.compare(tiny_features, sae, tiny_tokens[:10], n_top=5)
    found, random = (numbers(trace.y) for trace in pf.plot.compare(comparison).data)
    assert found.tolist() == pytest.approx(sorted(comparison.of_features.best.tolist(), reverse=True))
    assert random.tolist() == pytest.approx(sorted(comparison.of_features.random.tolist(), reverse=True))


def test_compare_takes_matches_and_whatever_holds_correlations(tiny_features):
    match = pf.match(tiny_features, tiny_features)
    found, chance = (numbers(trace.y) for trace in pf.plot.compare(match).data)
    assert found.tolist() == pytest.approx([1.0] * 6)
    assert chance.tolist() == pytest.approx([match.control_cosine] * 6)

    class Held:
        correlation = torch.tensor([[0.1, -0.9], [0.3, 0.2]])

    (line,) = pf.plot.compare(Held()).data
    assert numbers(line.y).tolist() == pytest.approx([0.9, 0.3])
    with pytest.raises(InputError, match=r"Got \(5, 2\) and \(4, 2\). Give what pf.match returned"):
        pf.plot.compare(torch.ones(5, 2), torch.ones(4, 2))


def test_a_saved_page_needs_no_network(tiny_features, tmp_path, page, traffic):
    path = pf.plot.save(pf.plot.density(tiny_features), tmp_path / "density.html")
    page.goto(path.as_uri())
    page.wait_for_selector(".main-svg .bars")
    assert "Density of 6 features" in page.text_content(".gtitle")
    assert traffic.requests == traffic.errors == []


def test_images_are_written_where_there_is_a_browser(tiny_features, tmp_path):
    if executable() is None:
        pytest.skip("no browser found")
    figure = pf.plot.density(tiny_features)
    assert pf.plot.save(figure, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in pf.plot.save(figure, tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_suffix_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"'a.txt' ends in '.txt'. Accepted: .html, .png"):
        pf.plot.save(pf.plot.compare(torch.eye(3), torch.eye(3)), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_a_missing_browser_is_named(tmp_path, monkeypatch):
    figure = pf.plot.compare(torch.eye(3), torch.eye(3))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(MissingExtraError, match="apt install chromium"):
        pf.plot.save(figure, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("hidden", "advice"), [("plotly", "Plots need plotly"), ("kaleido", "Images of plots need kaleido")]
)
def test_a_missing_library_is_named(hidden, advice, tmp_path, monkeypatch):
    figure, real = pf.plot.compare(torch.eye(3), torch.eye(3)), builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == hidden:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(importlib, "import_module", lambda name: refuse(name))
    with pytest.raises(MissingExtraError, match=advice) as caught:
        pf.plot.compare(torch.eye(3), torch.eye(3)) if hidden == "plotly" else pf.plot.save(figure, tmp_path / "a.png")
    assert 'pip install "param_features[plots]"' in str(caught.value)


def test_steering_draws_the_outputs_that_move_most(tiny_hooked, tiny_features, tiny_tokens):
    figure = pf.plot.steering(tiny_features, 0, tiny_tokens[:4], deltas=[0.5, 0.0, -0.5], n_outputs=3)
    assert len(figure.data) == 3
    expected = []
    for delta in (-0.5, 0.0, 0.5):
        with torch.no_grad(), tiny_features.steer({0: delta}):
            expected.append(tiny_hooked(tiny_tokens[:4])[:, -1].softmax(-1).mean(0))
    expected = torch.stack(expected)
    spans = expected.amax(0) - expected.amin(0)
    most = spans.topk(3).indices
    for line, output in zip(figure.data, most.tolist(), strict=True):
        assert list(line.x) == [-0.5, 0.0, 0.5]
        torch.testing.assert_close(torch.tensor(line.y, dtype=torch.float64), expected[:, output].double())
    for wrong in ({"deltas": [0.1]}, {"n_outputs": 0}):
        with pytest.raises(SettingError, match="two steps or more and a line"):
            pf.plot.steering(tiny_features, 0, tiny_tokens[:4], **wrong)


def test_steering_of_inputs_draws_outputs_and_heeds_padding(tiny_features, tiny_tokens):
    linear = torch.nn.Linear(4, 3)
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    features = pf.decompose(linear, "weight", inputs=inputs, n_features=2, l0=1, steps=3, progress=False)
    figure = pf.plot.steering(features, 1, inputs=inputs[:5])
    assert figure.layout.yaxis.title.text == "mean output"
    assert {line.name for line in figure.data} == {"output 0", "output 1", "output 2"}
    mask = torch.ones_like(tiny_tokens[:2])
    mask[:, 7:] = 0
    padded = {"input_ids": tiny_tokens[:2], "attention_mask": mask}
    short, long = (pf.plot.steering(tiny_features, 0, given).data[0] for given in (tiny_tokens[:2, :7], padded))
    torch.testing.assert_close(torch.tensor(short.y), torch.tensor(long.y))


def test_query_key_draws_one_head_beside_random_directions():
    model = hooked_transformer(positional_embedding_type="rotary", rotary_dim=8)
    tokens = torch.randint(20, (20, 8), generator=torch.Generator().manual_seed(1))
    fit = pf.FitSettings(steps=2, selection="l1")
    call = {"n_features": 4, "l0": 1, "fit": fit, "n_samples": 64, "progress": False}
    features = pf.decompose(model, "blocks.0.attn.W_[QK]", tokens, **call)
    table = pf.circuits.query_key(features, distances=(0, 3))
    figure = pf.plot.query_key(table, head=1, distance=3, least=0)
    assert_named(figure)
    assert figure.layout.title.text == "4 query × 4 key features of blocks.0.attn in head 1, at distance 3"
    for trace, one in zip(figure.data, (table, table.control), strict=True):
        assert sorted(trace.x) == sorted(trace.y) == ["0", "1", "2", "3"]
        queries, keys = ([int(name) for name in names] for names in (trace.y, trace.x))
        assert numbers(table.query_heads[queries, 1]).diff().max() <= 0
        assert numbers(table.key_heads[keys, 1]).diff().max() <= 0
        torch.testing.assert_close(rows(trace.z), one.score[queries][:, keys, 1, 1].double())
        bound = max(float(side.score[..., 1, 1].abs().max()) for side in (table, table.control))
        assert trace.zmax == -trace.zmin == pytest.approx(bound)
    few = pf.plot.query_key(table, head=1, distance=3, least=0.9).data[0]
    shares = table.query_heads[:, 1]
    assert {int(name) for name in few.y} == {k for k in range(4) if shares[k] >= 0.9 * shares.max()}
    (best,) = table.top(1)
    assert f"in head {best.head}, at distance {best.distance}" in pf.plot.query_key(table).layout.title.text
    assert len(pf.plot.query_key(table.control).data) == 1
    with pytest.raises(SettingError, match="distance=1 is not in the table"):
        pf.plot.query_key(table, distance=1)
    unturned = pf.circuits.query_key(pf.decompose(hooked_transformer(), "blocks.0.attn.W_[QK]", tokens, **call))
    assert "in head 0, at any distance" in pf.plot.query_key(unturned, head=0, distance=7).layout.title.text
