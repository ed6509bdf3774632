"""Indirect effects: exact ones are ablations, attributions are derivatives, and integrals repair them."""

import pytest
import torch

import param_features as pf
from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.effects import attribution, exact_effects, integrated, read_subject
from param_features.errors import (
    AdapterError,
    FeatureMismatchError,
    InputError,
    NonFiniteError,
    NotBoundError,
    OutputError,
    SettingError,
)
from param_features.problem import read_inputs
from tests.saes import random_sae

PARAMS = ("blocks.0.attn.W_V", "blocks.0.mlp.W_in", "blocks.1.attn.W_K")


def last_log_probability(output):
    return output[:, -1].log_softmax(-1)[:, 3]


@pytest.fixture(scope="module")
def sets(tiny_hooked, tiny_tokens):
    call = {"n_features": 4, "l0": 2, "steps": 10, "n_samples": 200, "progress": False}
    return [pf.decompose(tiny_hooked, name, tiny_tokens, **call) for name in PARAMS]


@pytest.fixture(scope="module")
def prompts(tiny_tokens):
    return tiny_tokens[:5]


def subject_of(sets, prompts, ablation="zero", saes=None, **given):
    bare = read_subject(sets, prompts, None, last_log_probability, saes)
    return ablating(bare, Ablation(ablation, **given))


def small_sae():
    sae = random_sae(d_in=16, d_sae=24)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return sae


def of_model(model, prompts):
    with torch.no_grad():
        return last_log_probability(model(prompts))


def test_an_exact_effect_is_a_step_back_by_what_the_feature_holds(sets, prompts, tiny_hooked):
    subject = subject_of(sets, prompts)
    for place, features in enumerate(sets):
        node = subject.names.index(f"{PARAMS[place]}/2")
        with features.steer({2: -float(subject.holds[node])}):
            expected = of_model(tiny_hooked, prompts)
        found = exact_effects(subject, [node], subject.values())[:, 0]
        torch.testing.assert_close(subject.values() - found, expected, rtol=0, atol=1e-10)


def test_what_features_hold_is_a_ridge_regression_of_the_weights(sets, prompts):
    """Nearly that of `weight_coefficients` where directions hardly overlap; parallel ones share it evenly."""

    subject, features = subject_of(sets[0], prompts), sets[0]
    flat = torch.stack([features.direction(k)[PARAMS[0]].double().flatten() for k in range(4)])
    weight = features.engine.subset.views[0].tensor.detach().double().flatten()
    padded = torch.cat([flat.T, 0.1**0.5 * torch.eye(4, dtype=torch.float64)])
    expected = torch.linalg.lstsq(padded, torch.cat([weight, weight.new_zeros(4)])).solution
    torch.testing.assert_close(subject.holds[:4], 1.1 * expected, rtol=1e-5, atol=1e-8)
    twin = features.with_directions(features.v_out.rows([0, 0, 1]), features.v_in.rows([0, 0, 1]))
    held = subject_of(twin, prompts).holds
    assert held[0] == pytest.approx(float(held[1]))


def test_removing_several_features_is_ablating_them_together(sets, prompts, tiny_hooked):
    subject = subject_of(sets, prompts)
    marked = torch.tensor([name in (f"{PARAMS[0]}/0", f"{PARAMS[0]}/3", f"{PARAMS[2]}/1") for name in subject.names])
    with sets[0].ablate([0, 3]), sets[2].ablate([1]):
        expected = of_model(tiny_hooked, prompts)
    torch.testing.assert_close(subject.values(subject.amounts_removing(marked)), expected, rtol=0, atol=1e-10)


def test_keeping_all_is_the_model_and_keeping_none_is_the_residual(sets, prompts, tiny_hooked):
    subject = subject_of(sets, prompts)
    everything = torch.ones(len(subject.names), dtype=torch.bool)
    torch.testing.assert_close(subject.values(subject.amounts_keeping(everything)), of_model(tiny_hooked, prompts))
    with torch.no_grad():
        for features in sets:
            rest = features.residual()
            with features.engine.subset.replaced(rest):
                expected = of_model(tiny_hooked, prompts)
            own = read_subject(features, prompts, None, last_log_probability, None)
            torch.testing.assert_close(own.values(own.amounts_keeping(own.is_error)), expected, rtol=0, atol=1e-10)


