"""Metrics of components: each against explicitly masked weights, controls at exactly the same l0, and errors near 0."""

import math

import pytest
import torch
from torch import nn

from param_features.fit.components import Masks, Parts
from param_features.fitted import ALWAYS_OF_COMPONENTS, Metrics
from param_features.measure import component_controls, component_metrics, each_control
from param_features.measure.component_controls import CONTROLS
from param_features.measure.masked_rows import (
    Candidate,
    MaskedRows,
    all_zero,
    importance_as_mask,
    rounded,
    whole_without_remainder,
)
from tests.adapters.zoo import assert_same, snapshot
from tests.measure.component_cases import case_of
from tests.models import Classifier

LAST = "blocks.1.mlp.W_out"
SEVERAL = ["blocks.0.attn.W_K", "blocks.0.attn.W_O", "blocks.1.mlp.W_in", LAST]


class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.table(ids)))


@pytest.fixture(scope="module")
def last(tiny_hooked, tiny_tokens):
    """The matrix next to the output: what it does at a position shows at this position alone."""
    return case_of(tiny_hooked, LAST, tiny_tokens[:6])


@pytest.fixture(scope="module")
def cases(tiny_hooked, tiny_tokens):
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(6, 10, dtype=torch.long)
    mask[:3, 7:] = 0
    linear = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5))
    images, vectors = torch.randn(8, 1, 6, 6, generator=generator), torch.randn(50, 5, generator=generator)
    padded = {"input_ids": tiny_tokens[:6], "attention_mask": mask}
    return {
        "tokens": case_of(tiny_hooked, SEVERAL, tiny_tokens[:6]),
        "padding": case_of(tiny_hooked, SEVERAL, padded),
        "regression": case_of(linear, ["0.weight", "2.weight"], inputs=vectors, divergence="se"),
        "table": case_of(Ids(), ["table.weight", "head.weight"], tiny_tokens, divergence="se"),
        "pixels": case_of(Classifier(), ["conv.weight", "classifier.weight"], inputs=images),
    }


def metrics_of(case, n_rows=None):
    generator = torch.Generator().manual_seed(0)
    call = {"generator": generator, "n_rows": n_rows}
    return component_metrics(case.dictionary, case.engine, case.divergence, case.data, steps=(3, 6), **call)


def on_rows(case, use):
    model = case.masked_model
    with model.held(), torch.no_grad():
        rows = MaskedRows(model, case.divergence, case.data)
        return use(rows, rows.candidate(case.dictionary))


def explicit(case, weight_of):
    """D and the next token's loss with another matrix written into the model for every row and position."""
    tokens, (view,) = case.data.args[0], case.engine.subset.views
    stored, parts = view.stored, case.dictionary.parts[LAST]
    g = on_rows(case, lambda _, candidate: candidate.importances[LAST])
    clean, before = case.model(tokens).log_softmax(-1), stored.detach().clone()
    distances, losses = [], []
    with torch.no_grad():
        for row in range(len(tokens)):
            for pos in range(tokens.shape[1]):
                matrix = weight_of(parts, g[row, pos])
                stored.copy_(view.from_matrix(matrix))
                found = case.model(tokens[row : row + 1])[0, pos].log_softmax(-1)
                stored.copy_(before)
                distances.append((clean[row, pos].exp() * (clean[row, pos] - found)).sum())
                if pos + 1 < tokens.shape[1]:
                    losses.append(-found[tokens[row, pos + 1]])
    return float(torch.stack(distances).mean()), float(torch.stack(losses).mean())


