"""The rule, on rows written by hand."""

import pytest

from param_features.run.sweeping import SweepSettings
from param_features.run.sweeping.recommendation import recommend
from tests.sweep_made import row, sweep_of


def test_the_smallest_setting_near_the_largest_gain_is_taken():
    rows = [row(10, error=0.40), row(20, error=0.25), row(40, error=0.20), row(80, error=0.19)]
    found = recommend(rows)
    assert found.place == 2
    assert "n_features=40, rank=1, l0=2: error 0.200 on held-out samples, 60% below control_pca" in found.reason
    assert "smallest setting within 10% of the largest gain, 62% at n_features=80" in found.reason
    wider = SweepSettings(within=0.2)
    assert recommend([row(n, error=e, limits=wider) for n, e in ((20, 0.25), (40, 0.20), (80, 0.19))]).place == 0


def test_of_settings_of_one_size_the_least_l0_is_taken():
    assert recommend([row(l0=4.0, error=0.1), row(l0=2.0, error=0.11)]).place == 1
    assert recommend([row(10, 2, error=0.1), row(20, 1, error=0.1), row(10, 1, error=0.1)]).place == 2


def test_the_gain_is_over_the_strongest_control():
    (found,) = sweep_of(row(error=0.3, pca=0.6, random=0.4)).rows
    assert found.control == "control_random"
    assert found.gain == pytest.approx(0.25)


def test_what_a_control_matches_is_never_taken_however_low_its_error():
    rows = [row(10, error=0.4), row(20, error=0.01, pca=0.0104)]
    assert recommend(rows).place == 0
    assert rows[1].flags == ("matched by a control",)
    none = recommend(rows[1:])
    assert none.place is None
    assert "The nearest, n_features=20, rank=1, l0=2, seed=0, is 3.8% below control_pca (0.010 beside 0.010)" in none.reason
    assert "10.0% above control_pca" in recommend([row(error=0.55)]).reason


@pytest.mark.parametrize("change", [{"top_kept": 0.5}, {"top_norm": 0.5}, {"dead": 0.5}], ids=str)
def test_what_collapsed_is_never_taken(change):
    rows = [row(10, error=0.4), row(20, error=0.1, **change)]
    assert recommend(rows).place == 0
    assert rows[1].flags == ("collapsed",)
    none = recommend(rows[1:])
    assert none.place is None
    assert "collapsed (one feature does most of the work" in none.reason


def test_of_few_features_one_may_have_a_large_share():
    assert not row(1, top_kept=1.0, top_norm=1.0).is_collapsed
    assert not row(5, top_norm=0.79).is_collapsed
    assert row(5, top_norm=0.8).is_collapsed
    assert row(2, top_norm=1.0).is_collapsed
    assert not row(100, top_norm=0.49).is_collapsed


def test_more_features_than_parameters_are_never_taken():
    rows = [row(10, error=0.4), row(2000, error=0.1)]
    assert recommend(rows).place == 0
    assert "more features than parameters" in rows[1].flags
    assert "ask for fewer" in recommend(rows[1:]).reason


def test_a_setting_must_beat_its_controls_with_every_seed():
    rows = [row(10, seed=0, error=0.3), row(10, seed=1, error=0.31), row(20, seed=0, error=0.1), row(20, seed=1, error=0.5)]
    assert recommend(rows).place == 0
    assert recommend(rows[:1] + [row(10, seed=1, error=0.28)]).place == 1
    assert "did not beat them with every seed" in recommend(rows[2:]).reason


def test_faults_of_what_is_recommended_are_said():
    assert "under-trained" in recommend([row(fall=0.1)]).reason
    assert "more steps=" in recommend([row(fall=0.1)]).reason
    assert "harvest more samples" in recommend([row(training_error=0.2)]).reason
    plain = recommend([row()]).reason
    assert "under-trained" not in plain
    assert "harvest" not in plain


def test_the_end_of_the_grid_is_said():
    rows = [row(10, error=0.4), row(20, error=0.2)]
    assert "largest n_features tried: the gain may grow further beyond" in recommend(rows).reason
    assert "tried" not in recommend([row(10, error=0.2), row(20, error=0.2)]).reason
    assert "largest l0 tried" in recommend([row(l0=1.0, error=0.4), row(l0=3.0, error=0.2)]).reason


def test_a_small_fall_of_a_small_error_is_no_fault():
    assert row(error=0.3, fall=0.02).is_undertrained
    assert not row(error=0.3, fall=0.011).is_undertrained
    assert not row(error=0.01, fall=0.1).is_undertrained
    assert not row(fall=None).is_undertrained


def test_overfit_is_a_gap_to_the_training_error():
    assert row(error=0.3, training_error=0.23).is_overfit
    assert not row(error=0.3, training_error=0.25).is_overfit


def test_the_table_says_none_with_the_reason_and_marks_none():
    text = repr(sweep_of(row(error=0.6)))
    assert "recommended: none. No setting lies 5% and two standard errors" in text
    assert ">" not in text
    assert "-20%" in text
    assert sweep_of(row(error=0.6)).recommended is None
