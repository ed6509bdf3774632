"""A model that changes after its features were bound to it is followed with a notice, or refused by name."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import FingerprintError, ModelStateError, Notice
from tests.adapters.zoo import booted, hf_gpt2, hf_llama, seeded
from tests.components import made_components
from tests.models import Classifier

TOKENS = torch.randint(20, (24, 6), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(1))
AUDIT = pf.AuditSettings(n_rows=24, n_features=2, n_top=3, n_starts=1, n_climbs=1, n_sets=1, n_deletions=1, set_size=2)
QUICK = {"n_features": 3, "l0": 1, "steps": 3, "progress": False}
OTHER, SAME = "(has|have) other weights than those that were decomposed", "was replaced, wrapped or moved"


def fitted(model, params, data):
    return pf.decompose(model, params, **data, harvest=pf.HarvestSettings(n_references=2), **QUICK)


@pytest.fixture(scope="module")
def bound():
    """Features of each kind of model; to be copied with their model before anything is changed."""
    pytest.importorskip("transformers")
    llama, key = seeded(lambda: hf_llama(dtype=torch.float32), dtype=torch.float32), "model.layers.0.self_attn.k_proj.weight"
    return {
        "hugging face": fitted(llama, key, {"tokens": TOKENS}),
        "plain": fitted(Classifier().eval(), "classifier.weight", {"inputs": IMAGES}),
        "dense": fitted(
            nn.Sequential(nn.Flatten(), nn.LSTM(36, 5), Last(), nn.Linear(5, 4)), "1.weight_ih_l0", {"inputs": IMAGES}
        ),
    }


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0]


def parts(features):
    """The model, the module that holds the decomposed weight, the parent's place for it, and the weight's name in it."""
    view, model = features.engine.subset.views[0], features.engine.adapter.model
    parent, key = next(
        (parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is view.owner
    )
    return model, view, parent, key


def replaced_by_an_equal(features):
    _, view, parent, key = parts(features)
    parent._modules[key] = copy.deepcopy(view.owner)


def replaced_by_another(features):
    _, view, parent, key = parts(features)
    parent._modules[key] = copy.deepcopy(view.owner)
    moved_in_place(parent._modules[key]._parameters[view.attribute])


def parent_replaced(features):
    model, _, parent, _ = parts(features)
    name = next((name for name, child in model.named_modules() if child is parent and name), None)
    if name is None:
        pytest.skip("the weight's layer lies at the top")
    owner = model.get_submodule(name.rpartition(".")[0])
    owner._modules[name.rpartition(".")[2]] = copy.deepcopy(parent)


@torch.no_grad()
def moved_in_place(weight):
    weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))


def changed_in_place(features):
    moved_in_place(parts(features)[1].stored)


def changed_by_data(features):
    moved_in_place(parts(features)[1].stored.data)


def new_parameter(features):
    _, view, *_ = parts(features)
    weight = view.stored.detach().clone()
    moved_in_place(weight)
    view.owner._parameters[view.attribute] = nn.Parameter(weight)


def state_loaded(features, **settings):
    model, view, *_ = parts(features)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved_in_place(state[view.name])
    model.load_state_dict(state, **settings)


def state_assigned(features):
    state_loaded(features, assign=True)


def swapped_rows(features):
    _, view, *_ = parts(features)
    view.stored.data = view.stored.data.flip(0)


FOLLOWED = {
    replaced_by_an_equal: SAME, replaced_by_another: OTHER, parent_replaced: SAME, changed_in_place: OTHER,
    changed_by_data: OTHER, new_parameter: OTHER, state_loaded: OTHER, state_assigned: OTHER, swapped_rows: OTHER,
}  # fmt: skip


def data_of(features, n=4):
    return {"inputs": IMAGES[:n]} if features.engine.adapter.d_vocab is None else {"tokens": TOKENS[:n]}


def outputs(features):
    with torch.no_grad():
        return features.engine.adapter.run(*data_of(features).values())


def weight_now(features):
    """The module that holds the decomposed weight now, by plain look-up of its name."""
    path, _, key = features.engine.subset.names[0].rpartition(".")
    return features.engine.adapter.module.get_submodule(path), key


def true_effect(features, coefficients):
    """What W + Σ δ v does to the outputs, written into the present weight by hand."""
    owner, key = weight_now(features)
    before, name = outputs(features), features.engine.subset.names[0]
    saved = owner._parameters[key].detach().clone()
    with torch.no_grad():
        owner._parameters[key].add_(sum(delta * features.direction(k)[name] for k, delta in coefficients.items()))
        after = outputs(features)
        owner._parameters[key].copy_(saved)
    return after - before


def true_activation(features, k):
    """⟨∇_W D, V_in,k⟩ of the first row's last sample by autograd on the present weight."""
    owner, key = weight_now(features)
    owner._parameters[key].requires_grad_()
    with torch.enable_grad():
        output = features.engine.adapter.run(*[rows[:1] for rows in data_of(features).values()])
        sample = output[:, -1] if features.engine.per_position else output
        gradient = torch.autograd.grad(features.question.value(sample).sum(), owner._parameters[key])[0]
    return float((gradient * features.v_in.rows([k]).materialize()[features.engine.subset.names[0]][0]).sum())


