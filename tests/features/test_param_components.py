"""`ParamComponents`: what they read and hold, saving, and what is refused by name."""

import copy
from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.errors import FeatureCountError, InputError, NotBoundError, SettingError, UnknownParameterError
from param_features.fit.components import ComponentDictionary, Parts
from param_features.measure import find_clusters
from tests.components import made_components

W_K, W_IN = "blocks.0.attn.W_K", "blocks.0.mlp.W_in"


def test_activations_are_importances_and_codes_the_same(tiny_components, tiny_tokens):
    acts = tiny_components.activations(tiny_tokens)
    assert acts.shape == (40, 10, 7) and acts.min() == 0 and acts.max() == 1
    assert float(((acts > 0) & (acts < 1)).double().mean()) > 0.02
    assert torch.equal(acts, tiny_components.codes(tiny_tokens))
    by_site = tiny_components.importances(tiny_tokens)
    assert torch.equal(acts, torch.cat([by_site[W_K], by_site[W_IN]], -1))
    parts = tiny_components.activation_parts(tiny_tokens)
    assert torch.equal(parts[..., 0, :3], acts[..., :3]) and not parts[..., 0, 3:].any()
    assert torch.equal(parts.sum(-2), acts)


def test_inner_activations_are_what_components_read(tiny_components, tiny_hooked, tiny_tokens):
    _, cache = tiny_hooked.run_with_cache(tiny_tokens[:3])
    norms = {W_K: tiny_hooked.blocks[0].ln1, W_IN: tiny_hooked.blocks[0].ln2}
    normalised = {name: cache[norm.hook_normalized.name] for name, norm in norms.items()}
    read = {name: normalised[name] * norm.w + norm.b for name, norm in norms.items()}
    found = tiny_components.inner(tiny_tokens[:3])
    for k in range(7):
        name, _ = tiny_components.site(k)
        torch.testing.assert_close(found[..., k], read[name] @ tiny_components.component(k)[1])


def test_a_component_knows_its_matrix(tiny_components):
    assert [tiny_components.site(k) for k in (0, 2, 3, 6)] == [(W_K, 0), (W_K, 2), (W_IN, 0), (W_IN, 3)]
    U, V = tiny_components.component(4)
    direction = tiny_components.direction(4)
    size = float(U.norm() * V.norm())
    torch.testing.assert_close(direction[W_IN] * size, torch.outer(V, U))
    assert not direction[W_K].any()
    with pytest.raises(FeatureCountError, match="There is no component 7. Components are numbered 0 to 6"):
        tiny_components.site(7)


def test_components_and_remainder_sum_to_the_weight(tiny_components, tiny_hooked):
    for name, ks in ((W_K, range(3)), (W_IN, range(3, 7))):
        total = tiny_components.remainder(name)
        for k in ks:
            U, V = tiny_components.component(k)
            total = total + tiny_components.direction(k)[name] * U.norm() * V.norm()
        torch.testing.assert_close(total, tiny_hooked.get_parameter(name).detach())
    with pytest.raises(UnknownParameterError, match="'blocks.0.attn.W_Q' was not decomposed"):
        tiny_components.remainder("blocks.0.attn.W_Q")


@pytest.mark.parametrize("where", [None, torch.tensor([True, False])])
def test_an_ablated_component_is_gone_from_the_weight(tiny_components, tiny_hooked, tiny_tokens, where):
    before, rows = tiny_hooked(tiny_tokens[:2]), [0, 1] if where is None else [0]
    W = tiny_hooked.blocks[0].mlp.W_in
    whole = W.detach().clone()
    U, V = tiny_components.component(5)
    with torch.no_grad():
        W -= 0.5 * torch.outer(V, U)
        expected = tiny_hooked(tiny_tokens[:2])
        W.copy_(whole)
    with tiny_components.ablate([5], strength=0.5, where=where):
        found = tiny_hooked(tiny_tokens[:2])
    torch.testing.assert_close(found[rows], expected[rows])
    assert where is None or torch.equal(found[1], before[1])
    assert torch.equal(tiny_hooked.blocks[0].mlp.W_in, whole)


