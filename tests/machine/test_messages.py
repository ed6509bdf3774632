"""Notices are warnings of their own class, which progress settings leave alone."""

import warnings

import pytest
import torch

import param_features as pf
from param_features.audit.refits import refitted
from param_features.errors import Notice
from tests.models import Classifier

QUICK = {"n_features": 3, "l0": 1, "steps": 1, "progress": False}
X = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
SAID = "reconstructs as well as the fit"


def matched(**changes):
    return pf.decompose(Classifier(), "classifier.weight", inputs=X, **QUICK | changes)


def test_a_control_that_matches_the_fit_is_told_at_the_users_line_without_progress(capsys):
    with pytest.warns(Notice, match=SAID) as notices:
        features = matched()
    assert [str(notice.message).split()[0] for notice in notices] == features.metrics.matched_by
    assert {notice.filename for notice in notices} == {__file__}
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings(f"error:.*{SAID}:param_features.errors.Notice")
def test_a_filter_makes_it_an_error():
    with pytest.raises(Notice, match=SAID):
        matched()


def test_an_audits_refits_repeat_nothing():
    features = matched()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refitted(features, None, X, seed=1)
