"""Refusing what does not fit in memory."""

from dataclasses import replace

from param_features.errors import MemoryEstimateError
from param_features.fit import FitSettings
from param_features.machine import notify
from param_features.run.estimation.sizes import Sizes

_LEAST_BATCH = 128
_ADVICE = {
    "n_samples": "n_samples={}",
    "n_features": "n_features={}",
    "batch_size": "fit=pf.{settings}(batch_size={})",
    "store": "store=pf.harvest(…, directory=…), which keeps them on disk",
}


def advice(fitting: dict[str, int], settings: str = "FitSettings") -> str:
    """Say which settings would fit, as they are written in a call; `settings` names the class of the fit's."""
    return " or ".join(_ADVICE[name].format(f"{n:_}", settings=settings) for name, n in fitting.items())


def fit_in_room(sizes: Sizes, budget: int, *, is_batch_open: bool = False) -> FitSettings:
    """The fit's settings with which a decomposition fits in memory, its batch halved where that is open and helps.

    A smaller batch is told in a `Notice`.

    Raises:
        MemoryEstimateError: Names the stage, the estimate, what is free, and the settings with which it would fit.
    """
    tried = sizes
    while is_batch_open and tried.peak_bytes > budget and tried.fit.batch_size > _LEAST_BATCH:
        tried = replace(tried, fit=replace(tried.fit, batch_size=tried.fit.batch_size // 2))
    if tried.peak_bytes <= budget:
        if tried.fit != sizes.fit:
            notify(f"batch_size={tried.fit.batch_size} for the fit: {sizes.fit.batch_size} samples would not fit in memory.")
        return tried.fit
    fitting = sizes.within(budget)
    advised = (
        f"Set {advice(fitting)}" if fitting else "Take fewer features, a lower rank and fewer samples, or fewer parameters"
    )
    raise MemoryEstimateError(
        f"{sizes.n_features:,} features of rank {sizes.rank} from {sizes.n_samples:,} samples of "
        f"{sizes.sample_bytes / 2**10:,.1f} KiB need about {_gib(sizes.peak_bytes)} GiB of memory, in the stage "
        f"{sizes.largest!r}; {_gib(budget)} GiB are free. {advised}. pf.estimate says what other settings need."
    )


def _gib(n_bytes: int) -> str:
    return f"{max(0, n_bytes) / 2**30:.3g}"