@pytest.mark.parametrize("net", ["component", "site", "model"])
def test_loaded_components_are_the_saved_ones_bit_for_bit(tiny_hooked, tiny_tokens, tmp_path, net):
    made = made_components(tiny_hooked, {W_K: 3, W_IN: 2}, tiny_tokens, net=net)
    made.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=tiny_hooked)
    assert type(loaded) is pf.ParamComponents
    assert torch.equal(loaded.activations(tiny_tokens), made.activations(tiny_tokens))
    assert repr(loaded) == repr(made) and loaded.threshold == 0
    bare = pf.load(tmp_path)
    assert bare.site(4) == (W_IN, 1)
    with pytest.raises(NotBoundError):
        bare.importances(tiny_tokens)


@pytest.mark.parametrize(
    "call",
    [
        lambda found, tokens: found.errors_by_l0(tokens),
        lambda found, tokens: found.activations(tokens, route="jvp"),
        lambda found, tokens: found.activations(tokens, reference="uniform"),
        lambda found, tokens: found.codes(tokens, n_references=1),
    ],
)
def test_what_only_gradients_have_is_refused_by_name(tiny_components, tiny_tokens, call):
    with pytest.raises(SettingError, match="components are read from activations, not from gradients"):
        call(tiny_components, tiny_tokens)


def test_components_that_nothing_needs_are_not_alive(tiny_components, tiny_tokens):
    importances = tiny_components.activations(tiny_tokens).flatten(0, 1)
    assert tiny_components.alive(tiny_tokens) == importances.any(0).nonzero().flatten().tolist()


def test_views_say_component_and_importance(tiny_components, tiny_tokens, capsys):
    tiny_components.show(2, n=3)
    assert capsys.readouterr().out.startswith("Component 2: top examples, importance, 0 to 1")
    assert tiny_components.top_examples(2, 3)[0].activation > 0
    assert str(tiny_components.view_neurons(tiny_tokens[:1])).startswith("What each parameter adds: importance, 0 to 1")
    assert repr(tiny_components).startswith("ParamComponents: 7 components of blocks.0.attn.W_K, blocks.0.mlp.W_in")


def test_top_examples_are_ranked_by_importance_and_then_by_what_is_read(tiny_components, tiny_tokens):
    acts, inner = tiny_components.activations(tiny_tokens), tiny_components.inner(tiny_tokens).abs()
    for k in range(7):
        found = tiny_components.top_examples(k, 5, tokens=tiny_tokens)
        best = acts[..., k].amax(1)
        assert [example.activation for example in found] == best.sort(descending=True).values[:5].tolist()
        ties = [inner[example.row, example.position, k] for example in found if example.activation == 1]
        assert ties == sorted(ties, reverse=True)
    shared = tiny_components.top_examples(0, 40, tokens=tiny_tokens, by="share")
    assert {example.row for example in shared} == {
        example.row for example in tiny_components.top_examples(0, 40, tokens=tiny_tokens)
    }


def test_clusters_join_what_is_needed_together(tiny_components, tiny_tokens):
    twins = copy.deepcopy(tiny_components.components.net), dict(tiny_components.components.parts)
    for weight in list(twins[0].weights)[4:]:
        weight[1] = weight[0]
    parts = twins[1][W_IN]
    twins[1][W_IN] = Parts(parts.U, parts.V[[0, 0, 2, 3]])
    found = replace(tiny_components, dictionary=ComponentDictionary(twins[1], twins[0]))
    together = found.clusters(tiny_tokens, above=0.2)
    assert [(group.members, group.sites) for group in together.groups] == [((3, 4), (W_IN,))]
    assert (together.n_samples, found.clusters().n_samples) == (400, 120)
    needed = found.activations(tiny_tokens).flatten(0, 1) > 0.2
    assert together == find_clusters(needed, found.components.sites) and together.control_groups == 0
    assert found.clusters(tiny_tokens, above=0.9) != together
    for above in (-0.1, 1.0, float("nan")):
        with pytest.raises(SettingError, match="above="):
            found.clusters(above=above)


