"""Audits: each row against its definition, and that a row can fail: bad features, broken models, unrelated labels."""

from dataclasses import replace

import pytest
import torch

import param_features as pf
from benchmarks import toys
from param_features.audit import Audit, AuditRow, AuditSettings
from param_features.audit.refits import refitted, untrained
from param_features.audit.stepping import effect_reader, linearity, ranking, ratio, signs, specificity, step_along
from param_features.audit.subjects import audit_subject, spread_by
from param_features.audit.together import adversary
from param_features.errors import FeatureMismatchError, NotBoundError, SettingError
from param_features.measure.controls import random_like
from param_features.params import all_parameters
from param_features.problem import read_inputs
from tests.adapters.zoo import assert_same, snapshot

W_K = "blocks.0.attn.W_K"
SMALL = AuditSettings(
    n_features=4, n_rows=6, n_top=5, steps=(0.001, 0.01, 0.1), set_size=2, n_sets=3, n_deletions=3, n_starts=2, n_climbs=3
)


@pytest.fixture(scope="module")
def small(tiny_features, tiny_tokens):
    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens, None)
    return audit_subject(tiny_features, inputs, SMALL)


@pytest.fixture(scope="module")
def effects(small):
    return step_along(small, SMALL)


@torch.no_grad()
def outputs(model, tokens):
    return model(tokens).flatten(0, 1)


@pytest.fixture(scope="module")
def toy():
    return toys.planted_circuits(seed=0)


@pytest.fixture(scope="module")
def fitted(toy):
    return toy.decompose()


class TestSubject:
    def test_slopes_are_the_derivatives_along_every_direction(self, small, tiny_hooked, tiny_features, tiny_tokens):
        tokens, h = tiny_tokens[:6], 1e-5
        references = tiny_features.references.to(torch.float64)
        for place in (0, 3, 5):
            direction = {name: m[place] for name, m in small.directions.materialize().items()}
            view = small.engine.subset[W_K]
            values = []
            for sign in (1, -1):
                with small.engine.subset.edited({W_K: view.from_matrix(sign * h * direction[W_K])}):
                    found = outputs(tiny_hooked, tokens)
                rows = [tiny_features.divergence.value(found, r.expand_as(found)) for r in references]
                values.append(torch.stack(rows).mean(0))
            torch.testing.assert_close(
                small.slopes[:, place].double(), (values[0] - values[1]) / (2 * h), rtol=1e-3, atol=1e-5
            )

    def test_random_directions_have_the_features_norm_and_rank(self, small):
        torch.testing.assert_close(small.directions.norm(), torch.ones(8).to(small.directions.norm()))
        ranks = {torch.linalg.matrix_rank(m.double(), rtol=1e-5).item() for m in small.random.materialize()[W_K]}
        assert ranks == {2}

    def test_kept_is_where_codes_are_not_zero(self, small, tiny_features, tiny_tokens):
        assert torch.equal(small.is_kept, (tiny_features.codes(tiny_tokens[:6]) != 0).flatten(0, 1))

    def test_padding_is_no_sample(self, tiny_features, tiny_tokens):
        mask = torch.ones_like(tiny_tokens[:6])
        mask[0, 6:] = 0
        inputs = read_inputs(tiny_features.engine.adapter, {"input_ids": tiny_tokens[:6], "attention_mask": mask}, None)
        padded = audit_subject(tiny_features, inputs, SMALL)
        assert len(padded.acts) == len(padded.is_kept) == 56
        assert step_along(padded, SMALL).distance.shape == (3, 2, 8, 56)

    def test_the_chosen_are_spread_over_densities_and_alive(self):
        density = torch.tensor([0.0, 0.5, 0.1, 0.3, 0.0, 0.2, 0.4])
        assert spread_by(density, 3) == [2, 3, 1]
        assert spread_by(density, 99) == [2, 5, 3, 6, 1]


