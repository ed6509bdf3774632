"""Trained coefficients against slow obvious computations, planted steps, and peft's own LoRA."""

import random
from itertools import starmap

import pytest
import torch
from torch import nn
from torch.nn import functional

import param_features as pf
from param_features.errors import FeatureCountError, InputError, NonFiniteError, NotBoundError, OutputError, SettingError
from param_features.intervene import optimise
from param_features.intervene.optimise import TrainingReading, off_target_at
from param_features.intervene.trainables import lora_without_peft, peft_lora
from param_features.measure.controls import random_like
from param_features.problem import ModelInputs
from tests.adapters.zoo import D_VOCAB, assert_same, hf_gpt2, hf_llama, hooked, snapshot, tokenizer
from tests.exits import EXITS, leave, leaving_by
from tests.models import normal

QUICK = {"steps": 12, "lr": 0.3, "progress": False}
PARAMS = ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight"]


def tokens(n_rows=12, seed=7):
    """Rows without the tokenizer's marks and padding."""
    return torch.randint(4, D_VOCAB, (n_rows, 8), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def features():
    call = {"n_features": 5, "l0": 2, "fit": pf.FitSettings(steps=5, rank=2), "n_samples": 60, "progress": False}
    return pf.decompose(hf_llama(), PARAMS, tokens(30, seed=1), tokenizer=tokenizer(), **call)


def directions(features):
    """Every v_k in the parameters' shapes, in float64."""
    subset = features.engine.subset
    exact = features.v_out.map(torch.Tensor.double).materialize()
    return [{name: subset[name].from_matrix(rows[k]) for name, rows in exact.items()} for k in range(len(features))]


def output_at(features, steps, rows):
    """The model's output at W + Σ δ_k v_k, written into the weights."""
    parts = directions(features)
    deltas = {name: sum(step * parts[k][name] for k, step in steps.items()) for name in features.params}
    with torch.no_grad(), features.engine.subset.edited(deltas):
        return features.engine.adapter.run(rows)


def slow_loss(logits, rows, counted):
    """Mean over the counted tokens, one at a time."""
    losses = [
        -logits[row, position - 1].log_softmax(-1)[rows[row, position]]
        for row, position in counted.nonzero().tolist()
        if position > 0
    ]
    return float(torch.stack(losses).mean())


def slow_kl(before, after):
    p, q = before.softmax(-1), after.softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


EVERY = torch.ones(12, 8, dtype=torch.bool)


def test_loss_and_off_target_are_those_of_the_written_weights(features):
    rows, other = tokens(), tokens(9, seed=8)
    tuned = features.finetune(rows, [1, 3], kl_data=other, batch_size=5, **QUICK)
    assert list(tuned.coefficients) == [1, 3]
    for steps, loss in (({1: 0.0}, tuned.loss_before), (tuned.coefficients, tuned.loss_after)):
        assert loss == pytest.approx(slow_loss(output_at(features, steps, rows), rows, EVERY), rel=1e-6)
    before, after = output_at(features, {0: 0.0}, other), output_at(features, tuned.coefficients, other)
    assert tuned.off_target == pytest.approx(slow_kl(before, after), rel=1e-5)
    assert tuned.history[0].off_target == pytest.approx(0, abs=1e-12)
    assert tuned.loss_after < tuned.loss_before
    assert tuned.gain == tuned.loss_before - tuned.loss_after


def test_planted_steps_are_recovered():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    x = normal(64, 6)
    call = {"n_features": 6, "l0": 2, "steps": 20, "n_samples": 64, "progress": False}
    features = pf.decompose(model, ["0.weight", "2.weight"], inputs=x, **call)
    planted = {4: 0.8, 1: -0.5}
    goal = output_at(features, planted, x)
    loss = lambda output, batch, targets: (output - targets).square().mean()  # noqa: E731
    call = {"loss": loss, "targets": goal, "steps": 300, "lr": 0.03, "batch_size": 64, "progress": False}
    tuned = features.finetune(inputs=x, features=[4, 1], kl_inputs=x, **call)
    assert tuned.coefficients == pytest.approx(planted, abs=0.01)
    difference = (goal - output_at(features, {0: 0.0}, x)).square().sum(-1).mean()
    assert tuned.off_target == pytest.approx(float(difference), rel=0.05)  # the fit's own divergence, squared error
    assert "squared error per input" in repr(tuned)


def test_the_features_chosen_are_those_of_the_steepest_loss(features):
    """By central differences of the written weights."""
    rows, step = tokens(), 1e-4
    slopes = []
    for k in range(5):
        up, down = (slow_loss(output_at(features, {k: sign * step}, rows), rows, EVERY) for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    order = torch.tensor(slopes).abs().argsort(descending=True).tolist()
    in_batches = features.finetune(rows, 3, kl_data=rows, batch_size=5, **QUICK | {"steps": 1})
    chosen = features.finetune(rows, 3, kl_data=rows, **QUICK | {"steps": 1})
    assert list(chosen.coefficients) == list(in_batches.coefficients) == order[:3]
    for k, coefficient in chosen.coefficients.items():
        assert coefficient == pytest.approx(-0.3 if slopes[k] > 0 else 0.3, rel=1e-3)  # Adam's first step is lr


def test_pairs_count_completions_and_where_counts_marked_tokens(features):
    texts, ends = ["w5 w6 w7", "w8 w9"], [" w10 w11", " w12"]
    whole = torch.tensor([[1, 5, 6, 7, 10, 11], [1, 8, 9, 12, 0, 0]])
    counted = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]], dtype=torch.bool)
    logits = output_at(features, {0: 0.0}, whole)
    wanted = slow_loss(logits, whole, counted)
    call = {"features": [0], "kl_data": tokens(4), **QUICK | {"steps": 1}}
    pairs = list(zip(texts, ends, strict=True))
    assert features.finetune(pairs, **call).loss_before == pytest.approx(wanted, rel=1e-6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    marked = features.finetune({"input_ids": whole, "attention_mask": mask}, where=counted, **call)
    assert marked.loss_before == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(features, side):
    rows = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 8, 9, 12, 0, 0]])
    real = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    alone = [output_at(features, {0: 0.0}, rows[:1])[0], output_at(features, {0: 0.0}, rows[1:, :4])[0]]
    losses = [
        functional.cross_entropy(one[:-1], row[1 : len(one)], reduction="sum") for one, row in zip(alone, rows, strict=True)
    ]
    given = {"input_ids": rows, "attention_mask": real}
    if side == "left":
        given = {key: torch.stack([row[0], row[1].roll(2)]) for key, row in given.items()}
    tuned = features.finetune(given, [0], kl_data=given, **QUICK | {"steps": 1})
    assert tuned.loss_before == pytest.approx(float(sum(losses)) / 8, rel=1e-5)


