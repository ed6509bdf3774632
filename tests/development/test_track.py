"""Features through checkpoints: each number against the model with that checkpoint's weights, and planted changes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, jvp

import param_features as pf
from param_features.development import track_rows
from param_features.errors import (
    FeatureCountError,
    InputError,
    NonFiniteError,
    NotBoundError,
    SampleCountError,
    SettingError,
    UnknownParameterError,
)
from param_features.gradients import collect_references, plan_engine
from param_features.params import adapter_for
from tests.oracle import problem_of

NAME = "blocks.0.attn.W_K"
STEPS = (0, 10, 40)


def moved(model, size, seed):
    """The model's weights with noise on all of them."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found[name] += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return found


@pytest.fixture(scope="module")
def states(tiny_hooked):
    return [moved(tiny_hooked, 0.3, 0), moved(tiny_hooked, 0.1, 1), moved(tiny_hooked, 0, 2)]


@pytest.fixture(scope="module")
def tracked(tiny_features, tiny_tokens, states):
    return pf.track(dict(zip(STEPS, states, strict=True)), tiny_features, tiny_tokens, n_samples=300, progress=False)


@pytest.fixture(scope="module")
def there(tiny_features, tiny_hooked, states):
    """The same features at the first checkpoint's weights, in a model of their own."""
    model = copy.deepcopy(tiny_hooked)
    model.load_state_dict(states[0])
    adapter = adapter_for(model)
    subset = pf.params.select(adapter.views(), NAME)
    engine = plan_engine(problem_of(adapter, subset, tiny_features.examples))
    return replace(tiny_features, engine=engine, _example_readings=[])


def own_references(features, tokens):
    rows = features.inputs_or_examples(tokens, None)
    call = (features.engine, features.divergence, rows, "sample", len(features.references))
    return collect_references(*call, torch.Generator().manual_seed(0))


def test_impact_and_density_are_those_of_the_checkpoints_own_model(tracked, there, tiny_tokens):
    rows, references = tiny_tokens[:30], own_references(there, tiny_tokens)
    acts = there.activations(rows, reference=references.log()).flatten(0, 1)
    assert torch.allclose(tracked.impact[0], acts.abs().mean(0).double(), rtol=1e-9)
    codes = there.codes(rows, reference=references.log()).flatten(0, 1)
    assert torch.equal(tracked.density[0], (codes != 0).double().mean(0))
    assert 0 < float(tracked.density[0].mean()) < 1


def test_curvature_is_the_variance_of_the_logits_slopes(tracked, there, tiny_tokens):
    model, rows = there.engine.adapter.module, tiny_tokens[:30]
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for feature in (0, 4):
        along = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        along[NAME] = there.direction(feature)[NAME].double()
        logits, slopes = jvp(lambda w: functional_call(model, w, (rows,)), (weights,), (along,))
        p = logits.softmax(-1)
        variance = (p * slopes.square()).sum(-1) - (p * slopes).sum(-1).square()
        assert float(tracked.curvature[0, feature]) == pytest.approx(float(variance.mean()), rel=1e-6)


def test_errors_are_those_of_the_checkpoints_own_gradients(tracked, there, tiny_tokens):
    curve = there.errors_by_l0(tiny_tokens, l0s=[2], n_samples=300)
    expected = {name: values[0] for name, values in curve.errors.items()}
    random = expected.pop("control_random")
    assert {name: float(tracked.errors[name][0]) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert float(tracked.errors["control_random"][0]) == pytest.approx(random, abs=0.03)  # the mean of four draws


def test_changes_are_those_between_checkpoints(tracked, tiny_features, states):
    for place in (1, 2):
        found = tiny_features.coordinates(states[place], since=states[place - 1])
        assert torch.allclose(tracked.moves[place], found.overlaps)
        numbers = [float(values[place]) for values in (tracked.norm, tracked.share, tracked.share_random)]
        assert numbers == pytest.approx([found.norm, found.share, found.share_random])
    assert tracked.moves[0].isnan().all()
    assert tracked.share[0].isnan()


def test_home_is_the_checkpoint_that_the_features_were_fitted_at(tracked, tiny_features):
    assert tracked.home == 2
    assert tracked.steps == STEPS
    assert tracked.home_errors["reconstruction_error"] == tracked.errors["reconstruction_error"][2]
    assert float(tracked.staleness[2]) == 1
    assert float(tracked.staleness[0]) > 1
    assert tracked.features is tiny_features


def test_home_is_measured_apart_where_no_checkpoint_has_its_weights(tracked, tiny_features, tiny_tokens, states):
    found = pf.track(states[:1], tiny_features, tiny_tokens, n_samples=300, progress=False)
    assert found.home is None
    assert found.home_errors == tracked.home_errors
    assert "Fitted at other weights than any checkpoint's" in found.drift
    assert torch.equal(found.impact[0], tracked.impact[0])


def test_the_model_is_as_it_was_after_success_and_after_a_broken_checkpoint(tiny_features, tiny_hooked, tiny_tokens, states):
    before = {name: tensor.clone() for name, tensor in tiny_hooked.state_dict().items()}
    generator = torch.random.get_rng_state()
    broken = {**states[1], NAME: torch.full_like(states[1][NAME], float("nan"))}
    with pytest.raises(NonFiniteError) as caught:
        pf.track({0: states[0], 7: lambda: broken}, tiny_features, tiny_tokens[:8], n_samples=20, progress=False)
    assert caught.value.__notes__ == ["This was at the checkpoint of step 7."]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_hooked.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_ctrl_c_keeps_the_finished_checkpoints(tiny_features, tiny_hooked, tiny_tokens, states):
    before = {name: tensor.clone() for name, tensor in tiny_hooked.state_dict().items()}

    def stop():
        raise KeyboardInterrupt

    call = {"tokens": tiny_tokens[:8], "n_samples": 20, "progress": False}
    found = pf.track([states[0], stop, states[2]], tiny_features, **call)
    assert found.steps == (0,)
    assert "Interrupted after 1 of 3 checkpoints." in repr(found)
    with pytest.raises(KeyboardInterrupt):
        pf.track([stop, states[0]], tiny_features, **call)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_hooked.state_dict().items())