class TestSteps:
    def test_distance_is_kl_from_before_to_after(self, small, effects, tiny_hooked, tiny_tokens):
        tokens = tiny_tokens[:6]
        before = outputs(tiny_hooked, tokens).log_softmax(-1)
        view, place = small.engine.subset[W_K], 2
        direction = small.directions.materialize()[W_K][place]
        with small.engine.subset.edited({W_K: view.from_matrix(-0.1 * small.norm * direction)}):
            after = outputs(tiny_hooked, tokens).log_softmax(-1)
        expected = (before.exp() * (before - after)).sum(-1)
        torch.testing.assert_close(effects.distance[2, 1, place], expected, rtol=1e-5, atol=1e-9)

    def test_the_change_against_the_mean_reference_is_the_mean_change(self, small, tiny_hooked, tiny_tokens):
        before = outputs(tiny_hooked, tiny_tokens[:3])
        after = before + torch.randn(before.shape, generator=torch.Generator().manual_seed(0), dtype=before.dtype)
        divergence, references = small.features.divergence, small.features.references.to(before)
        each = [
            divergence.value(after, r.expand_as(after)) - divergence.value(before, r.expand_as(before)) for r in references
        ]
        torch.testing.assert_close(effect_reader(small)(before, after)[:, 1], torch.stack(each).mean(0))

    def test_rankings_and_ratios(self):
        moved = torch.tensor([[0.1, 0.2, 0.3, 0.4], [4.0, 1.0, 3.0, 2.0]])
        top = torch.tensor([[False, True], [False, False], [True, False], [True, False]])
        assert ranking(moved, top).tolist() == [1.0, 1.0]
        torch.testing.assert_close(ratio(moved, top), torch.tensor([0.35 / 0.15, 4.0 / 2.0]))

    def test_a_step_shorter_moves_less_and_linearity_holds_at_the_shortest(self, small, effects):
        row, curves = linearity(small, effects, SMALL)
        assert row.value > 0.99 > abs(row.controls["shuffled"])
        assert curves["linearity features"][0] >= curves["linearity features"][-1]

    def test_signs_are_those_of_tied_activations(self, small, effects):
        """Tied features' activations are the derivatives, so that the shortest step moves every top input as said."""
        row = signs(small, effects, SMALL)
        assert row.value == 1.0
        assert row.controls["shuffled"] < 1.0

    def test_wrong_activations_fail_specificity_and_sign(self, small, effects):
        order = torch.randperm(len(small.acts), generator=torch.Generator().manual_seed(1))
        broken = replace(small, acts=-small.acts[order])
        rows, _ = specificity(broken, effects, SMALL)
        assert [row.passed for row in rows] == [False, False]
        assert signs(small, effects, SMALL).value > signs(broken, effects, SMALL).value
        assert signs(replace(small, acts=-small.acts), effects, SMALL).value == 0.0


class TestPlantedTruth:
    """Circuits gated by inputs: features that are them pass; the same number of random directions do not."""

    SETTINGS = AuditSettings(n_features=8, n_rows=1000, n_top=5, steps=(0.003, 0.03), n_sets=6)

    def test_planted_circuits_pass(self, toy, fitted):
        audit = fitted.audit(inputs=toy.inputs[:1000], settings=self.SETTINGS)
        for name in ("specificity, ratio", "sign", "linearity", "additivity", "deletion"):
            assert audit[name].passed, audit[name]
        # Few inputs move at all here, so that any direction moves the right ones: the row is no evidence, and says so.
        assert audit["specificity, auroc"].value > 0.95
        assert not audit["specificity, auroc"].passed
        assert audit["stability"].passed is None

    def test_random_directions_called_features_fail(self, toy, fitted):
        directions = random_like(fitted.v_out, torch.Generator().manual_seed(5))
        mixed = fitted.v_out  # labels of the fit, directions at random: what its examples say is then untrue
        posing = fitted.with_directions(directions, mixed)
        audit = posing.audit(inputs=toy.inputs[:1000], settings=self.SETTINGS)
        assert not audit["specificity, auroc"].passed
        assert not audit["sign"].passed

    def test_refits_bring_stability_and_an_untrained_model(self, toy):
        """A reference of the user's own (no output at all) is kept and serves the refits too."""
        features = toy.decompose(steps=60, n_samples=1500)
        assert features.reference == "given"
        audit = features.audit(inputs=toy.inputs[:300], refit=toy.inputs[:2000], settings=self.SETTINGS)
        assert audit["stability"].value > audit["stability"].controls["random"]
        assert "untrained" in audit["specificity, auroc"].controls
        assert "untrained" not in audit["adversary"].controls