def test_without_errors_nothing_is_left_of_the_weights(sets, prompts, tiny_hooked):
    subject = subject_of(sets[:1], prompts)
    view = sets[0].engine.subset.views[0]
    with sets[0].engine.subset.replaced({view.name: torch.zeros_like(view.tensor)}):
        expected = of_model(tiny_hooked, prompts)
    nothing = torch.zeros(len(subject.names), dtype=torch.bool)
    torch.testing.assert_close(subject.values(subject.amounts_keeping(nothing)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_an_attribution_is_the_derivative_along_the_ablation(sets, prompts, ablation):
    """Against central differences, for every node, errors too."""
    subject = subject_of(sets, prompts, ablation)
    found = attribution(subject)
    for node in range(len(subject.names)):
        group = subject.groups[[g.name for g in subject.groups].index(subject.names[node].rpartition("/")[0])]
        unit = torch.zeros(group.n_nodes, dtype=torch.float64)
        unit[group.names.index(subject.names[node])] = 1e-5 * float(subject.holds[node])
        step = unit.expand(len(prompts), -1)
        ahead, behind = (subject.values({group.name: sign * step}) for sign in (1, -1))
        torch.testing.assert_close(found[:, node], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-8)


def test_a_mean_part_is_the_mean_over_real_positions_of_the_background(sets, prompts, tiny_hooked, tiny_tokens):
    """The model run with the feature's part of every key replaced by hand."""
    subject = subject_of(sets[:1], prompts, "mean", background=tiny_tokens[5:20])
    direction = sets[0].direction(1)[PARAMS[0]].to(torch.float64)
    amount = float(subject.holds[subject.names.index(f"{PARAMS[0]}/1")])
    seen, norm = [], tiny_hooked.blocks[0].ln1
    hook = ("blocks.0.ln1.hook_normalized", lambda act, hook: seen.append(act * norm.w + norm.b))
    with torch.no_grad():
        tiny_hooked.run_with_hooks(tiny_tokens[5:20], fwd_hooks=[hook])
        part = amount * torch.einsum("bpd,hde->bphe", seen[0], direction)

        def replaced(value, hook):
            own = amount * torch.einsum("bpd,hde->bphe", seen[-1], direction)
            return value - own + part.mean((0, 1))

        output = tiny_hooked.run_with_hooks(prompts, fwd_hooks=[hook, ("blocks.0.attn.hook_v", replaced)])
    node = subject.names.index(f"{PARAMS[0]}/1")
    found = subject.values() - exact_effects(subject, [node], subject.values())[:, 0]
    torch.testing.assert_close(found, last_log_probability(output), rtol=0, atol=1e-10)


def test_resampling_from_the_prompts_themselves_changes_nothing(sets, prompts):
    subject = subject_of(sets, prompts, "resample", counterparts=prompts)
    effects = exact_effects(subject, range(3), subject.values())
    torch.testing.assert_close(effects, torch.zeros_like(effects), rtol=0, atol=1e-12)


def test_padding_does_not_count(sets, tiny_hooked, tiny_tokens):
    """A padded prompt's effects are those of the prompt alone."""
    from transformers import BatchEncoding

    short = tiny_tokens[:1, :6]
    padded = torch.cat([torch.cat([short, torch.zeros(1, 4, dtype=torch.long)], 1), tiny_tokens[1:2]])
    mask = torch.ones_like(padded)
    mask[0, 6:] = 0
    batch = BatchEncoding({"input_ids": padded, "attention_mask": mask})
    background = tiny_tokens[5:9]
    call = {"metric": pf.circuits.LogProbability(3), "n_check": 0, "background": background}
    alone = pf.circuits.indirect_effects(sets, short, **call)
    together = pf.circuits.indirect_effects(sets, batch, **call)
    torch.testing.assert_close(together.values[0], alone.values[0])


def test_integrals_sum_to_what_all_features_of_a_group_take_together(prompts, tiny_hooked, tiny_tokens):
    """Completeness of integrated gradients, for orthogonal directions, where parts add up."""

    call = {"n_features": 2, "l0": 1, "steps": 5, "n_samples": 200, "progress": False}
    fitted = pf.decompose(tiny_hooked, PARAMS[2], tiny_tokens, **call)
    left, right = fitted.v_out.factors[PARAMS[2]]
    q = torch.linalg.qr(left[..., 0].T.double())[0].T.to(left)
    unit = right / right.norm(dim=1, keepdim=True)
    features = fitted.with_directions(type(fitted.v_out)({PARAMS[2]: (q.unsqueeze(-1), unit)}), fitted.v_in)
    subject = subject_of(features, prompts)
    empty = subject.values(subject.amounts_keeping(subject.is_error))
    summed = integrated(subject, 50)[:, ~subject.is_error].sum(1)
    torch.testing.assert_close(summed, subject.values() - empty, rtol=1e-3, atol=1e-5)


def test_sae_features_and_errors_add_up(sets, prompts, tiny_hooked):
    """Without all of an SAE's features and its error, what is left is the decoder's bias."""
    sae = small_sae()
    subject = subject_of(sets[:1], prompts, saes=sae)
    assert [group.kind for group in subject.groups] == ["parameter", "sae"]
    own = torch.tensor([name.startswith("blocks.0.hook") for name in subject.names])
    bias = sae.b_dec.detach().double()
    with torch.no_grad():
        hook = ("blocks.0.hook_resid_post", lambda act, hook: bias.expand_as(act))
        expected = last_log_probability(tiny_hooked.run_with_hooks(prompts, fwd_hooks=[hook]))
    torch.testing.assert_close(subject.values(subject.amounts_removing(own)), expected, rtol=1e-5, atol=1e-6)


def test_one_sae_feature_is_taken_out_of_the_activations(sets, prompts, tiny_hooked):
    sae = small_sae()
    subject = subject_of(sets[:1], prompts, saes={"blocks.0.hook_resid_post": sae})
    node = subject.names.index("blocks.0.hook_resid_post/5")

    def less(act, hook):
        return act - (sae.encode(act.float())[..., 5:6] * sae.W_dec[5]).to(act)

    with torch.no_grad():
        expected = last_log_probability(tiny_hooked.run_with_hooks(prompts, fwd_hooks=[("blocks.0.hook_resid_post", less)]))
    found = subject.values() - exact_effects(subject, [node], subject.values())[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_effects_come_with_their_correlation(sets, prompts):
    effects = pf.circuits.indirect_effects(sets, prompts, last_log_probability, ablation="zero", n_check=15)
    assert len(effects.checked) == 15 == len(effects.names)
    exact = pf.circuits.indirect_effects(sets, prompts, last_log_probability, ablation="zero", method="exact")
    torch.testing.assert_close(effects.exact, exact.values[:, list(effects.checked)])
    expected = torch.corrcoef(torch.stack([effects.mean, exact.mean]))[0, 1]
    assert effects.correlation == pytest.approx(float(expected))
    assert "correlation with 15 exact ones" in repr(effects)
    assert effects.top(1)[0][0] == effects.names[int(effects.mean.abs().argmax())]
    torch.testing.assert_close(effects[effects.names[3]], effects.values[:, 3])


def test_the_model_is_left_as_it_was(sets, prompts, tiny_hooked):
    before = {name: tensor.clone() for name, tensor in tiny_hooked.state_dict().items()}
    flags = [p.requires_grad for p in tiny_hooked.parameters()]
    state = torch.get_rng_state()
    pf.circuits.indirect_effects(sets, prompts, last_log_probability, method="integrated", n_steps=2)
    with pytest.raises(OutputError, match="one number for each"):
        pf.circuits.indirect_effects(sets, prompts, lambda output: output)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_hooked.state_dict().items())
    assert flags == [p.requires_grad for p in tiny_hooked.parameters()]
    assert torch.equal(state, torch.get_rng_state())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_hooked.modules()]
    assert sum(hooks) == 0


def test_refusals(sets, prompts, tiny_hooked, tiny_tokens, tmp_path):
    with pytest.raises(SettingError, match="'attribution', 'integrated', 'exact'"):
        pf.circuits.indirect_effects(sets, prompts, method="atribution")
    with pytest.raises(SettingError, match="nearest: 'mean'"):
        pf.circuits.indirect_effects(sets, prompts, ablation="men")
    with pytest.raises(SettingError, match="pf.circuits.LogitDifference"):
        pf.circuits.indirect_effects(sets, prompts, "accuracy")
    with pytest.raises(SettingError, match="Give what pf.decompose returns"):
        pf.circuits.indirect_effects([], prompts)
    with pytest.raises(FeatureMismatchError, match="one set for each parameter"):
        pf.circuits.indirect_effects([sets[0], sets[0]], prompts)
    with pytest.raises(FeatureMismatchError, match="counted twice"):
        pf.circuits.indirect_effects({"one": sets[0], "two": sets[0]}, prompts)
    with pytest.raises(NonFiniteError, match="NaN or infinite on a prompt"):
        pf.circuits.indirect_effects(sets, prompts, lambda output: output[:, 0, 0] * float("nan"))
    with pytest.raises(SettingError, match="n_steps=0"):
        pf.circuits.indirect_effects(sets, prompts, method="integrated", n_steps=0)
    with pytest.raises(SettingError, match="No node"):
        pf.circuits.indirect_effects(sets, prompts, n_check=0)["nobody"]
    with pytest.raises(InputError, match="of the same lengths"):
        pf.circuits.indirect_effects(sets, prompts, ablation="resample", counterparts=tiny_tokens[:3])
    with pytest.raises(InputError, match="none can stand in"):
        pf.circuits.indirect_effects(sets, prompts[:1], ablation="resample")
    with pytest.raises(AdapterError, match="Give an SAE"):
        pf.circuits.indirect_effects(sets, prompts, saes=[torch.nn.Linear(2, 2)])
    sets[0].save_pretrained(tmp_path / "saved")
    with pytest.raises(NotBoundError, match="model="):
        pf.circuits.indirect_effects(pf.load(tmp_path / "saved"), prompts)


def test_features_of_two_models_are_refused(sets, prompts, tiny_tokens):
    from tests.models import hooked_transformer

    call = {"n_features": 4, "l0": 2, "steps": 5, "n_samples": 200, "progress": False}
    other = pf.decompose(hooked_transformer(), PARAMS[1], tiny_tokens, **call)
    with pytest.raises(FeatureMismatchError, match="another model object"):
        pf.circuits.indirect_effects([sets[0], other], prompts)


@pytest.mark.parametrize("n_features", [3, 20])
def test_mean_parts_are_alike_by_node_and_by_unit(tiny_hooked, tiny_tokens, n_features):
    """Whichever is cheaper: the means of every node's part, written out here one by one."""
    call = {"n_features": n_features, "l0": 1, "steps": 2, "n_samples": 200, "progress": False}
    features = pf.decompose(tiny_hooked, PARAMS[2], tiny_tokens, **call)
    subject = subject_of(features, tiny_tokens[:3], "mean", background=tiny_tokens[5:9])
    ((place, group),) = subject.places.items()
    ((_, seen),) = subject.sources(read_inputs(subject.adapter, tiny_tokens[5:9], None)).items()
    for node in range(group.n_nodes):
        amounts = torch.eye(group.n_nodes, dtype=torch.float64)[node].expand(4, -1)
        part = place.written(seen.source, amounts, seen.output).flatten(0, 1).flatten(1).mean(0)
        torch.testing.assert_close(subject.baseline.means[place][node], part.detach())


def test_no_grad_outside_does_no_harm(sets, prompts):
    with torch.no_grad():
        inside = pf.circuits.indirect_effects(sets, prompts, last_log_probability, method="integrated", n_steps=2)
    outside = pf.circuits.indirect_effects(sets, prompts, last_log_probability, method="integrated", n_steps=2)
    torch.testing.assert_close(inside.values, outside.values)