def test_callables_are_asked_once_each_and_in_turn(tiny_features, tiny_tokens, states, monkeypatch):
    order = []
    monkeypatch.setattr(track_rows, "_curvature", lambda features, rows: order.append("measured") or torch.zeros(6))
    given = {
        step: (lambda step=step, state=state: order.append(step) or state) for step, state in zip(STEPS, states, strict=True)
    }
    pf.track(given, tiny_features, tiny_tokens[:8], n_samples=20, progress=False)
    assert order == [0, "measured", 10, "measured", 40, "measured"]


@pytest.fixture(scope="module")
def planted():
    """A toy that is untrained for six checkpoints and trained for six."""
    toy = pf.toys.superposition(12, 4, n_steps=400)
    features = toy.decompose(steps=100, progress=False)
    generator, end = torch.Generator().manual_seed(1), toy.model.state_dict()
    start = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in end.items()}
    weights = [0.02 * n if n < 6 else 1 - 0.02 * (11 - n) for n in range(12)]
    checkpoints = {100 * n: {name: a * end[name] + (1 - a) * start[name] for name in end} for n, a in enumerate(weights)}
    return toy, features, pf.track(checkpoints, features, inputs=toy.inputs, n_samples=1000, progress=False)


def test_the_planted_phase_change_is_found_and_no_other(planted):
    _, _, found = planted
    assert found.change_points() == found.change_points("curvature") == found.change_points("error") == (600,)
    assert found.change_points("share") == ()
    assert all(found.change_points("impact", feature=k) == (600,) for k in range(12))


def test_directions_are_stale_where_the_model_is_untrained_and_nowhere_else(planted):
    _, _, found = planted
    assert found.is_stale.tolist() == [True] * 6 + [False] * 6
    assert found.valid == (600, 1100)
    assert "at step 0, 100, 200, 300, 400, 500; go by them from step 600 to 1100" in found.drift
    assert found.drift in repr(found)


def test_refits_match_at_home_and_not_where_the_model_is_untrained(planted):
    toy, features, found = planted
    end, kept = toy.model.state_dict(), copy.deepcopy(toy.model).state_dict()
    generator = torch.Generator().manual_seed(2)
    start = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in end.items()}
    call = {"inputs": toy.inputs, "n_samples": 1000, "refit": True, "progress": False}
    refits = pf.track([start, end], features, **call)  # the last is the model's own memory
    assert refits.match.shape == (2, 12)
    assert float(refits.match[1].mean()) > 0.8 > float(refits.match_random[1])
    assert float(refits.match[0].mean()) < 0.6
    assert float(refits.errors["refit"][1]) < float(refits.errors["control_random"][1])
    assert "match" in refits.table()
    assert "match" not in found.table()
    assert refits.home == 1
    assert all(torch.equal(tensor, kept[name]) for name, tensor in toy.model.state_dict().items())


def test_refits_never_take_the_features_own_seed(tiny_features, monkeypatch):
    seeds = []
    monkeypatch.setattr(track_rows, "refitted", lambda features, *_, seed, **__: seeds.append(seed) or features)
    inputs, own = tiny_features.own_examples, tiny_features.config["seed"]
    for seed in (own, own + 5):
        track_rows._refit(tiny_features, track_rows.TrackPlan(inputs, 10, True, seed))
    assert seeds == [own + 1, own + 5]


def test_of_a_model_features_are_fitted_at_the_last_checkpoint(tiny_hooked, tiny_tokens, states):
    before = tiny_hooked.state_dict()[NAME].clone()
    settings = {"n_features": 4, "l0": 1, "steps": 5, "n_samples": 100}
    call = {"params": NAME, "n_samples": 20, "progress": False}
    found = pf.track([states[2], states[0]], tiny_hooked, tiny_tokens, fit=settings, **call)
    assert found.home == 1
    assert found.n_features == 4
    own = copy.deepcopy(tiny_hooked)
    own.load_state_dict(states[0])
    quarter = pf.HarvestSettings(held_out_fraction=0.25)
    expected = pf.decompose(own, NAME, tiny_tokens, harvest=quarter, progress=False, **settings)
    assert torch.equal(found.features.v_out.factors[NAME][0], expected.v_out.factors[NAME][0])
    assert torch.equal(tiny_hooked.state_dict()[NAME], before)


