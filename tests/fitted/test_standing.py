"""One rule says what counts as better, and every verdict asks it."""

import dataclasses

import pytest
import torch

import param_features as pf
from param_features.audit import AuditRow
from param_features.fitted import higher, lower, spread_of_ratio
from param_features.measure import L0Curve
from param_features.report.verdict import verdict_lines
from param_features.sharing.verdicts import verdict
from tests.circuits_made import small_circuit
from tests.sweep_made import row as made_row

PAIRS = [
    (0.730, 0.735, 0.0, "alike"),
    (0.698, 0.735, 0.0, "better"),
    (0.698, 0.735, 0.03, "alike"),
    (0.5, 1.0, 0.1, "better"),
    (0.735, 0.730, 0.0, "alike"),
    (0.8, 0.735, 0.0, "worse"),
    (float("nan"), 0.735, 0.0, "alike"),
    (0.0, 0.0, 0.0, "alike"),
]
"""The fit's error, a control's, the spread of the gain, and the side that every verdict must take."""


def sides(error, control, spread):
    """What each verdict says of an error beside a control's."""
    controls = {"control_pca": control, "control_random": control, "control_svd_w": control}
    spreads = {name.replace("control", "spread"): spread for name in controls}
    metrics = pf.Metrics({"reconstruction_error": error} | controls | spreads)
    curve = L0Curve((1.0,), {name: (value,) for name, value in metrics.items()}, 9, 9, dict.fromkeys(controls, (spread,)))
    flat = L0Curve((1.0,), {"reconstruction_error": (0.0,)}, 9, 9)
    row = dataclasses.replace(made_row(), error=error, controls=controls, spreads=dict.fromkeys(controls, spread))
    table, card, page = repr(metrics), verdict(metrics), " ".join(verdict_lines(metrics, flat)["sentences"])
    return {
        "metrics": "alike" if "MATCHES" in table else "worse" if "IS BETTER THAN THE FIT" in table else "better",
        "matched_by": "better" if not metrics.matched_by else None,
        "card": "worse" if card.startswith("**Better") else "alike" if card.startswith("**As good") else "better",
        "page": "worse" if page.startswith("Better") else "alike" if page.startswith("As good") else "better",
        "curve": curve.standings("control_pca")[1.0].side,
        "sweep": "better" if row.beats_controls else None,
        "flags": "better" if "matched by a control" not in row.flags else None,
    }


@pytest.mark.parametrize(("error", "control", "spread", "side"), PAIRS)
def test_every_verdict_takes_the_same_side(error, control, spread, side):
    for name, found in sides(error, control, spread).items():
        if found is None:  # says only that the control is not beaten
            assert side != "better", name
        elif not (name == "metrics" and control == 0):  # nothing is compared with an error of 0
            assert found == side, name


def test_the_page_names_where_along_the_curve_a_control_does_as_well():
    metrics = pf.Metrics({"reconstruction_error": 0.5, "control_pca": 0.9})
    curve = L0Curve((2.0, 4.0, 8.0), {"reconstruction_error": (0.5, 0.3, 0.2), "control_pca": (0.9, 0.3, 0.1)}, 9, 9)
    said = verdict_lines(metrics, curve)["sentences"]
    assert "Along the curve principal directions are better than the fit at l0 8." in said
    assert "Along the curve principal directions are as good as the fit at l0 4." in said


@pytest.mark.parametrize("is_more_better", [True, False])
def test_a_row_of_an_audit_beats_a_control_by_the_rule_too(is_more_better):
    close = AuditRow("r", 0.62, {"random": 0.61}, 0.5 if is_more_better else 0.7, is_more_better, "", ("random",))
    far = dataclasses.replace(close, controls={"random": 0.5 if is_more_better else 0.7})
    assert (close.passed, far.passed) == (False, True)
    assert close.rule.endswith("random by 5%")


GOOD = {
    "gap": 2.0, "gap_spread": 0.2, "gap_random": 0.2, "faithfulness": 0.9, "faithfulness_low": 0.8, "faithfulness_high": 1.0,
    "faithfulness_directions": 1.0, "faithfulness_random_best": 0.2, "faithfulness_matched_best": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "They explain it: they bring back 90%"),
        (
            {"gap": -0.119, "gap_random": 0.327},
            "Not shown to explain it: the metric loses nothing without all features, gap -0.119 ± 0.2 (random",
        ),
        ({"gap_random": 1.95}, "Not shown to explain it: the metric does not lose enough"),
        ({"gap_spread": 1.5}, "Not shown to explain it: the metric does not lose enough"),
        ({"gap_random": -1.9, "faithfulness_directions": 0.1}, "Not shown to explain it: the metric does not lose enough"),
        ({"gap_random": 1.5, "faithfulness_directions": 1.3}, "it brings back 1.8, and a circuit of random directions 1.95"),
        ({"faithfulness_random_best": 0.88}, "that of the best random circuit 0.88"),
        ({"faithfulness_high": 2.0, "faithfulness_low": -0.2, "gap_random": 0.0}, "that of the best random circuit 0.3"),
        ({"faithfulness": float("nan")}, "Not shown to explain it"),
    ],
)
def test_a_circuit_explains_what_its_scores_show(change, said):
    circuit = dataclasses.replace(small_circuit(), scores=GOOD | change)
    assert said in repr(circuit)
    assert said in str(circuit.view())


def test_without_scores_a_circuit_claims_nothing():
    assert "Whether they explain it was not measured." in repr(dataclasses.replace(small_circuit(), scores={}))


def test_a_loss_is_to_rise_without_the_features():
    falling = dataclasses.replace(small_circuit(), metric="next-token loss", scores=GOOD | {"gap": -2.0})
    assert "They explain it" in repr(falling)
    assert "Not shown" in repr(dataclasses.replace(falling, scores=GOOD))


def test_the_spread_is_that_of_the_ratio_over_many_draws():
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(500, 200, generator=generator) + 0.1  # what makes a sample hard for both cancels
    errors, controls = hard * (0.5 + 0.1 * torch.rand(500, 200, generator=generator)), hard
    true = float((1 - errors.sum(1) / controls.sum(1)).std())
    assert spread_of_ratio(errors[0], controls[0]) == pytest.approx(true, rel=0.15)
    assert spread_of_ratio(errors[0, :1], controls[0, :1]) == 0


def test_the_two_ways_of_being_better_mirror_each_other():
    assert lower(0.5, 1.0).gain == higher(1.0, 0.5).gain == 0.5
    assert lower(1.0, 0.5).side == higher(0.5, 1.0).side == "worse"
    assert higher(-1.0, -2.0).side == higher(0.1, -2.0).side == "better"


def test_metrics_hold_the_spread_of_every_control(tiny_features):
    for name in tiny_features.metrics.standings:
        assert 0 < tiny_features.metrics[name.replace("control", "spread")] < 0.2
    assert "% ± " in repr(tiny_features.metrics)
