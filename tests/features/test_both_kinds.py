"""What features and components share: the same calls, of one model, with what each may be held to."""

import pytest
import torch

import param_features as pf
from param_features.circuits.effects import read_subject
from tests.adapters.zoo import hf_gpt2
from tests.components import made_components

W_K, W_IN = "blocks.0.attn.W_K", "blocks.0.mlp.W_in"


@pytest.fixture(scope="module", params=["features", "components"])
def found(request, tiny_features, tiny_components):
    return {"features": tiny_features, "components": tiny_components}[request.param]


def moved(found, model, tokens, delta):
    """Logits with δ of direction 1 added to the weights by hand."""
    steps = {name: delta * step for name, step in found.direction(1).items()}
    changed = {name: model.get_parameter(name) + step for name, step in steps.items()}
    return torch.func.functional_call(model, changed, (tokens,))


def test_steering_adds_the_unit_direction_everywhere_or_somewhere(found, tiny_hooked, tiny_tokens):
    tokens = tiny_tokens[:2]
    expected, before = moved(found, tiny_hooked, tokens, 0.5), tiny_hooked(tokens)
    with found.steer({1: 0.5}):
        torch.testing.assert_close(tiny_hooked(tokens), expected)
    with found.steer({1: 0.5}, where=torch.tensor([True, False])):
        partly = tiny_hooked(tokens)
    torch.testing.assert_close(partly[:1], expected[:1])
    assert torch.equal(partly[1], before[1]) and torch.equal(tiny_hooked(tokens), before)


def test_a_copy_and_an_edit_hold_the_step(found, tiny_hooked, tiny_tokens):
    copy = found.steered(None, {1: 0.5})
    torch.testing.assert_close(copy(tiny_tokens[:2]), moved(found, tiny_hooked, tiny_tokens[:2], 0.5))
    back = found.steered(None, {1: 0.0})
    edit = found.edit(back, {1: 0.25})
    torch.testing.assert_close(back(tiny_tokens[:2]), moved(found, tiny_hooked, tiny_tokens[:2], 0.25))
    assert "moved" in str(edit) or "0.25" in repr(edit)


def test_a_fit_matches_itself_and_tells_a_step_in_its_coordinates(found):
    assert pf.match(found, found).cosine.abs().min() == pytest.approx(1, abs=1e-5)
    told = found.coordinates({name: 0.5 * step for name, step in found.direction(1).items()})
    assert told.share == pytest.approx(1, abs=1e-5) and told.share_random < 0.5
    assert float(told.steps[1]) == pytest.approx(0.5, abs=1e-5)


def test_one_coefficient_is_trained(found, tiny_tokens):
    tuned = found.finetune(tiny_tokens[:8], [1], steps=2, progress=False)
    assert set(tuned.coefficients) == {1} and tuned.coefficients[1] != 0


def test_single_figures_are_drawn(found, tiny_tokens):
    pytest.importorskip("plotly")
    assert found.measured in pf.plot.activations(found, 1, tiny_tokens).layout.xaxis.title.text
    assert found.name_of(1).capitalize() in pf.plot.direction(found, 1).layout.title.text
    assert pf.plot.density(found, tiny_tokens).data
    assert found.top_logits(1, 3).up


def test_a_circuit_of_all_is_the_model(found, tiny_tokens):
    circuit = pf.circuit(found, tiny_tokens[:6], n_nodes=found.n_features, ablation="zero", n_random=2, n_examples=1)
    assert circuit.scores["faithfulness"] == pytest.approx(1, abs=1e-6)


def test_shared_features_are_read_back(found, tiny_hooked, tiny_tokens, tmp_path):
    found.save_pretrained(tmp_path)
    found.save_card(tmp_path, pf.CardSettings(is_illustrated=False))
    loaded = pf.load(tmp_path, model=tiny_hooked)
    assert type(loaded) is type(found)
    assert torch.equal(loaded.activations(tiny_tokens[:4]), found.activations(tiny_tokens[:4]))


def test_a_circuit_of_components_takes_parts_away_as_they_are(tiny_components, tiny_hooked, tiny_tokens):
    subject = read_subject(tiny_components, tiny_tokens[:4], None, "loss", None)
    group = subject.groups[0]
    kept = torch.tensor([True] * 5 + [False, True, True])
    removed = subject.values(subject.amounts_keeping(kept))
    with tiny_components.ablate([5]):
        expected = subject.values()
    torch.testing.assert_close(removed, expected)
    assert group.holds[:7].tolist() == tiny_components.components.sizes.tolist()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_components_export_to_lora(tiny_tokens, tmp_path):
    peft = pytest.importorskip("peft")
    model = hf_gpt2()
    made = made_components(model, {"transformer.h.0.mlp.c_fc.weight": 3}, tiny_tokens[:8])
    made.to_lora(tmp_path / "lora", {2: -float(made.components.sizes[2])})
    with made.ablate([2]):
        expected = model(tiny_tokens[:2]).logits
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "lora")
    torch.testing.assert_close(wrapped(tiny_tokens[:2]).logits, expected, rtol=1e-4, atol=1e-5)