class TestWholeAudit:
    def test_it_leaves_the_model_as_it_was_and_repeats_itself(self, tiny_features, tiny_hooked, tiny_tokens):
        before, state = snapshot(tiny_hooked), torch.get_rng_state()
        first = tiny_features.audit(tiny_tokens, settings=SMALL)
        assert_same(before, snapshot(tiny_hooked))
        assert torch.equal(torch.get_rng_state(), state)
        second = tiny_features.audit(tiny_tokens, settings=SMALL)
        assert first.rows == second.rows
        assert first.curves == second.curves

    def test_search_beats_blind_draws(self, small):
        row = adversary(small, replace(SMALL, n_climbs=8))
        assert row.value > row.controls["no search"]

    def test_stability_is_that_of_match(self, tiny_features, tiny_tokens):
        audit = tiny_features.audit(tiny_tokens, second=tiny_features, settings=SMALL)
        assert audit["stability"].value == pytest.approx(1.0, abs=1e-5)
        assert audit["stability"].passed

    def test_a_classifier_is_audited_by_inputs(self, classifier, images):
        features = pf.decompose(
            classifier.eval(), "classifier.weight", inputs=images, n_features=4, l0=1, steps=10, progress=False
        )
        audit = features.audit(inputs=images, settings=SMALL)
        assert {row.verdict for row in audit.rows} <= {"pass", "FAIL", "not run"}
        assert audit["linearity"].value > 0.9

    def test_the_untrained_model_keeps_its_entries_and_shares_nothing(self, tiny_hooked):
        blank = untrained(tiny_hooked, seed=0)
        for old, new in zip(all_parameters(tiny_hooked), all_parameters(blank), strict=True):
            assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
            assert old.numel() < 4 or not torch.equal(old, new)

    def test_features_of_other_parameters_are_refused_as_a_second_fit(self, tiny_features, tiny_hooked, tiny_tokens):
        other = pf.decompose(tiny_hooked, "blocks.1.mlp.W_in", tiny_tokens, n_features=3, l0=1, steps=2, progress=False)
        with pytest.raises(FeatureMismatchError, match="no counterpart"):
            tiny_features.audit(tiny_tokens, second=other, settings=SMALL)

    def test_without_a_model(self, tiny_features, tmp_path):
        tiny_features.save_pretrained(tmp_path / "f")
        with pytest.raises(NotBoundError, match="model="):
            pf.load(tmp_path / "f").audit()

    @pytest.mark.parametrize(
        ("wrong", "help"),
        [
            ({"n_top": 0}, "n_top=0 must be at least 1"),
            ({"set_size": 1}, "must be at least 2"),
            ({"steps": ()}, "must be positive and rising"),
            ({"steps": (0.1, 0.01)}, "must be positive and rising"),
            ({"norm": 0.0}, "must be positive"),
        ],
    )
    def test_wrong_settings_are_refused(self, wrong, help):
        with pytest.raises(SettingError, match=help):
            AuditSettings(**wrong)


class TestTable:
    ROW = AuditRow("claim", 0.9, {"random": 0.5, "other": 0.95}, 0.8, True, "a number", ("random",))

    def test_a_row_passes_by_its_limit_and_the_controls_it_names(self):
        assert self.ROW.passed
        assert not replace(self.ROW, value=0.7).passed
        assert not replace(self.ROW, beaten=("random", "other")).passed
        assert replace(self.ROW, value=None).passed is None
        less = replace(self.ROW, is_more_better=False, limit=1.0, beaten=("other",))
        assert less.passed
        assert not replace(less, beaten=("random",)).passed
        assert not replace(less, limit=0.8).passed

    def test_it_prints_verdict_number_rule_controls_and_counts(self):
        audit = Audit((self.ROW, replace(self.ROW, name="second", value=0.1)), {}, (0.1,), 3.0)
        text = repr(audit)
        assert "pass    claim" in text
        assert "FAIL    second" in text
        assert "(at least 0.8, and above random by 5%)" in text
        assert "random 0.5, other 0.95" in text
        assert text.endswith("1 pass, 1 fail, 0 not run; 3 CPU seconds")
        with pytest.raises(KeyError, match="'claim', 'second'"):
            audit["third"]


class TestRefits:
    CALL = {"n_features": 3, "l0": 1, "steps": 4, "progress": False}

    @pytest.mark.parametrize("reference", ["mean", "given"])
    def test_the_same_settings_with_another_seed(self, tiny_hooked, tiny_tokens, reference):
        """Outputs of the user's own go through the softmax once, however often features are refitted."""
        outputs = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
        chosen = outputs if reference == "given" else reference
        features = pf.decompose(tiny_hooked, W_K, tiny_tokens, reference=chosen, seed=4, **self.CALL)
        again = refitted(features, tiny_tokens, None, seed=4)
        other = refitted(features, tiny_tokens, None, seed=5)
        torch.testing.assert_close(again.references, features.references)
        torch.testing.assert_close(again.v_out.gram(features.v_out).diagonal(), torch.ones(3).to(features.v_out.gram()))
        assert (other.v_out.gram(features.v_out).diagonal() < 0.999).any()
        assert other.config["fit"] == features.config["fit"]

    def test_what_is_not_kept_is_refused(self, tiny_hooked, tiny_tokens):
        def own(output, reference):
            return (output - reference).abs().sum(-1)

        for given in ({"divergence": own}, {"output": lambda out: out}, {"background": tiny_tokens[:20]}):
            features = pf.decompose(tiny_hooked, W_K, tiny_tokens, **given, **self.CALL)
            with pytest.raises(SettingError, match="pass it as second="):
                features.audit(tiny_tokens, refit=tiny_tokens, settings=SMALL)
