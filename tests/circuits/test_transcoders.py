"""Transcoders in circuits: their nodes stand where they write, and are computed from where they read."""

import pytest
import torch

import param_features as pf
from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.effects import attribution, exact_effects, read_subject
from param_features.circuits.find import edge_weights
from param_features.errors import AdapterError, FeatureMismatchError, InputError, SettingError, UnknownHookError
from tests.saes import TRANSCODERS, random_sae

READ, WRITTEN = "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"


def last_log_probability(output):
    return output[:, -1].log_softmax(-1)[:, 3]


@pytest.fixture(scope="module")
def sets(tiny_hooked, tiny_tokens):
    call = {"n_features": 3, "l0": 1, "steps": 2, "n_samples": 60, "progress": False}
    return [pf.decompose(tiny_hooked, name, tiny_tokens, **call) for name in ("blocks.0.attn.W_V", "blocks.1.mlp.W_out")]


def transcoder(architecture="skip_transcoder", *, d_out=24, **places):
    metadata = {"hook_name": READ, "hook_name_out": WRITTEN} | places
    return random_sae(architecture, d_in=16, d_sae=20, d_out=d_out, dtype="float64", metadata=metadata)


def subject_of(sets, prompts, saes):
    return ablating(read_subject(sets, prompts, None, last_log_probability, saes), Ablation("zero"))


def of_model_with(model, prompts, change):
    """The metric where the transcoder's place has what `change` makes of (what it reads, what is written)."""
    read = []
    hooks = [(READ, lambda act, hook: read.append(act)), (WRITTEN, lambda act, hook: change(read[-1], act))]
    with torch.no_grad():
        return last_log_probability(model.run_with_hooks(prompts, fwd_hooks=hooks))


@pytest.mark.parametrize("architecture", TRANSCODERS)
class TestEveryArchitecture:
    def test_without_its_nodes_the_bias_and_the_skip_connection_are_left(self, architecture, sets, tiny_hooked, tiny_tokens):
        sae, prompts = transcoder(architecture), tiny_tokens[:4]
        subject = subject_of(sets, prompts, sae)
        assert [group.name for group in subject.groups] == ["blocks.0.attn.W_V", WRITTEN, "blocks.1.mlp.W_out"]
        own = torch.tensor([name.startswith(WRITTEN) for name in subject.names])
        bare = of_model_with(tiny_hooked, prompts, lambda read, act: sae(read) - sae.encode(read) @ sae.W_dec)
        torch.testing.assert_close(subject.values(subject.amounts_removing(own)), bare)
        without_error = own & subject.is_error
        rebuilt = of_model_with(tiny_hooked, prompts, lambda read, act: sae(read))
        torch.testing.assert_close(subject.values(subject.amounts_removing(without_error)), rebuilt)

    def test_one_feature_is_taken_out_of_what_is_written(self, architecture, sets, tiny_hooked, tiny_tokens):
        sae, prompts = transcoder(architecture), tiny_tokens[:4]
        subject = subject_of(sets, prompts, sae)
        effect = exact_effects(subject, [subject.names.index(f"{WRITTEN}/5")], subject.values())[:, 0]
        less = of_model_with(tiny_hooked, prompts, lambda read, act: act - sae.encode(read)[..., 5:6] * sae.W_dec[5])
        assert (effect != 0).any()
        torch.testing.assert_close(subject.values() - effect, less)

    def test_what_flows_along_edges_is_the_attribution(self, architecture, sets, tiny_tokens):
        """The skip connection is no node: what flows through it arrives further on."""
        subject = subject_of(sets, tiny_tokens[:4], transcoder(architecture))
        nothing = torch.zeros(len(subject.names), dtype=torch.bool)
        parts = -torch.cat([part[0] for part in subject.amounts_keeping(nothing).values()])
        weights = edge_weights(subject, torch.ones(len(subject.names), dtype=torch.bool))
        arrived = (weights[:, :-1] / subject.holds * parts).sum(1) + weights[:, -1]
        torch.testing.assert_close(arrived, attribution(subject).mean(0), rtol=1e-6, atol=1e-9)
        read, written = subject.names.index("blocks.0.attn.W_V/0"), subject.group_of == 1
        assert weights[read, :-1][written].abs().max() > 0


def test_a_circuit_has_a_transcoders_features_with_their_examples(sets, tiny_tokens):
    sae = transcoder()
    call = {"n_nodes": 12, "n_rounds": 2, "n_random": 0, "n_check": 2, "saes": {(READ, WRITTEN): sae}}
    found = pf.circuit(sets, tiny_tokens[:4], pf.circuits.LogProbability(3), **call)
    nodes = [node for node in found.nodes if node.kind == "sae"]
    assert {node.group for node in nodes} == {WRITTEN}
    assert nodes[0].examples and nodes[0].examples[0].strengths[nodes[0].examples[0].position] > 0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda: {READ: transcoder(hook_name_out=None)}, InputError, "do not name where it writes"),
        (lambda: {("blocks.0.hook_resid_mid", "blocks.9.hook_mlp_out"): transcoder()}, UnknownHookError, "No place"),
        (lambda: transcoder(d_out=16), FeatureMismatchError, "writes 16 numbers of each"),
        (lambda: {("blocks.1.hook_resid_post", WRITTEN): transcoder()}, AdapterError, "is not passed before"),
        (lambda: {(READ, WRITTEN): random_sae(d_in=16)}, SettingError, "rebuilds what it reads"),
        (lambda: [transcoder(), transcoder()], SettingError, "one SAE or transcoder for each place"),
    ],
)
def test_places_are_checked(given, error, message, sets, tiny_tokens):
    with pytest.raises(error, match=message):
        pf.circuits.indirect_effects(sets, tiny_tokens[:4], last_log_probability, saes=given())
