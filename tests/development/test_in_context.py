"""Prefix matching and losses of tokens against slow definitions, on every kind of model, which is left as it was."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import param_features as pf
from param_features.development.in_context import repeated_tokens, score_of_losses
from param_features.errors import AdapterError, InputError, NonFiniteError, SettingError, UnknownParameterError
from param_features.params import adapter_for
from tests.adapters import zoo
from tests.models import hooked_transformer

MODELS = {
    "hooked": zoo.hooked,
    "hooked with shared keys": zoo.hooked_llama,
    "native bridge": zoo.native,
    "compatible bridge": lambda: zoo.booted(zoo.hf_gpt2, compatible=True),
    "gpt2 with sdpa": zoo.hf_gpt2,
    "gpt neo": zoo.hf_gpt_neo,
    "llama with sdpa": zoo.hf_llama,
}


@pytest.fixture(scope="module")
def rows():
    """Seven tokens, so that some come again, also at once, in rows that the model's context holds."""
    return torch.randint(4, 11, (9, 12), generator=torch.Generator().manual_seed(3))


def scored_slowly(patterns, rows):
    """The definition, with loops: patterns are [layer][row head query key]."""
    found = []
    for pattern in patterns:
        masses = []
        for row, tokens in enumerate(rows.tolist()):
            for query in range(len(tokens)):
                after = [j + 1 for j in range(query) if tokens[j] == tokens[query] and j + 1 < query]
                if after:
                    masses.append(pattern[row, :, query, after].sum(-1))
        found.append(torch.stack(masses).mean(0))
    return torch.stack(found).double()


