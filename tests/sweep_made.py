"""Rows of sweeps that were never run, for the rule and the picture."""

from param_features.run.sweeping import Sweep, SweepRow, SweepSettings
from param_features.run.sweeping.settings import Setting


def row(n_features=10, rank=1, l0=2.0, seed=0, *, error=0.3, pca=0.5, random=0.9, **changes) -> SweepRow:
    values = {
        "setting": Setting(n_features, rank, l0, seed),
        "size": n_features * rank * 20,
        "n_params": 1000,
        "error": error,
        "training_error": 0.95 * error,
        "controls": {"control_pca": pca, "control_random": random, "control_svd_w": 0.95},
        "dead": 0.0,
        "top_kept": 0.1,
        "top_norm": 0.1,
        "fall": 0.001,
        "steps": 100,
        "limits": SweepSettings(),
    }
    return SweepRow(**values | changes)


def sweep_of(*rows: SweepRow) -> Sweep:
    """Without features: what is read off the rows alone."""
    return Sweep(rows, (), len(rows))
