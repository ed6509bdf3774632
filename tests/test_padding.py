"""Padding changes nothing: it is never a sample, never shown, and moves no activation of a real position."""

import re
from functools import cache

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import AdapterError
from param_features.gradients import Harvester
from tests.adapters.zoo import D_VOCAB, booted, hf_gpt2, hf_llama, hooked
from tests.models import randomised

PAD = D_VOCAB - 1
FIT = pf.FitSettings(steps=5, batch_size=32, selection="l1")
QUICK = {"n_features": 4, "l0": 1, "fit": FIT, "progress": False}
ROWS = [[3, 5, 7, 9, 11], [2, 4, 6], [1, 8, 1, 8, 1, 8, 1], [12]]

# How to build it, the matrix that is decomposed, the relative gap that rounding may make.
MODELS = {
    "gpt2": (hf_gpt2, "transformer.h.0.attn.c_attn.weight[k]", 1e-9),
    "llama": (hf_llama, "model.layers.0.self_attn.k_proj.weight", 1e-5),
    "hooked": (hooked, "blocks.0.attn.W_K", 1e-9),
    "bridge gpt2": (lambda: booted(hf_gpt2), "blocks.0.attn.W_K", 1e-9),
    "bridge llama": (lambda: booted(hf_llama, dtype=torch.float32), "blocks.0.attn.W_K", 1e-4),
}


@cache
def built(name: str) -> nn.Module:
    pytest.importorskip("transformer_lens" if name not in ("gpt2", "llama") else "transformers")
    return MODELS[name][0]()


def encoding(rows, side: str, pad: int = PAD) -> dict[str, torch.Tensor]:
    """As a Hugging Face tokenizer pads."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, where], mask[index, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def training_rows(n_rows: int = 36) -> list[list[int]]:
    """Rows of lengths 4 to 8 without the padding's id."""
    tokens = torch.randint(PAD, (n_rows, 8), generator=torch.Generator().manual_seed(2)).tolist()
    return [row[: 4 + index % 5] for index, row in enumerate(tokens)]


@cache
def features_of(name: str, side: str) -> pf.ParamFeatures:
    return pf.decompose(built(name), MODELS[name][1], encoding(training_rows(), side), **QUICK)


def as_ids(features: pf.ParamFeatures, tokens) -> tuple[int, ...]:
    """Back from strings to ids."""
    names = features.engine.adapter.to_strings(range(D_VOCAB))
    return tuple(names.index(token) for token in tokens)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("route", ["vjp", "jvp"])
def test_activations_do_not_know_of_padding(name, route):
    features = features_of(name, "right")
    alone = [features.activations([row], route=route)[0] for row in ROWS]
    scale = torch.cat(alone).norm()
    for side in ("left", "right"):
        given = encoding(ROWS, side)
        found, mask = features.activations(given, route=route), given["attention_mask"].bool()
        for row, expected in enumerate(alone):
            gap = (found[row, mask[row]] - expected).norm()
            assert gap <= MODELS[name][2] * scale, f"{side}, row {row}: off by {gap / scale:.1e}"
        assert not found[~mask].any()
        assert torch.equal(found, features.activations(encoding(ROWS, side, pad=0), route=route))


@pytest.mark.parametrize("name", ["gpt2"])
def test_shared_positions_may_meet_padding_later_than_it_was_planned(name):
    full = [row for row in training_rows(80) if len(row) == 8]
    features = pf.decompose(built(name), "transformer.wpe.weight", torch.tensor(full), **QUICK)
    assert set(features.engine.routes.watched) == {"transformer.wpe.weight"}
    alone = torch.cat([features.activations([row])[0] for row in ROWS])
    for side in ("left", "right"):
        given = encoding(ROWS, side)
        found = features.activations(given, route="vjp")[given["attention_mask"].bool()]
        torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_given_as_inputs_is_padding_as_well(side):
    pytest.importorskip("transformers")
    features, given = features_of("gpt2", "right"), encoding(ROWS, side)
    positions = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = features.activations(inputs=given | {"position_ids": positions})
    torch.testing.assert_close(found, features.activations(given), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["gpt2", "hooked", "bridge gpt2"])