class TestMonitors:
    @pytest.mark.parametrize(
        ("name", "weight_of"),
        [
            ("unmasked", lambda parts, g: parts.sum()),
            ("importance_as_mask", lambda parts, g: (parts.U * g[:, None]).T @ parts.V),
            ("rounded", lambda parts, g: parts.U[g > 0].T @ parts.V[g > 0]),
            ("all_zero", lambda parts, g: torch.zeros(parts.U.shape[1], parts.V.shape[1], dtype=parts.U.dtype)),
        ],
    )
    def test_each_is_the_model_with_such_weights_at_each_position(self, last, name, weight_of):
        found = metrics_of(last)
        distance, loss = explicit(last, weight_of)
        assert found[name] == pytest.approx(distance, rel=1e-9)
        assert found[f"loss_{name}"] == pytest.approx(loss, rel=1e-9)

    def test_the_unrecovered_loss_is_that_of_rounded_masks(self, last):
        found = metrics_of(last)
        share = (found["loss_rounded"] - found["loss_clean"]) / (found["loss_all_zero"] - found["loss_clean"])
        assert found["loss_unrecovered"] == pytest.approx(share)

    def test_stochastic_masks_lie_between_importance_and_one(self, last):
        def seen(rows, candidate):
            masks = []
            rows.model.masked = lambda inputs, parts, masks_here, rests: masks.append(masks_here) or rows.clean[0]
            rows.stochastic(candidate, 3, torch.Generator().manual_seed(0))
            return masks, candidate.importances[LAST]

        masks, g = on_rows(last, seen)
        assert len(masks) == 3
        for mask in masks:
            assert bool((mask.components[LAST] >= g).all()) and bool((mask.components[LAST] <= 1).all())
            assert 0.3 < float(mask.remainders[LAST].mean()) < 0.7

    def test_needed_everywhere_with_nothing_left_over_costs_nothing(self, last):
        (site,) = last.masked_model.sites
        whole = {LAST: Parts(torch.eye(16, dtype=torch.float64), site.weight())}

        def measured(rows, _):
            candidate = Candidate(whole, {LAST: torch.ones(6, 10, 16, dtype=torch.float64)})
            worst = rows.adversarial(candidate, (2,), torch.Generator().manual_seed(0))
            drawn = rows.stochastic(candidate, 2, torch.Generator().manual_seed(0))
            return [worst[2].mean, drawn.mean, rows.masked(candidate, rounded).mean]

        assert max(map(abs, on_rows(last, measured))) < 1e-12

    @pytest.mark.parametrize("kind", ["tokens", "padding", "regression", "table", "pixels"])
    def test_every_kind_of_model_has_every_metric(self, cases, kind):
        case = cases[kind]
        before = snapshot(case.model)
        found = metrics_of(case)
        assert_same(before, snapshot(case.model))
        assert set(ALWAYS_OF_COMPONENTS) <= set(found)
        assert all(map(math.isfinite, found.values()))
        assert ("loss_rounded" in found) == (kind in ("tokens", "padding"))
        assert found["adversarial_6"] >= found["adversarial_3"] >= found["stochastic"]
        assert found["l0"] == pytest.approx(sum(found[f"l0/{name}"] for name in case.dictionary.parts))
        assert 0 < found["l0_above_0.1"] < found["l0"] < case.dictionary.n_features

    def test_padding_is_never_counted(self, tiny_hooked, tiny_tokens):
        short = tiny_tokens[:4, :6]
        padded = torch.cat([short, tiny_tokens[:4, 6:9]], 1)
        mask = torch.ones_like(padded)
        mask[:, 6:] = 0
        alone = metrics_of(case_of(tiny_hooked, SEVERAL, short))
        beside = metrics_of(case_of(tiny_hooked, SEVERAL, {"input_ids": padded, "attention_mask": mask}))
        drawn = ("stochastic", "rotated", "shuffled", "adversarial", "spread")
        same = [name for name in alone if not any(word in name for word in drawn)]
        assert len(same) > 15
        for name in same:
            assert beside[name] == pytest.approx(alone[name], rel=1e-6), name

    def test_other_positions_are_no_samples(self, tiny_hooked, tiny_tokens):
        end = case_of(tiny_hooked, LAST, tiny_tokens[:6], positions="last")

        def rounded_by_position(rows, candidate):
            return rows.masked(candidate, rounded).distances

        everywhere = on_rows(case_of(tiny_hooked, LAST, tiny_tokens[:6]), rounded_by_position).reshape(6, 10)
        torch.testing.assert_close(on_rows(end, rounded_by_position), everywhere[:, -1])

    def test_rows_are_spread_and_all_of_them_tell_what_is_alive(self, tiny_hooked):
        tokens = torch.zeros(32, 10, dtype=torch.long)
        tokens[1, 3] = 7
        case = case_of(tiny_hooked, "embed.W_E", tokens, n=8)
        for weight in case.dictionary.net.parameters():
            weight.zero_()
        first, _, second, bias = case.dictionary.net.parameters()
        bias.fill_(-1)
        first[7, 0], second[0, 2], bias[0] = 10.0, 1.0, 1.0
        found = metrics_of(case, n_rows=2)
        assert found["alive"] == found["alive/embed.W_E"] == 2
        assert found["l0"] == 1
        assert found["n_held_out"] == 20


