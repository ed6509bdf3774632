"""Methods side by side on the same weights: which fits are compared, and claims that components do not make."""

from collections.abc import Sequence

import torch

from param_features.audit.settings import AuditSettings
from param_features.audit.table import AuditRow
from param_features.errors import FeatureMismatchError
from param_features.fit.components import ComponentDictionary, Parts
from param_features.fitted import Fitted
from param_features.measure import agreement_of, alive_parts
from param_features.problem import ModelInputs

_OFF = "a component is switched off, never stepped along: see deletion"
_LEFT_OUT = {
    "specificity, auroc": (f"{_OFF}, one by one", "least_auroc"),
    "specificity, ratio": (f"{_OFF}, one by one", "least_ratio"),
    "sign": ("an importance has no sign", "least_sign"),
    "linearity": ("an importance is no slope of D", "least_correlation"),
    "additivity": (f"{_OFF}, together", "most_gap"),
}
"""Claims about features that components do not make: why, and the setting with the limit."""


def is_of_components(fit: Fitted) -> bool:
    """Whether a fit's parts sum to the weights and have importances."""
    return isinstance(fit.dictionary, ComponentDictionary)


def named_fits(fits: Sequence[Fitted]) -> dict[str, Fitted]:
    """Each fit by what it found, numbered where several found the same.

    Raises:
        FeatureMismatchError: They are of different parameters, or of other values of these.
    """
    named: dict[str, Fitted] = {}
    first = fits[0]
    for fit in fits:
        if {record.fingerprint for record in fit.params.values()} != {r.fingerprint for r in first.params.values()}:
            names = [", ".join(map(repr, each.params)) for each in (first, fit)]
            raise FeatureMismatchError(
                f"An audit puts fits of the same weights side by side. One is of {names[0]}, another of {names[1]}, or the "
                "weights differ. Fit the same parameters of one model."
            )
        kind = "components" if is_of_components(fit) else "features"
        n = sum(name.startswith(kind) for name in named)
        named[kind if n == 0 else f"{kind} {n + 1}"] = fit
    return named


def left_out_rows(settings: AuditSettings) -> list[AuditRow]:
    """Claims about features that components do not make, each with the reason."""
    return [
        AuditRow(name, None, {}, getattr(settings, limit), limit.startswith("least"), f"left out: {why}")
        for name, (why, limit) in _LEFT_OUT.items()
    ]


def component_stability(fit: Fitted, second: Fitted | None, inputs: ModelInputs, settings: AuditSettings) -> AuditRow:
    """Whether a second fit finds the same rank-1 matrices, of those that are needed anywhere in the inputs.

    Raises:
        FeatureMismatchError: The second fit is of features, or of other parameters.
    """
    meaning = "mean |cosine| of whole rank-1 matrices with those of a second fit, matched one to one within each matrix"
    if second is None:
        return AuditRow("stability", None, {}, settings.least_agreement, True, f"{meaning}; give refit= or second=")
    if not isinstance(second.dictionary, ComponentDictionary) or set(second.params) != set(fit.params):
        raise FeatureMismatchError(
            f"second= is no fit of components of {', '.join(map(repr, fit.params))}. Give one of the same parameters, by "
            'method="components" with another seed.'
        )
    ours, theirs = (_alive(each, inputs) for each in (fit, second))
    found = agreement_of(ours, theirs, torch.Generator().manual_seed(settings.seed))
    meaning = (
        f"{meaning}; {found.n} components. The best of any, not one to one: {found.best:.3f}, random {found.random_best:.3f}"
    )
    return AuditRow(
        "stability", found.matched, {"random": found.random_matched}, settings.least_agreement, True, meaning, ("random",)
    )


def _alive(fit: Fitted, inputs: ModelInputs) -> dict[str, Parts]:
    assert isinstance(fit.dictionary, ComponentDictionary)
    return alive_parts(fit.dictionary, fit.bound_engine("audit"), inputs)