def test_a_penalty_keeps_the_output_and_is_measured_elsewhere(features):
    rows, other = tokens(), tokens(9, seed=8)
    free, held = (
        features.finetune(rows, [0, 1, 2], kl_data=other, kl_weight=weight, **QUICK | {"steps": 40})
        for weight in (1e-9, 100)
    )
    assert held.off_target < 0.5 * free.off_target
    assert held.gain < free.gain
    objective = held._objective
    penalised, measured = (
        set(map(tuple, part.inputs.tokens.tolist())) for part in (objective.penalty, objective.off_target)
    )
    assert len(penalised) == 4
    assert len(measured) == 5
    assert not penalised & measured
    original = output_at(features, {0: 0.0}, objective.off_target.inputs.tokens)
    after = output_at(features, held.coefficients, objective.off_target.inputs.tokens)
    assert held.off_target == pytest.approx(slow_kl(original, after), rel=1e-5)


def test_held_out_sequences_are_the_other_data_by_default(features):
    tuned = features.finetune(tokens(), [0], **QUICK)
    assert torch.equal(tuned._objective.off_target.inputs.tokens, features.examples.tokens)


def test_same_seed_same_bits_and_the_global_state_is_untouched(features):
    call = {"features": [0, 1], "kl_data": tokens(9, seed=8), "kl_weight": 0.1, "batch_size": 4, **QUICK}
    torch.manual_seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    runs = [features.finetune(tokens(), seed=seed, **call) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    assert runs[0].coefficients == runs[1].coefficients
    assert runs[0].history == runs[1].history
    assert runs[0].coefficients != runs[2].coefficients
    alone = {key: value for key, value in call.items() if key != "kl_weight"}
    one, other = (features.finetune(tokens(), seed=seed, **alone).coefficients for seed in (0, 1))
    assert one != other  # other rows are drawn


@pytest.mark.parametrize("error", EXITS)
def test_the_model_is_left_as_it_was(features, error, monkeypatch):
    model, step, n_calls = features.engine.adapter.module, optimise._step, []
    model.train()
    model.model.layers[0].self_attn.v_proj.weight.requires_grad_(False)
    before = snapshot(model)

    def interrupted(*args):
        n_calls.append(1)
        if len(n_calls) == 4:
            leave(error)
        return step(*args)

    monkeypatch.setattr(optimise, "_step", interrupted)
    try:
        if error is ZeroDivisionError:
            with leaving_by(error):
                features.finetune(tokens(), [0, 1], **QUICK)
        else:
            tuned = features.finetune(tokens(), [0, 1], **QUICK)
            assert tuned.history[-1].step == (12 if error is None else 3)
            assert all(tuned.coefficients.values())
        assert_same(before, snapshot(model))
    finally:
        model.eval()
        model.requires_grad_(True)


def test_an_interruption_says_so(features, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimise, "_step", interrupted)
    tuned = features.finetune(tokens(), [0, 1], **QUICK | {"progress": True})
    assert "Interrupted after 0 of 12 steps" in capsys.readouterr().err
    assert tuned.coefficients == {0: 0.0, 1: 0.0}
    with pytest.raises(SettingError, match="there is no gain to compare at"):
        tuned.beside_lora(progress=False)


def test_what_is_printed(features):
    tuned = features.finetune(tokens(), [0, 3], kl_data=tokens(9), **QUICK)
    lines = repr(tuned).splitlines()
    assert lines[0] == f"FineTuned: 2 coefficients of {', '.join(PARAMS)}, 12 steps"
    assert lines[1].startswith(f"loss         {tuned.loss_before:.4f} before, {tuned.loss_after:.4f} after")
    assert "nats per position away from the original, on 9 other rows" in lines[2]
    assert f"3: {tuned.coefficients[3]:+.4g}" in lines[3]


class TestEqualGain:
    PATH = tuple(starmap(TrainingReading, [(0, 5.0, 0.0), (1, 4.0, 0.1), (2, 2.0, 0.5), (3, 3.0, 0.2), (4, 1.0, 0.9)]))

    def test_is_read_between_readings(self):
        assert off_target_at(self.PATH[:2], 0.25) == pytest.approx(0.025)
        assert off_target_at(self.PATH[:3], 1.5) == pytest.approx(0.2)

    def test_the_best_crossing_counts(self):
        assert off_target_at(self.PATH, 2.5) == pytest.approx(min(0.4, 0.35, 0.375))

    def test_is_none_where_the_gain_is_never_reached(self):
        assert off_target_at(self.PATH, 4.5) is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
class TestBesideLora:
    CALL = {"lrs": (0.03, 0.1), "n_random": 2, "random_lrs": (0.1, 0.3), "progress": False}

    def test_pefts_and_our_own_factors_are_the_same_training(self, features):
        """The two from the same start: readings agree step by step."""
        pytest.importorskip("peft")
        objective = features.finetune(tokens(), [0], **QUICK)._objective
        by_peft, without_peft = peft_lora(features.engine, 2, seed=3), lora_without_peft(features.engine, 2, seed=3)
        with torch.no_grad():
            for ours, theirs in zip(without_peft.tensors, by_peft.tensors, strict=True):
                assert ours.shape == theirs.shape
                ours.copy_(theirs)
        budget = optimise.Budget(steps=8, lr=0.05, batch_size=5, seed=0, n_readings=8)
        paths = [
            optimise.train(objective, trainable, budget, progress=False, title="") for trainable in (by_peft, without_peft)
        ]
        assert paths[0][-1].loss < paths[0][0].loss - 0.01
        for one, other in zip(*paths, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-7)

    def test_the_table(self, features):
        pytest.importorskip("peft")
        before = snapshot(features.engine.adapter.module)
        state = torch.get_rng_state()
        tuned = features.finetune(tokens(), [0, 1, 2], kl_data=tokens(9, seed=8), **QUICK)
        comparison = tuned.beside_lora(rank=2, **self.CALL)
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(before, snapshot(features.engine.adapter.module))
        assert [row.name for row in comparison.rows] == [
            "features", "LoRA rank 2 (peft)", "random directions 0", "random directions 1",
        ]  # fmt: skip
        assert comparison["features"].off_target == tuned.off_target
        assert comparison["LoRA"].n_numbers == 2 * (16 + 8) + 2 * (24 + 16)
        assert comparison["random"].n_numbers == 3
        assert comparison.histories["LoRA rank 2 (peft)"][0].loss == pytest.approx(tuned.loss_before, rel=1e-9)
        for row in comparison.rows[1:]:
            history = comparison.histories[row.name]
            assert row.off_target == off_target_at(history, tuned.gain)
            assert row.largest_gain == pytest.approx(history[0].loss - min(reading.loss for reading in history))
            assert (history[0].loss - row.largest_gain, row.off_target_there) in [
                (pytest.approx(reading.loss), reading.off_target) for reading in history
            ]
        assert comparison["LoRA"].off_target is not None
        assert f"at a gain of {tuned.gain:.4f}" in repr(comparison)
        assert repr(tuned.beside_lora(rank=2, **self.CALL)) == repr(comparison)

    def test_the_best_learning_rate_counts(self, features):
        tuned = features.finetune(tokens(), [0, 1, 2], kl_data=tokens(9, seed=8), **QUICK)
        lrs = (0.1, 0.3, 1.0)
        single = [tuned.beside_lora(**self.CALL | {"lrs": (lr,), "n_random": 0})["LoRA"] for lr in lrs]
        best = tuned.beside_lora(**self.CALL | {"lrs": lrs, "n_random": 0})["LoRA"]
        reached = {row.off_target: row for row in single if row.off_target is not None}
        assert len(reached) >= 2
        assert best == reached[min(reached)]

    def test_a_rival_that_never_gets_there_is_reported_so(self, features):
        tuned = features.finetune(tokens(), [0, 1, 2], kl_data=tokens(9, seed=8), **QUICK)
        comparison = tuned.beside_lora(lrs=(1e-6,), n_random=0, progress=False)
        assert comparison["LoRA"].off_target is None
        assert "not reached" in repr(comparison)

    @pytest.mark.parametrize(
        ("build", "params"),
        [(hooked, "blocks.0.attn.W_K"), (hf_gpt2, "transformer.h.0.attn.c_attn.weight[v]")],
        ids=["hooked", "a part"],
    )
    def test_own_factors_where_pefts_do_not_fit(self, build, params):
        call = {"n_features": 3, "l0": 1, "steps": 3, "n_samples": 60, "progress": False}
        found = pf.decompose(build(), params, tokens(30, seed=1), **call)
        tuned = found.finetune(tokens(), 2, **QUICK)
        row = tuned.beside_lora(lrs=(0.1,), n_random=0, progress=False).rows[1]
        assert row.name == "LoRA rank 1 (own factors)"
        assert row.n_numbers == 16 + 16
        assert row.largest_gain > 0

    def test_random_directions_have_the_features_norm_and_rank(self, features):
        rows = features.v_out.rows([0, 2])
        one, other = (random_like(rows, torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert [tensor.shape for tensor in one.tensors] == [tensor.shape for tensor in rows.tensors]
        torch.testing.assert_close(one.norm(), torch.ones(2).to(one.norm()))
        assert one.gram(other).abs().max() < 0.5

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ({"rank": 0}, FeatureCountError, "rank must be at least 1"),
            ({"n_random": -1}, FeatureCountError, "n_random at least 0"),
            ({"lrs": ()}, SettingError, "at least one of each"),
            ({"lrs": (-1.0,)}, SettingError, "lr=-1.0 must be above 0"),
        ],
    )
    def test_wrong_settings(self, features, call, error, message):
        tuned = features.finetune(tokens(), [0, 1], **QUICK)
        with pytest.raises(error, match=message):
            tuned.beside_lora(**{"progress": False} | call)


WRONG = {
    "no such feature": ({"features": [5]}, FeatureCountError, "no feature 5. Features are numbered 0 to 4"),
    "none": ({"features": []}, FeatureCountError, "holds none"),
    "twice": ({"features": [1, 1]}, FeatureCountError, "holds one twice"),
    "too many": ({"features": 6}, FeatureCountError, "Ask for 1 to 5"),
    "zero": ({"features": 0}, FeatureCountError, "Ask for 1 to 5"),
    "steps": ({"steps": 0}, SettingError, "steps=0 must be above 0"),
    "lr": ({"lr": -0.1}, SettingError, "lr=-0.1 must be above 0"),
    "kl_weight": ({"kl_weight": -1.0}, SettingError, "kl_weight=-1.0 must be 0 or above"),
    "one row of other data": ({"kl_weight": 1.0, "kl_data": tokens(1)}, InputError, "kl_data has 1 row"),
    "nothing counts": ({"where": torch.zeros(12, 8)}, InputError, "Row 0 has no token whose prediction counts"),
    "where's shape": ({"where": torch.ones(12, 7)}, InputError, r"where has shape \(12, 7\) and the tokens \(12, 8\)"),
    "targets without loss": ({"targets": torch.ones(12)}, InputError, "loss= is not given"),
    "too few targets": (
        {"targets": torch.ones(2), "loss": lambda *_: 0},
        InputError,
        "targets hold 2 rows beside 12 inputs",
    ),
    "no scalar": ({"loss": lambda out, batch: out}, OutputError, r"loss returned \(12, 8, 20\)"),
    "no tensor": ({"loss": lambda out, batch: 1.0}, OutputError, "loss returned float"),
    "NaN": ({"loss": lambda out, batch: out.sum() * float("nan")}, NonFiniteError, "loss became nan at lr=0.3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(features, case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        features.finetune(tokens(), **{"features": [0]} | QUICK | call)


def test_no_next_token_loss_without_tokens(classifier, images):
    found = pf.decompose(classifier, "classifier.weight", inputs=images, n_features=3, l0=1, steps=3, progress=False)
    with pytest.raises(InputError, match="gives no logits for each token"):
        found.finetune(inputs=images, features=[0], **QUICK)
    labels = torch.randint(4, (60,), generator=torch.Generator().manual_seed(0))
    loss = lambda output, batch, targets: functional.cross_entropy(output, targets)  # noqa: E731
    tuned = found.finetune(inputs=images, features=2, targets=labels, loss=loss, **QUICK)
    assert tuned.gain > 0


def test_without_a_model(features, tmp_path):
    features.save_pretrained(tmp_path)
    with pytest.raises(NotBoundError, match="finetune"):
        pf.load(tmp_path).finetune(tokens(), [0])


def test_the_loss_sees_tokens_or_the_input_or_all_arguments(features):
    seen = []

    def loss(output, batch):
        seen.append(batch)
        return output.square().mean()

    rows = tokens()
    features.finetune(rows, [0], loss=loss, **QUICK | {"steps": 1})
    assert torch.equal(seen[0], rows)
    features.finetune(inputs={"input_ids": rows, "attention_mask": torch.ones_like(rows)}, features=[0], loss=loss, **QUICK)
    assert torch.equal(seen[-1], rows)
    assert not isinstance(seen[-1], ModelInputs)