class TestAdversary:
    def test_it_finds_the_worst_corner(self):
        """D of a linear map is convex in the sources, which are the same for all rows: some corner is the worst."""
        model = nn.Linear(3, 4, bias=False).double()
        inputs = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        case = case_of(model, "weight", inputs=inputs, n=1, divergence="se")

        def both(rows, candidate):
            candidate = Candidate(candidate.parts, {"weight": torch.zeros(20, 1, 1, dtype=torch.float64)})
            corners = [
                rows.masked(
                    candidate,
                    lambda g, of=of: Masks(
                        {"weight": torch.full_like(g["weight"], of[0])},
                        {"weight": torch.full_like(g["weight"][..., 0], of[1])},
                    ),
                ).mean
                for of in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
            ]
            return corners, rows.adversarial(candidate, (1, 20), torch.Generator().manual_seed(0))

        corners, found = on_rows(case, both)
        assert found[20].mean == pytest.approx(max(corners), rel=1e-9)
        assert found[1].mean < found[20].mean


class TestControls:
    @pytest.mark.parametrize("kind", ["tokens", "padding", "regression", "table", "pixels"])
    def test_each_keeps_as_many_at_each_matrix_and_nothing_at_padding(self, cases, kind):
        def check(rows, candidate):
            names = []
            for name, control in each_control(rows, candidate, torch.Generator().manual_seed(0)):
                names.append(name)
                for site, g in candidate.importances.items():
                    kept = control.importances[site] > 0
                    at_most = int(rows.real(site).sum()) * control.parts[site].n
                    assert int(kept.sum()) == min(at_most, int((g > 0).sum())), (name, site)
                    assert not bool(kept[~rows.real(site)].any())
            return tuple(names)

        assert on_rows(cases[kind], check) == CONTROLS

    def test_their_parts_sum_to_what_they_should(self, cases):
        def check(rows, candidate):
            found = dict(each_control(rows, candidate, torch.Generator().manual_seed(0)))
            for site, weight in rows.weights.items():
                for name in ("control_svd_w", "control_neurons"):
                    torch.testing.assert_close(found[name].parts[site].sum(), weight)
                ours = candidate.parts[site]
                torch.testing.assert_close(found["control_rotated"].parts[site].sum(), ours.sum())
                rotated = found["control_rotated"].parts[site]
                first, same = (torch.outer(parts.U[0], parts.V[0]) for parts in (rotated, ours))
                assert float((first - same).norm() / same.norm()) > 0.1
                real = rows.real(site)
                mixed, own = found["control_shuffled"].importances[site][real], candidate.importances[site][real]
                assert not torch.equal(mixed, own)
                assert sorted(mixed.tolist()) == sorted(own.tolist())

        on_rows(cases["padding"], check)

    def test_the_largest_contributions_are_kept(self, last):
        def check(rows, candidate):
            control = dict(each_control(rows, candidate, torch.Generator().manual_seed(0)))["control_svd_w"]
            u, s, vh = torch.linalg.svd(rows.weights[LAST], full_matrices=False)
            size = (s * (rows.applied[LAST] @ vh.T)).abs()
            kept = control.importances[LAST] > 0
            assert float(size[kept].min()) >= float(size[~kept].max())

        on_rows(last, check)

    @pytest.mark.parametrize("side", ["columns", "rows"])
    def test_single_neurons_are_found_on_the_side_where_they_are(self, side):
        """An input that is zero but at one neuron is rebuilt by one column, such an output by one row."""
        model = nn.Sequential(nn.Linear(6, 6, bias=False)).double()
        units = torch.eye(6, dtype=torch.float64).repeat(3, 1)
        inputs = units if side == "columns" else torch.linalg.solve(model[0].weight.detach(), units.T).T.contiguous()
        case = case_of(model, "0.weight", inputs=inputs, divergence="se")

        def measured(rows, candidate):
            one = Candidate(candidate.parts, {"0.weight": (torch.arange(6) == 0).double().expand(18, 1, 6)})
            control = dict(each_control(rows, one, torch.Generator().manual_seed(0)))["control_neurons"]
            return rows.masked(control, rounded).mean

        assert on_rows(case, measured) < 1e-20

    @pytest.mark.parametrize(("d_in", "d_out"), [(3, 5), (5, 3)])
    def test_neurons_of_a_long_side_are_left_out(self, d_in, d_out, monkeypatch):
        monkeypatch.setattr(component_controls, "_LARGEST_SIDE", 4)
        inputs = torch.randn(9, d_in, generator=torch.Generator().manual_seed(0))
        case = case_of(nn.Linear(d_in, d_out), "weight", inputs=inputs, divergence="se")
        kept = on_rows(case, lambda rows, candidate: dict(each_control(rows, candidate, torch.Generator().manual_seed(0))))
        assert kept["control_neurons"].parts["weight"].n == 3