def state_of(module):
    hooks = [(len(child._forward_hooks), len(child._forward_pre_hooks)) for child in module.modules()]
    flags = [(parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    return hooks, flags, [child.training for child in module.modules()], torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_the_score_is_the_attention_to_what_followed_before(kind, rows):
    pytest.importorskip("transformer_lens" if "hooked" in kind or "bridge" in kind else "transformers")
    model = MODELS[kind]()
    adapter = adapter_for(model)
    module, before = adapter.module, [parameter.clone() for parameter in model.parameters()]
    is_lens = hasattr(model, "run_with_cache")
    state, attention = state_of(module), None if is_lens else model.config._attn_implementation
    found = pf.development.prefix_matching(model, rows)
    assert state_of(module) == state
    assert is_lens or model.config._attn_implementation == attention
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        if is_lens:
            _, seen = model.run_with_cache(rows)
            patterns = [seen[f"blocks.{layer}.attn.hook_pattern"] for layer in range(2)]
        else:
            model.set_attn_implementation("eager")
            patterns = model(rows, output_attentions=True, use_cache=False).attentions
    torch.testing.assert_close(found.scores, scored_slowly(patterns, rows))
    assert len(found.layers) == 2 and found.n_places > 20
    assert not is_lens or found.layers == ("blocks.0.attn", "blocks.1.attn")
    assert found.top(1)[0][2] == pytest.approx(float(found.scores.max()))


class Matching(nn.Module):
    """Attention made by hand, behind a hook point of TransformerLens' name: head 0 matches prefixes, head 1 is even."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"hook_pattern": nn.Identity()})
        self.weight = nn.Parameter(torch.zeros(20))

    def forward(self, tokens):
        pos = torch.arange(tokens.shape[1])
        seen = (pos[:, None] >= pos).double()
        after = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.double)
        after[:, :, 1:] = (tokens[:, :, None] == tokens[:, None, :])[:, :, :-1].double()
        after = after * (pos[:, None] > pos)
        matching = torch.where(after.sum(2, keepdim=True) > 0, after, torch.eye(len(pos), dtype=torch.double))
        both = torch.stack([matching, seen.expand_as(matching)], 1)
        self.attn["hook_pattern"](both / both.sum(3, keepdim=True))
        return self.weight.expand(*tokens.shape, 20)


def test_a_head_that_matches_scores_1_and_one_that_attends_evenly_the_even_score(rows):
    found = pf.development.prefix_matching(Matching(), rows)
    assert found.scores[0].tolist() == pytest.approx([1.0, found.even])
    assert 0 < found.even < 0.3
    assert "head 0: 1.000" in repr(found)


def test_padding_is_neither_matched_nor_a_place(rows):
    model = zoo.hooked()
    alone = pf.development.prefix_matching(model, rows[:1, :8])
    padded = {"input_ids": torch.cat([rows[:1, :8], rows[:1, :4]], 1), "attention_mask": torch.tensor([[1] * 8 + [0] * 4])}
    both = pf.development.prefix_matching(model, padded)
    torch.testing.assert_close(both.scores, alone.scores)
    assert both.n_places == alone.n_places and both.even == pytest.approx(alone.even)


def test_random_rows_repeat_themselves_behind_the_first_token_and_follow_their_seed():
    adapter = adapter_for(zoo.hooked())
    rows = repeated_tokens(adapter, 6, seed=2)
    assert rows.shape == (6, 11) and (rows[:, 0] == 1).all()
    assert torch.equal(rows[:, 1:6], rows[:, 6:])
    assert all(len(set(row)) == 5 and min(row) >= 4 for row in rows[:, 1:6].tolist())  # 0 to 3 are special
    assert torch.equal(rows, repeated_tokens(adapter, 6, seed=2))
    assert not torch.equal(rows, repeated_tokens(adapter, 6, seed=3))
    bare = repeated_tokens(adapter_for(hooked_transformer()), 2, seed=0)
    assert bare.shape == (2, 12) and torch.equal(bare[:, :6], bare[:, 6:])
    assert pf.development.prefix_matching(zoo.hooked(), n_rows=3).n_places == 15


def test_what_shows_no_pattern_or_repeats_nothing_is_refused(rows):
    with pytest.raises(AdapterError, match="Language shows no attention patterns"):
        pf.development.prefix_matching(zoo.Language(), rows)
    with pytest.raises(AdapterError, match="not known to take tokens"):
        pf.development.prefix_matching(Matching())
    with pytest.raises(InputError, match="no token comes again"):
        pf.development.prefix_matching(Matching(), torch.arange(8).view(1, 8))
    with pytest.raises(SettingError, match="n_rows=0"):
        pf.development.prefix_matching(Matching(), rows, n_rows=0)


def test_losses_are_cross_entropy_and_missing_where_padding_is(tiny_hooked, tiny_tokens):
    found = pf.development.token_losses(tiny_hooked, tiny_tokens)
    with torch.no_grad():
        logits = tiny_hooked(tiny_tokens)
    expected = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tiny_tokens[:, 1:], reduction="none")
    torch.testing.assert_close(found, expected)
    mask = torch.ones_like(tiny_tokens)
    mask[3, 6:] = 0
    padded = pf.development.token_losses(tiny_hooked, {"input_ids": tiny_tokens, "attention_mask": mask})
    assert padded.isnan().nonzero().tolist() == [[3, pos] for pos in range(5, 9)]
    torch.testing.assert_close(padded[~padded.isnan()], found[~padded.isnan()])


def test_the_score_is_late_loss_less_early_loss(tiny_hooked, tiny_tokens):
    losses = pf.development.token_losses(tiny_hooked, tiny_tokens)
    found = pf.development.in_context_score(tiny_hooked, tiny_tokens, late=[7, 9], early=2)
    assert found == pytest.approx(float(losses[:, [6, 8]].mean() - losses[:, 1].mean()))
    assert pf.development.in_context_score(tiny_hooked, tiny_tokens) == pytest.approx(
        float(losses[:, 8].mean() - losses[:, 0].mean())
    )


def test_by_default_the_500th_of_512_tokens_is_compared_with_the_50th():
    losses = torch.arange(511.0).expand(2, -1)  # column i is token i + 1
    assert score_of_losses(losses) == 450
    assert score_of_losses(losses[:, :63]) == 62 - 6


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"late": 10}, r"\[10\] of rows of 10 tokens: accepted are 1 to 9"),
        ({"early": 0}, "accepted are 1 to 9"),
        ({"late": 3, "early": [1, 3]}, "must lie behind"),
        ({"late": []}, r"Positions \[\]"),
    ],
)
def test_positions_that_are_not_there_are_refused(positions, message):
    with pytest.raises(SettingError, match=message):
        score_of_losses(torch.zeros(2, 9), **positions)


def test_rows_without_losses_are_refused(tiny_hooked, tiny_tokens):
    with pytest.raises(InputError, match="nothing to predict"):
        pf.development.token_losses(tiny_hooked, tiny_tokens[:, :1])
    with pytest.raises(InputError, match="No row has real tokens"):
        score_of_losses(torch.full((2, 9), math.nan))
    with pytest.raises(InputError, match=r"output has shape \(3, 4\)"):
        pf.development.token_losses(nn.EmbeddingBag(20, 4), tiny_tokens[:3])
    broken = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        broken.unembed.W_U[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        pf.development.token_losses(broken, tiny_tokens)


@pytest.fixture(scope="module")
def path(tiny_hooked):
    """Weights that go along two directions, one after the other."""
    generator, base = torch.Generator().manual_seed(4), dict(tiny_hooked.named_parameters())
    one, two = ({name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in base.items()} for _ in range(2))
    places = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3)]
    return {10 * i: {n: t.detach() + x * one[n] + y * two[n] for n, t in base.items()} for i, (x, y) in enumerate(places)}


def test_checkpoints_become_losses_and_their_principal_components(tiny_hooked, tiny_tokens, path):
    before = {name: parameter.clone() for name, parameter in tiny_hooked.named_parameters()}
    found = pf.development.loss_trajectory(tiny_hooked, path, tiny_tokens[:6])
    assert all(torch.equal(before[name], parameter) for name, parameter in tiny_hooked.named_parameters())
    assert found.steps == tuple(path)
    torch.testing.assert_close(found.losses[0], pf.development.token_losses(tiny_hooked, tiny_tokens[:6]))
    assert not torch.allclose(found.losses[0], found.losses[-1])
    centred = (found.losses - found.losses.mean(0)).flatten(1)
    torch.testing.assert_close(centred @ found.directions.flatten(1).T, found.components)
    torch.testing.assert_close(found.explained, found.components.square().sum(0) / centred.square().sum())
    values = torch.linalg.eigvalsh(centred @ centred.T).flip(0)
    torch.testing.assert_close(found.components.square().sum(0), values[:2])
    assert found.explained.sum() > 0.95  # two directions, small steps


def test_a_bridges_checkpoints_and_files_are_read(tmp_path, rows):
    pytest.importorskip("transformer_lens")
    from safetensors.torch import save_file

    model = zoo.native()
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    state["unembed.weight"] *= 3
    save_file(state, tmp_path / "late.safetensors")
    found = pf.development.loss_trajectory(model, [model, tmp_path / "late.safetensors"], rows, n_components=1)
    torch.testing.assert_close(found.losses[0], pf.development.token_losses(model, rows))
    assert not torch.allclose(found.losses[1], found.losses[0])
    assert float(found.explained[0]) == pytest.approx(1)


@pytest.mark.parametrize("names", [lambda model: model.named_parameters(), lambda model: model.state_dict().items()])
def test_a_bridges_weights_are_known_by_torchs_names(names, rows):
    pytest.importorskip("transformer_lens")
    model, name = zoo.native(), "blocks.1.attn.W_K"
    features = pf.decompose(model, name, rows, n_features=3, n_samples=60, steps=2, progress=False)
    state = {said: tensor.detach().clone() for said, tensor in names(model)}
    path = pf.development.loss_trajectory(
        model, {0: {said: 1.1 * tensor for said, tensor in state.items()}, 1: state}, rows, n_components=1
    )
    torch.testing.assert_close(path.losses[1], pf.development.token_losses(model, rows))
    with features.steer({1: 0.5}):
        stepped = {said: tensor.detach().clone() for said, tensor in names(model)}
    change = features.coordinates(stepped, since=state)
    assert change.norm == pytest.approx(0.5, rel=1e-6)
    assert float(change.overlaps[1]) == pytest.approx(0.5, rel=1e-6)


def test_checkpoints_that_cannot_be_compared_are_refused(tiny_hooked, tiny_tokens, path):
    with pytest.raises(ValueError, match="One checkpoint has no path"):
        pf.development.loss_trajectory(tiny_hooked, [path[0]], tiny_tokens)
    with pytest.raises(SettingError, match="accepted are 1 to 2"):
        pf.development.loss_trajectory(tiny_hooked, [path[0], path[10]], tiny_tokens, n_components=3)
    with pytest.raises(UnknownParameterError, match="no tensor for .* It holds 1;"):
        pf.development.loss_trajectory(tiny_hooked, [path[0], {"embed.W_E": path[0]["embed.W_E"]}], tiny_tokens)