def used(features, before):
    """Every use of the model, each with its truth; `before` are steerings made before the change."""
    steps = {0: 0.5, 2: -0.3}
    acts = [features.activations(**data_of(features), route=route) for route in ("vjp", "jvp", "auto")]
    acts.append(features.activations(**data_of(features), n_references=2))
    for found in acts:
        sample = found[0, -1] if features.engine.per_position else found[0]
        assert float(sample[1]) == pytest.approx(true_activation(features, 1), rel=1e-3, abs=1e-5)
    right, at_rest = true_effect(features, steps), outputs(features)
    assert float(right.norm()) > 1e-3
    for steering in [features.steer(steps), *before]:
        with steering:
            assert torch.allclose(outputs(features) - at_rest, right, rtol=1e-3, atol=1e-5)
        assert torch.equal(outputs(features), at_rest)
    ablation = features.ablate([1], rule="noise", scale=0.3)
    with ablation:
        effect = outputs(features) - at_rest
    assert torch.allclose(effect, true_effect(features, ablation.coefficients), rtol=1e-3, atol=1e-5)
    return [
        features.codes(**data_of(features)), features.top_logits(0), features.densities(**data_of(features)),
        features.top_examples(0, 2), features.errors_by_l0(**data_of(features, 24), n_samples=20),
    ]  # fmt: skip


def steerings(features, n=4):
    """One for the whole batch, and one for all of it by where=, where there is a layer rule."""
    made = [features.steer({0: 0.5, 2: -0.3})]
    return made if features.engine.routes.dense else [*made, features.steer({0: 0.5, 2: -0.3}, where=[True] * n)]


@pytest.mark.parametrize("kind", ["hugging face", "plain", "dense"])
@pytest.mark.parametrize("change", FOLLOWED, ids=lambda change: change.__name__)
def test_every_use_follows_with_a_notice_and_is_right(bound, kind, change):
    features = copy.deepcopy(bound[kind])
    before = steerings(features)
    features.top_examples(0, 2)  # read and remembered, which must not outlive the weights
    remembered = features.activations_on(features.own_examples)
    change(features)
    with pytest.warns(Notice, match=FOLLOWED[change]):
        used(features, before)
    is_same = FOLLOWED[change] == SAME
    assert torch.allclose(features.activations_on(features.own_examples), remembered, atol=1e-5) == is_same


@pytest.mark.parametrize(
    "use", ["activations", "codes", "top_logits", "steer", "where", "ablate", "audit", "errors_by_l0", "save"]
)
def test_each_use_gives_the_notice_alone(bound, use, tmp_path):
    features = copy.deepcopy(bound["plain"])
    steering, by_where = steerings(features)
    changed_by_data(features)
    rows = data_of(features, 24)
    call = {
        "activations": lambda: features.activations(**rows),
        "codes": lambda: features.codes(**rows),
        "top_logits": lambda: features.top_logits(0),
        "steer": lambda: steering.__enter__().__exit__(None, None, None),
        "where": lambda: by_where.__enter__().__exit__(None, None, None),
        "ablate": lambda: features.ablate([0]),
        "audit": lambda: features.audit(settings=AUDIT),
        "errors_by_l0": lambda: features.errors_by_l0(**rows, n_samples=20),
        "save": lambda: features.save_pretrained(tmp_path),
    }[use]
    with pytest.warns(Notice, match=OTHER) as notices:
        call()
    assert {notice.filename for notice in notices if notice.category is Notice} == {__file__}