class TestVerdict:
    def test_errors_near_zero_are_alike(self):
        values = {"rounded": 1e-6, "control_svd_w": 3e-6, "spread_svd_w": 0.01, "all_zero": 5.0}
        assert Metrics(values).matched_by == ["control_svd_w"]
        assert "MATCHES" in Metrics(values).remark("control_svd_w")
        assert Metrics(values | {"rounded": 3e-6, "control_svd_w": 1e-6}).standings["control_svd_w"].side == "alike"
        assert Metrics(values | {"all_zero": 1e-5}).matched_by == []
        assert Metrics(values | {"rounded": 0.5, "control_svd_w": 0.9}).matched_by == []

    def test_stochastic_controls_stand_beside_stochastic_masks(self):
        values = {"rounded": 0.1, "stochastic": 0.9, "control_svd_w": 0.2, "stochastic_control_svd_w": 0.3, "all_zero": 5.0}
        metrics = Metrics(values)
        assert metrics.score == "rounded" and metrics.matched_by == []
        assert "IS BETTER THAN" in metrics.remark("stochastic_control_svd_w")

    def test_the_table_leaves_spreads_and_single_matrices_to_their_lines(self, cases):
        metrics = Metrics(metrics_of(cases["tokens"]))
        text = repr(metrics)
        assert "spread" not in text and "/" not in "".join(metrics.listed) and "loss_control" not in text
        assert "adversarial_6" in text and "alive" in text
        assert all(metrics.remark(name) for name in ALWAYS_OF_COMPONENTS if not name.startswith("n_"))


def test_monitors_switch_the_remainder_off():
    g = {"a": torch.rand(2, 3, 4)}
    for masks_of in (whole_without_remainder, importance_as_mask, rounded, all_zero):
        assert not bool(masks_of(g).remainders["a"].any())
