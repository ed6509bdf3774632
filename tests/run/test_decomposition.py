"""`pf.decompose` as a user calls it: what it refuses, what it returns, and that the same seed gives the same bits."""

import re

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import (
    EmptySelectionError,
    FeatureCountError,
    InferenceModeError,
    InputError,
    MemoryEstimateError,
    NoGradientError,
    NonFiniteError,
    OutputError,
    RankError,
    SampleCountError,
    SettingError,
    UnknownParameterError,
)

W_K = "blocks.0.attn.W_K"
QUICK = {"n_features": 6, "l0": 2, "steps": 10, "progress": False}


class Untouched(nn.Module):
    """Fails the test if it is run: refusals come before any work."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.unembed = nn.Linear(4, 10)

    def forward(self, tokens):
        raise AssertionError("the model was run before the input was refused")


GOOD = torch.zeros(20, 6, dtype=torch.long)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"params": "unembed.wait"}, UnknownParameterError, r"nearest: 'unembed.weight'.*pf\.list_params"),
        ({"params": "blocks.*.W_K"}, UnknownParameterError, r"No parameter matches 'blocks\.\*\.W_K'"),
        ({"params": re.compile("none")}, UnknownParameterError, r"3 parameters"),
        ({"params": []}, EmptySelectionError, r"chooses no parameter"),
        ({"params": ""}, EmptySelectionError, r"chooses no parameter"),
        ({"tokens": torch.full((20, 6), 10)}, InputError, r"tokens\[0, 0\] is 10.*ids 0 to 9"),
        ({"tokens": torch.full((20, 6), -1)}, InputError, r"tokens\[0, 0\] is -1"),
        ({"tokens": torch.zeros(20, 6)}, InputError, r"torch\.float32.*integers"),
        ({"tokens": torch.zeros(6, dtype=torch.long)}, InputError, r"unsqueeze\(0\)"),
        ({"tokens": torch.zeros(0, 6, dtype=torch.long)}, InputError, r"at least one"),
        ({"tokens": None}, InputError, r"neither tokens nor inputs"),
        ({"inputs": GOOD}, InputError, r"both tokens and inputs"),
        ({"tokens": ["a text"]}, InputError | TypeError, r"has no tokenizer"),
        ({"l0": 0}, FeatureCountError, r"l0=0 lies outside \(0, 6\]"),
        ({"l0": 7}, FeatureCountError, r"l0=7 lies outside"),
        ({"n_features": 0}, FeatureCountError, r"n_features=0"),
        ({"fit": pf.FitSettings(rank=5)}, RankError, r"rank=5 lies outside 1 to 4.*unembed.weight 10×4"),
        ({"fit": pf.FitSettings(rank=0)}, RankError, r"rank=0"),
        ({"method": "l3e"}, SettingError, r"nearest: 'l3d'"),
        ({"steps": 0}, SettingError, r"steps=0 must be positive"),
        ({"n_samples": -3}, SettingError, r"n_samples=-3"),
    ],
)
def test_refused_before_the_model_runs(changes, error, message):
    call = {"params": "unembed.weight", "tokens": GOOD, **QUICK, **changes}
    expected = error if isinstance(error, type) else error.__args__
    with pytest.raises(expected, match=message):
        pf.decompose(Untouched(), **call)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_features": 9999, "l0": 2}, SampleCountError, r"40 sequences.*fewer than the 9999 features"),
        ({"n_samples": 10, "n_features": 20}, SampleCountError, r"fewer than the 20 features"),
        ({"divergence": "k1"}, SettingError, r"nearest: 'kl'"),
        ({"reference": "means"}, SettingError, r"nearest: 'mean'"),
        ({"reference": "label", "divergence": "se"}, SettingError, r"distribution over logits"),
        ({"reference": torch.zeros(7)}, InputError, r"\[20\] or \[n_references, 20\]"),
        (
            {"harvest": pf.HarvestSettings(max_memory_gib=1e-6, n_samples=300)},
            MemoryEstimateError,
            r"n_samples=\d+ or fewer",
        ),
    ],
)
def test_refused_before_the_harvest(tiny_hooked, tiny_tokens, changes, error, message, monkeypatch):
    from param_features.gradients import GradientStore

    monkeypatch.setattr(GradientStore, "add", lambda *_: pytest.fail("gradients were harvested"))
    with pytest.raises(error, match=message):
        pf.decompose(tiny_hooked, W_K, tiny_tokens, **{**QUICK, **changes})


def test_nan_in_the_weights_is_refused_by_name(classifier, images):
    with torch.no_grad():
        classifier.norm.weight[3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'norm.weight' holds 1 values"):
        pf.decompose(classifier, "norm.*", inputs=images, **QUICK)


def test_nan_elsewhere_shows_in_the_output_and_is_refused(classifier, images):
    with torch.no_grad():
        classifier.norm.weight[3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"output of shape"):
        pf.decompose(classifier, "classifier.weight", inputs=images, **QUICK)


class Returns(nn.Module):
    """Returns whatever a function makes of a linear layer's output."""

    def __init__(self, make) -> None:
        super().__init__()
        self.layer, self.unused, self.make = nn.Linear(3, 5), nn.Linear(3, 5), make

    def forward(self, x):
        return self.make(self.layer(x))


def test_inference_mode_is_refused_with_the_way_out():
    call, model = {"inputs": torch.randn(30, 3), **QUICK}, Returns(lambda y: y)
    with torch.inference_mode(), pytest.raises(InferenceModeError, match=r"outside the block.*no_grad"):
        pf.decompose(model, "layer.weight", **call)
    with torch.no_grad():
        pf.decompose(model, "layer.weight", **call)
    with torch.inference_mode():
        model = Returns(lambda y: y)
    with pytest.raises(NoGradientError, match=r"'layer.weight' was made under torch.inference_mode"):
        pf.decompose(model, "layer.weight", **call)