def test_padding_counts_nowhere_and_refits_heed_it(tiny_features, tiny_tokens, states):
    mask = torch.ones_like(tiny_tokens)
    mask[::2, 7:] = 0
    call = {"n_samples": 400, "refit": True, "progress": False}
    found, other = (
        pf.track(states[:1], tiny_features, {"input_ids": tokens, "attention_mask": mask}, **call)
        for tokens in (tiny_tokens, torch.where(mask.bool(), tiny_tokens, 3))
    )
    for name in ("impact", "density", "curvature", "match"):
        assert torch.allclose(getattr(found, name), getattr(other, name), rtol=1e-6)
    whole = pf.track(states[:1], tiny_features, tiny_tokens, n_samples=400, progress=False)
    assert not torch.allclose(whole.impact, found.impact, rtol=1e-3)


def test_a_divergence_of_the_users_own_has_no_curvature(classifier, images):
    squares = lambda output, reference: (output - reference).square().sum(-1)  # noqa: E731
    call = {"n_features": 3, "l0": 1, "steps": 5, "divergence": squares, "progress": False}
    features = pf.decompose(classifier, "classifier.weight", inputs=images, **call)
    found = pf.track([classifier], features, inputs=images, n_samples=20, progress=False)
    assert found.curvature.isnan().all()
    assert torch.isfinite(found.impact).all()
    assert "nan" in found.table()
    with pytest.raises(SettingError, match="Leave refit= out"):
        pf.track([classifier], features, inputs=images, refit=True, progress=False)


def test_curves_tables_and_rankings_are_of_the_tensors(tracked):
    assert torch.equal(tracked.curve("impact"), tracked.impact.mean(1))
    assert torch.equal(tracked.curve("density", 3), tracked.density[:, 3])
    assert torch.equal(tracked.curve("error"), tracked.errors["reconstruction_error"])
    (feature, value), *rest = tracked.top(6, at=10)
    assert value == float(tracked.impact[1].max()) == float(tracked.impact[1, feature])
    assert len(rest) == 5
    (feature, ratio), *_ = tracked.top(1, of="curvature", at=40, since=0)
    most = tracked.curvature[:, feature].amax() / 1000
    expected = ((tracked.curvature[2, feature] + most) / (tracked.curvature[0, feature] + most)).log()
    assert ratio == pytest.approx(float(expected))
    rows = tracked.as_rows()
    assert [row["step"] for row in rows] == list(STEPS)
    assert rows[1]["control_pca"] == float(tracked.errors["control_pca"][1])
    lines = tracked.table().splitlines()
    assert len(lines) == len(tracked) + 1 == 4
    assert lines[-1].endswith("*")


def test_what_curves_refuse(tracked):
    with pytest.raises(SettingError, match=r"of='impct' is unknown.*nearest: 'impact'"):
        tracked.curve("impct")
    with pytest.raises(SettingError, match="refit=True"):
        tracked.change_points("match")
    with pytest.raises(SettingError, match="of all features together"):
        tracked.curve("error", 2)
    with pytest.raises(SettingError, match="of all features together"):
        tracked.top(of="share")
    with pytest.raises(FeatureCountError, match="numbered 0 to 5"):
        tracked.curve("impact", 6)
    with pytest.raises(SettingError, match="No checkpoint has step 12. The nearest has 10"):
        tracked.top(at=12)


def test_what_is_refused_before_anything_is_measured(tiny_features, tiny_hooked, tiny_tokens, states, tmp_path):
    def refused(error, match, *args, **call):
        with pytest.raises(error, match=match):
            pf.track(*args, progress=False, **call)

    refused(InputError, "no checkpoints", [], tiny_features)
    refused(UnknownParameterError, "step 4 has no tensor", {4: {}}, tiny_features)
    refused(SettingError, "n_samples=0", states, tiny_features, n_samples=0)
    refused(SettingError, "with params=", states, tiny_hooked)
    refused(SettingError, "these exist", states, tiny_features, params=NAME)
    refused(SampleCountError, "Got 3 sequences", states, tiny_features, tiny_tokens[:3])
    refused(SampleCountError, "Got 12 sequences.*at least 16", states, tiny_hooked, tiny_tokens[:12], params=NAME)
    pairs = replace(tiny_features, question=replace(tiny_features.question, kind="pairs"))
    refused(SettingError, "Leave refit= out", states, pairs, tiny_tokens, refit=True)
    tiny_features.save_pretrained(tmp_path / "saved")
    refused(NotBoundError, "track", states, pf.load(tmp_path / "saved"))
    assert isinstance(states[0], dict)