def test_features_of_either_side_have_the_same_gradients_to_find(name, monkeypatch):
    """One position of every row, the same ones: the harvest of either side is the same."""
    stores = {}
    for side in ("left", "right"):
        offset = 0 if side == "right" else 8
        rows, found = training_rows(), []
        wanted = torch.tensor([[len(row) // 2 + (offset - len(row) if offset else 0)] for row in rows])
        monkeypatch.setattr(
            "param_features.gradients.harvester.draw_positions",
            lambda inputs, n_slots, generator, w=wanted, r=rows: w[[r.index(row) for row in inputs.token_rows]],
        )
        store = Harvester.store
        monkeypatch.setattr(Harvester, "store", lambda *a, f=found, s=store, **k: f.append(s(*a, **k)) or f[-1])
        pf.decompose(built(name), MODELS[name][1], encoding(rows, side), n_samples=36, reference="uniform", **QUICK)
        monkeypatch.undo()
        stores[side] = torch.cat([torch.cat([next(iter(chunk.values())).dense().matrix for chunk in store.chunks()])
                                  for store in found])  # fmt: skip
    torch.testing.assert_close(stores["left"], stores["right"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "hooked"])
def test_padding_is_never_a_sample(name, side, monkeypatch):
    """Every position whose gradient is taken, for the fit or for its metrics, is a real one."""
    from param_features.gradients import GradientEngine

    seen, each_slot = [], GradientEngine.each_slot

    def watched(engine, inputs, positions, cotangent_of, consume):
        seen.append((inputs, positions))
        return each_slot(engine, inputs, positions, cotangent_of, consume)

    drawn, store = [], Harvester.store

    def storing(harvester, inputs, n_slots, *args, **kwargs):
        start = len(seen)
        found = store(harvester, inputs, n_slots, *args, **kwargs)
        drawn.extend(seen[start:])
        return found

    monkeypatch.setattr(GradientEngine, "each_slot", watched)
    monkeypatch.setattr(Harvester, "store", storing)
    features = pf.decompose(built(name), MODELS[name][1], encoding(training_rows(), side), **QUICK)
    n_samples = 0
    for inputs, positions in drawn:
        real = torch.ones_like(inputs.tokens) if inputs.mask is None else inputs.mask
        assert real.gather(1, positions).all()
        assert not (inputs.tokens.gather(1, positions) == PAD).any()
        n_samples += positions.numel()
    assert n_samples == features.metrics["n_samples"] + features.metrics["n_held_out"]


@pytest.mark.parametrize("name", ["gpt2", "hooked"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_changes_no_number(name, side):
    one, two = (
        pf.decompose(built(name), MODELS[name][1], encoding(training_rows(), side, pad=pad), **QUICK) for pad in (PAD, 0)
    )
    assert dict(one.metrics) == dict(two.metrics)
    assert torch.equal(one.references, two.references)
    assert torch.equal(one.v_out.tensors[0], two.v_out.tensors[0])


@pytest.mark.parametrize("name", ["gpt2", "hooked", "bridge gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_examples_and_views_never_show_padding(name, side):
    features = features_of(name, side)
    held_out = [tuple(row) for row in training_rows()]
    for example in features.top_examples(1, 4):
        ids = as_ids(features, example.tokens)
        assert ids in held_out
        assert len(example.tokens) == len(example.activations)
        assert example.activations[example.position] == example.activation
        assert example.next_token == (example.tokens[example.position + 1] if example.position + 1 < len(ids) else None)
        alone = features.activations([list(ids)])[0, :, 1]
        torch.testing.assert_close(torch.tensor(example.activations), alone.float(), rtol=1e-4, atol=1e-7)
    for row, marked in zip(features.view(1, n=4).rows, features.top_examples(1, 4), strict=True):
        assert row.values[row.marked] == marked.activation
        assert row.tokens[row.marked] == marked.tokens[marked.position]
        assert as_ids(features, row.tokens) in held_out


@pytest.mark.parametrize("name", ["gpt2", "hooked"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_that_are_shown_are_the_given_ones(name, side, capsys):
    features = features_of(name, side)
    rows = features.view(2, encoding(ROWS, side)).rows
    assert [as_ids(features, row.tokens) for row in rows] == [tuple(row) for row in ROWS]
    for row, ids in zip(rows, ROWS, strict=True):
        alone = features.activations([ids])[0, :, 2]
        torch.testing.assert_close(torch.tensor(row.values), alone.float(), rtol=1e-4, atol=1e-7)
    features.show(2, encoding(ROWS, side))
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()[1:]
    strings = [features.engine.adapter.to_strings(ids) for ids in ROWS]
    assert shown == [f"text {index}  {''.join(tokens)}" for index, tokens in enumerate(strings)]


@pytest.mark.parametrize("name", ["gpt2", "hooked", "bridge gpt2"])
def test_top_examples_are_the_same_on_either_side(name):
    features = features_of(name, "left")
    left, right, none = (
        features.top_examples(1, 4, tokens=tokens) for tokens in (encoding(ROWS, "left"), encoding(ROWS, "right"), ROWS)
    )
    for one in (right, none):
        assert [(e.row, e.position, e.tokens, e.next_token) for e in left] == [
            (e.row, e.position, e.tokens, e.next_token) for e in one
        ]
        for a, b in zip(left, one, strict=True):
            torch.testing.assert_close(a.activations, b.activations, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "hooked", "bridge gpt2"])
def test_top_logits_are_those_of_the_real_positions(name):
    """Against a finite difference along the feature's direction, each example's row run alone."""
    features = features_of(name, "left")
    assert features.examples.mask is not None
    found = dict(features.top_logits(1, D_VOCAB, n_examples=3).up)
    changes = []
    for example in features.top_examples(1, 3):
        ids = torch.tensor([as_ids(features, example.tokens)])
        ends = []
        for step in (1e-5, -1e-5):
            deltas = {n: step * d for n, d in features.direction(1).items()}
            with torch.no_grad(), features.engine.subset.edited(deltas):
                ends.append(features.engine.adapter.run(ids)[0, example.position])
        changes.append((ends[0] - ends[1]) / 2e-5)
    expected = torch.stack(changes).mean(0)
    expected -= expected.mean()
    names = features.engine.adapter.to_strings(range(D_VOCAB))
    torch.testing.assert_close(
        torch.tensor([found[n] for n in names]), expected.float(), rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_features_are_loaded_with_their_mask(side, tmp_path):
    pytest.importorskip("transformers")
    features = features_of("gpt2", side)
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=built("gpt2"))
    assert torch.equal(loaded.examples.mask, features.examples.mask)
    assert loaded.top_examples(0, 3) == features.top_examples(0, 3)
    assert loaded.top_logits(0) == features.top_logits(0)


COMPONENTS = pf.ComponentSettings(steps=3, batch_size=48, adversarial_weight=0.5, subset_weight=0.5, frequency_weight=1e-4)


@cache
def components_of(name: str, side: str, pad: int) -> pf.ParamComponents:
    given = encoding(training_rows(), side, pad=pad)
    return pf.decompose(
        built(name), MODELS[name][1], given, method="components", n_features=3, fit=COMPONENTS, progress=False
    )


@pytest.mark.parametrize("name", ["gpt2", "hooked"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_changes_no_component(name, side, few_metrics):
    one, two = (components_of(name, side, pad) for pad in (PAD, 0))
    assert dict(one.metrics) == dict(two.metrics)
    for mine, theirs in zip(one.dictionary.parts.values(), two.dictionary.parts.values(), strict=True):
        assert torch.equal(mine.U, theirs.U) and torch.equal(mine.V, theirs.V)
    given = encoding(ROWS, side)
    mask = given["attention_mask"].bool()
    for read in (one.activations, one.inner, lambda tokens: one.importances(tokens)[MODELS[name][1]]):
        found = read(given)
        assert not found[~mask].any()
        assert torch.equal(found, read(encoding(ROWS, side, pad=0)))
        for row, ids in enumerate(ROWS):
            torch.testing.assert_close(found[row, mask[row]], read([ids])[0], rtol=1e-9, atol=1e-12)


class Language(nn.Module):
    """A plain module, which has no argument for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(D_VOCAB, 6), nn.Linear(6, 6), nn.Linear(6, D_VOCAB)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        x = x if attention_mask is None else x * attention_mask.unsqueeze(-1)
        return self.lm_head(torch.tanh(self.mix(x)).cumsum(1))


def test_a_plain_module_is_padded_on_the_right_only():
    model = randomised(Language())
    features = pf.decompose(model, "mix.weight", encoding(training_rows(), "right"), **QUICK)
    found = features.activations(encoding(ROWS, "right"))
    torch.testing.assert_close(found[1, :3], features.activations([ROWS[1]])[0], rtol=1e-4, atol=1e-6)
    assert not found[1, 3:].any()
    for call in (lambda given: pf.decompose(model, "mix.weight", given, **QUICK), features.activations):
        with pytest.raises(AdapterError, match=r"padded on the left, and Language has no known argument.*as inputs="):
            call(encoding(training_rows(), "left"))


def test_a_plain_module_takes_padding_on_the_left_as_its_own_arguments():
    model, given = randomised(Language()), encoding(training_rows(), "left")
    features = pf.decompose(model, "mix.weight", inputs=given, **QUICK)
    assert features.activations(inputs=given).shape == (*given["input_ids"].shape, 4)
    assert not features.activations(inputs=given)[~given["attention_mask"].bool()].any()
    assert all(as_ids(features, example.tokens) in map(tuple, training_rows()) for example in features.top_examples(0, 3))
