"""What the tests of runs share."""

from functools import partial

import pytest

from param_features.measure import component_metrics


@pytest.fixture
def few_metrics(monkeypatch):
    """Metrics of components on two rows, with one step of the adversary: these tests do not look at their values."""
    quick = partial(component_metrics, steps=(1,), n_rows=2, n_draws=1)
    monkeypatch.setattr("param_features.run.from_weights.component_metrics", quick)