@pytest.mark.filterwarnings("error::param_features.errors.Notice")
class TestNoChange:
    def test_nothing_is_said_of_a_model_that_is_as_it_was(self, bound):
        for features in map(copy.deepcopy, bound.values()):
            used(features, steerings(features))

    def test_nor_of_weights_that_came_back(self, bound):
        features = copy.deepcopy(bound["plain"])
        _, view, parent, key = parts(features)
        state = copy.deepcopy(parts(features)[0].state_dict())
        changed_in_place(features)
        with pytest.raises(Notice, match=OTHER):
            features.activations(**data_of(features))
        parts(features)[0].load_state_dict(state)
        parent._modules[key] = copy.deepcopy(view.owner)
        with pytest.raises(Notice, match=SAME):
            features.activations(**data_of(features))
        parent._modules[key] = view.owner
        used(features, steerings(features))

    @pytest.mark.parametrize("kind", ["hugging face", "plain"])
    def test_nor_inside_steerings_which_activations_follow(self, bound, kind):
        features = copy.deepcopy(bound[kind])
        at_rest = features.activations_on(features.own_examples)
        for steering in (*steerings(features, len(features.own_examples)), features.ablate([0], rule="noise", scale=0.3)):
            with steering, features.steer({1: 0.2}):
                inside = features.activations_on(features.own_examples)
                assert not torch.allclose(inside, at_rest, rtol=1e-3)
                features.top_logits(0)
            assert torch.equal(features.activations_on(features.own_examples), at_rest)

    def test_nor_of_other_weights_and_other_features_steerings(self, bound):
        features = copy.deepcopy(bound["plain"])
        model = parts(features)[0]
        moved_in_place(model.conv.weight)
        with torch.no_grad():
            model.classifier.bias.add_(1)
        model.train().eval()
        used(features, steerings(features))

    def test_nor_of_checkpoints_that_the_library_looks_at(self, bound):
        features = copy.deepcopy(bound["plain"])
        state = copy.deepcopy(parts(features)[0].state_dict())
        moved_in_place(state["classifier.weight"])
        pf.track([state], features, inputs=IMAGES, n_samples=8, progress=False)


OF_COMPONENTS = (replaced_by_another, parent_replaced, changed_by_data, state_assigned)


def made_on_a_copy(features):
    """Components of the features' parameter, on a copy of their model."""
    model, name = copy.deepcopy(features.engine.adapter.model), features.engine.subset.names[0]
    return made_components(model, {name: 3}, **data_of(features, 24))


@pytest.mark.parametrize("kind", ["hugging face", "plain"])
@pytest.mark.parametrize("change", OF_COMPONENTS, ids=lambda change: change.__name__)
def test_components_follow_with_a_notice_and_are_right(bound, kind, change):
    components = made_on_a_copy(bound[kind])
    change(components)
    U, V = components.component(1)
    with pytest.warns(Notice, match=FOLLOWED[change]):
        inner = components.inner(**data_of(components))
        ablated = components.ablate([1])
    (owner, key), seen = weight_now(components), []
    handle = owner.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    at_rest = outputs(components)
    handle.remove()
    torch.testing.assert_close(inner[..., 1], seen[0] @ V, rtol=1e-4, atol=1e-5)
    with ablated:
        found = outputs(components) - at_rest
    with torch.no_grad():
        owner._parameters[key].sub_(torch.outer(U, V))
        expected = outputs(components) - at_rest
    assert float(expected.norm()) > 1e-3
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", ["resized", "tied", "halved"])
def test_components_without_a_clear_answer_are_refused_by_name(bound, change):
    components = made_on_a_copy(bound["plain"])
    {"resized": resized, "tied": tied, "halved": halved}[change](components)
    for use in (components.inner, components.activations):
        with pytest.raises((FingerprintError, ModelStateError), match=re.escape(components.engine.subset.names[0])):
            use(**data_of(components))


def doubled(features):
    parts(features)[0].double()


def parametrised(features):
    _, view, *_ = parts(features)
    nn.utils.parametrizations.weight_norm(view.owner, view.attribute)


def cut_out(features):
    _, view, parent, key = parts(features)
    parent._modules[key] = nn.Sequential(copy.deepcopy(view.owner))