def weights_of(components, model, kept):
    """The two matrices with some components alone, and no Δ."""
    found = {name: torch.zeros_like(model.get_parameter(name)) for name in (W_K, W_IN)}
    for k in kept:
        found[components.site(k)[0]] += (
            float(components.components.sizes[k]) * components.direction(k)[components.site(k)[0]]
        )
    return found


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_only_some_components_are_left_of_the_weights(tiny_components, tiny_hooked, tiny_tokens, mode):
    tokens = tiny_tokens[:3]
    before, changed = tiny_hooked(tokens), weights_of(tiny_components, tiny_hooked, [1, 4, 6])
    with tiny_components.masked(tokens, threshold=-1, only=[1, 4, 6]), mode():
        found = tiny_hooked(tokens)
    torch.testing.assert_close(found.clone(), torch.func.functional_call(tiny_hooked, changed, (tokens,)))
    assert torch.equal(tiny_hooked(tokens), before)


def test_importances_are_masks_position_by_position(tiny_components, tiny_hooked, tiny_tokens):
    tokens = tiny_tokens[:2]
    masks = tiny_components.importances(tokens)
    parts = tiny_components.components.parts

    def mask_in(values, hook):
        (name, key) = (W_K, "k") if hook.name.endswith("hook_k") else (W_IN, "pre")
        read = seen[name] @ parts[name].V.T
        part = (masks[name] * read) @ parts[name].U
        bias = tiny_hooked.blocks[0].attn.b_K if key == "k" else tiny_hooked.blocks[0].mlp.b_in
        return part.reshape(values.shape) + bias

    seen = {}
    hooks = [
        (
            "blocks.0.ln1.hook_normalized",
            lambda x, hook: seen.update({W_K: x * tiny_hooked.blocks[0].ln1.w + tiny_hooked.blocks[0].ln1.b}),
        ),
        (
            "blocks.0.ln2.hook_normalized",
            lambda x, hook: seen.update({W_IN: x * tiny_hooked.blocks[0].ln2.w + tiny_hooked.blocks[0].ln2.b}),
        ),
        ("blocks.0.attn.hook_k", mask_in),
        ("blocks.0.mlp.hook_pre", mask_in),
    ]
    expected = tiny_hooked.run_with_hooks(tokens, fwd_hooks=hooks)
    with tiny_components.masked(tokens):
        torch.testing.assert_close(tiny_hooked(tokens), expected)
    with tiny_components.masked(tokens, threshold=0), pytest.raises(AssertionError):
        torch.testing.assert_close(tiny_hooked(tokens), expected)


def test_all_on_with_the_remainder_is_the_model(tiny_components, tiny_hooked, tiny_tokens):
    with tiny_components.masked(tiny_tokens[:2], threshold=-1, remainder=True):
        assert torch.equal(tiny_hooked(tiny_tokens[:2]), tiny_hooked(tiny_tokens[:2]))
        found = tiny_hooked(tiny_tokens[:2])
    assert torch.equal(found, tiny_hooked(tiny_tokens[:2]))


@pytest.mark.parametrize("shape", [(3, 10), (2, 9), (4, 10), (1, 20)])
def test_masks_are_for_the_inputs_that_they_were_read_from(tiny_components, tiny_hooked, tiny_tokens, shape):
    other = tiny_tokens.flatten()[: shape[0] * min(shape[1], 12)].reshape(shape[0], -1)
    with (
        tiny_components.masked(tiny_tokens[:2]),
        pytest.raises(InputError, match=r"masks are for \(2, 10\) rows and positions"),
    ):
        tiny_hooked(other)
    with pytest.raises(SettingError, match="threshold=nan must be a number"):
        tiny_components.masked(tiny_tokens[:2], threshold=float("nan"))