def test_output_that_is_neither_tensor_nor_logits_is_refused():
    with pytest.raises(OutputError, match=r"returned a dict.*output=lambda out"):
        pf.decompose(Returns(lambda y: {"y": y}), "layer.weight", inputs=torch.randn(30, 3), **QUICK)


def test_output_without_a_batch_axis_is_refused():
    with pytest.raises(InputError, match=r"first axis must be the batch"):
        pf.decompose(Returns(lambda y: y.mean()), "layer.weight", inputs=torch.randn(30, 3), **QUICK)


def test_a_parameter_without_influence_is_refused_by_name():
    with pytest.raises(NoGradientError, match=r"'unused.weight' has no gradient.*30 inputs"):
        pf.decompose(Returns(lambda y: y), ["layer.weight", "unused.weight"], inputs=torch.randn(30, 3), **QUICK)


class Rare(nn.Module):
    """A layer whose output counts only where the first input is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return x + (x[:, :1] > 5) * self.layer(x)


def test_a_parameter_that_few_inputs_reach_is_not_refused():
    inputs = torch.randn(600, 3).clamp(max=4)
    inputs[::40, 0] = 6
    acts = pf.decompose(Rare(), "layer.weight", inputs=inputs, **QUICK).activations(inputs=inputs)
    assert (acts.abs().sum(1) > 0).nonzero()[:, 0].tolist() == list(range(0, 600, 40))
    with pytest.raises(NoGradientError, match=r"'layer.weight' has a zero gradient"):
        pf.decompose(Rare(), "layer.weight", inputs=inputs.clamp(max=4), **QUICK)


def test_an_object_with_logits_takes_kl_and_a_tensor_of_numbers_squared_error(capsys):
    class Out:
        def __init__(self, logits):
            self.logits = logits

    call = {**QUICK, "progress": True, "inputs": torch.randn(60, 3)}
    assert pf.decompose(Returns(Out), "layer.weight", **call).divergence.name == "kl"
    assert "divergence: 'kl', since" in capsys.readouterr().err
    assert pf.decompose(Returns(lambda y: y), "layer.weight", **call).divergence.name == "se"
    assert "divergence: 'se', since" in capsys.readouterr().err


def test_same_seed_same_bits(tiny_hooked, tiny_tokens):
    first, second = (pf.decompose(tiny_hooked, W_K, tiny_tokens, seed=3, **QUICK) for _ in range(2))
    for one, two in zip(first.v_in.tensors + first.v_out.tensors, second.v_in.tensors + second.v_out.tensors, strict=True):
        assert torch.equal(one, two)
    assert dict(first.metrics) == dict(second.metrics)
    assert torch.equal(first.references, second.references)
    other = pf.decompose(tiny_hooked, W_K, tiny_tokens, seed=4, **QUICK)
    assert not torch.equal(first.v_out.tensors[0], other.v_out.tensors[0])


def test_held_out_sequences_are_not_trained_on(tiny_hooked, tiny_tokens, monkeypatch):
    from param_features.gradients import Harvester

    seen, store = [], Harvester.store

    def watched(harvester, inputs, *args, **kwargs):
        seen.append({tuple(row) for row in inputs.tokens.tolist()})
        return store(harvester, inputs, *args, **kwargs)

    monkeypatch.setattr(Harvester, "store", watched)
    features = pf.decompose(tiny_hooked, W_K, tiny_tokens, **QUICK)
    train, held_out = seen
    assert not train & held_out
    assert {tuple(row) for row in features.examples.tokens.tolist()} <= held_out


def test_metrics_come_with_controls_at_the_same_l0(tiny_features):
    metrics = tiny_features.metrics
    assert {"reconstruction_error", "l0", "dead", "control_pca", "control_random", "control_svd_w"} <= set(metrics)
    assert metrics["l0"] == 2
    assert 0 < metrics["control_pca"] < metrics["control_random"] <= 1


@pytest.mark.parametrize("reference", ["sample", "mean", "uniform", "label"])
@pytest.mark.parametrize("params", [W_K, ["blocks.1.mlp.W_out", "blocks.1.mlp.b_out"], "embed.W_E", "pos_embed.W_pos"])
def test_every_reference_fits_factored_and_dense_parameters(tiny_hooked, tiny_tokens, reference, params):
    features = pf.decompose(tiny_hooked, params, tiny_tokens, reference=reference, **QUICK)
    assert 0 < features.metrics["reconstruction_error"] < 1.5
    assert features.activations(tiny_tokens[:2]).isfinite().all()


def test_texts_and_dataset_columns_are_tokenised():
    pytest.importorskip("transformer_lens")
    datasets = pytest.importorskip("datasets")
    model = pf.demo.load_model()
    texts = [story.partition(". ")[0] for story in pf.demo.stories(30)]
    features = pf.decompose(model, "blocks.0.attn.W_K", texts, n_samples=150, **QUICK)
    ids = [model.to_tokens(text)[0].tolist() for text in texts]
    columns = datasets.Dataset.from_dict({"text": texts, "ids": ids})
    for column in (ids, columns["text"], columns["ids"]):
        same = pf.decompose(model, "blocks.0.attn.W_K", column, n_samples=150, **QUICK)
        assert torch.equal(features.v_out.tensors[0], same.v_out.tensors[0])


def test_list_params_names_shapes_and_sizes(tiny_hooked):
    rows = {row.name: row for row in pf.list_params(tiny_hooked)}
    assert set(rows) == {name for name, _ in tiny_hooked.named_parameters()}
    assert rows[W_K].shape == (2, 16, 8)
    assert rows[W_K].n_params == 256