def resized(features):
    _, view, *_ = parts(features)
    view.owner._parameters[view.attribute] = nn.Parameter(view.stored.detach()[:-1].clone())


def tied(features):
    _, view, _, _ = parts(features)
    parts(features)[0].get_submodule(view.name.rpartition(".")[0]).twin = Held(view.stored)


class Held(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight


def halved(features):
    parts(features)[0].half()


REFUSED = {
    doubled: (ModelStateError, r"is torch.float64 on cpu now and was torch.float32 .*model.to\('cpu', torch.float32\)"),
    parametrised: (ModelStateError, "which was decomposed"),
    cut_out: (ModelStateError, "which was decomposed"),
    resized: (FingerprintError, "is now .* and was "),
    tied: (FingerprintError, "was held by 1 module.* is held by 2 now"),
}


@pytest.mark.parametrize("change", [*REFUSED, halved], ids=lambda change: change.__name__)
def test_what_has_no_clear_answer_is_refused_by_name(bound, change, tmp_path):
    features = copy.deepcopy(bound["plain"])
    name, rows = re.escape(features.engine.subset.names[0]), data_of(features)
    steering, by_where = steerings(features)
    change(features)
    kind, message = REFUSED.get(change, (ModelStateError, "is torch.float16 on cpu now and was torch.float32"))
    uses = [
        lambda: features.activations(**rows, route="vjp"), lambda: features.activations(**rows, route="jvp"),
        lambda: features.codes(**rows), lambda: features.top_logits(0), lambda: features.steer({0: 1.0}),
        steering.__enter__, by_where.__enter__, lambda: features.ablate([0]),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(kind, match=f"{name}.*{message}"):
            use()
    with pytest.warns(Notice, match=message):
        features.save_pretrained(tmp_path)  # what is saved belongs to the weights that were decomposed
    assert pf.load(tmp_path).params == features.params


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_language_model_in_half_precision_is_followed(bound, dtype):
    features = copy.deepcopy(bound["hugging face"])
    exact = features.activations(TOKENS[:4])
    parts(features)[0].to(dtype)
    with pytest.warns(Notice, match=OTHER):
        for route in ("vjp", "jvp"):
            found = features.activations(TOKENS[:4], route=route)
            assert float((found - exact).norm() / exact.norm()) < 0.2
        for steering in steerings(features):
            at_rest = outputs(features)
            with steering:
                assert not torch.equal(outputs(features), at_rest)
            assert torch.equal(outputs(features), at_rest)


def test_a_merged_adapter_is_followed(bound):
    peft = pytest.importorskip("peft")
    features = copy.deepcopy(bound["hugging face"])
    before = steerings(features)
    model = parts(features)[0]
    adapter = peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers deprecates
        wrapped = peft.get_peft_model(model, adapter)
    with pytest.warns(Notice, match=SAME):
        features.activations(TOKENS[:4])
    wrapped.merge_and_unload()
    with pytest.warns(Notice, match=OTHER):
        used(features, before)


def test_a_bridge_that_goes_into_compatibility_mode_is_followed_or_refused():
    pytest.importorskip("transformer_lens")
    bridge = booted(hf_gpt2, dtype=torch.float32)
    features = fitted(bridge, ["blocks.0.attn.W_K", "blocks.1.mlp.W_out"], {"tokens": TOKENS})
    steering = features.steer({0: 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge.enable_compatibility_mode()
    with pytest.warns(Notice, match=OTHER):
        acts = [features.activations(TOKENS[:2], route=route) for route in ("vjp", "jvp")]
        assert torch.allclose(*acts, rtol=1e-3, atol=1e-4) and bool(acts[0].any())
        at_rest = bridge(TOKENS[:2])
        with steering:
            by_weight = bridge(TOKENS[:2]) - at_rest
        with features.steer({0: 0.5}, where=[True, True]):
            by_where = bridge(TOKENS[:2]) - at_rest
    assert bool(by_weight.norm() > 1e-3) and torch.allclose(by_weight, by_where, rtol=1e-2, atol=1e-4)


def test_a_model_without_values_is_refused(bound):
    features = copy.deepcopy(bound["plain"])
    steering = features.steer({0: 1.0})
    parts(features)[0].to("meta")
    for use in (lambda: features.activations(**data_of(features)), steering.__enter__, lambda: features.ablate([0])):
        with pytest.raises(ModelStateError, match="is on the meta device"):
            use()
