"""An audit: every row measured in turn."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from param_features.audit.deletions import deletion
from param_features.audit.masking import RANDOM, SINGULAR, masking_rows
from param_features.audit.methods import component_stability, is_of_components, left_out_rows, named_fits
from param_features.audit.settings import AuditSettings
from param_features.audit.stepping import linearity, signs, specificity, step_along
from param_features.audit.subjects import AuditSubject, audit_subject
from param_features.audit.table import Audit, AuditRow
from param_features.audit.together import additivity, adversary
from param_features.fitted import Fitted
from param_features.measure import match
from param_features.problem import ModelInputs

_NOT_UNTRAINED = ("deletion", "adversary", "stability")
"""Rows whose controls are their own."""


def run_audit(
    features: Fitted,
    inputs: ModelInputs,
    settings: AuditSettings,
    *,
    second: Fitted | None,
    untrained: Fitted | None,
    beside: Sequence[Fitted] = (),
) -> Audit:
    """Measure every row, those of an untrained model's features beside them.

    Args:
        features: Bound to a model.
        inputs: Where.
        settings: How much, and from when a row passes.
        second: Another fit of the same parameters, for stability.
        untrained: A fit of a model that has learned nothing, on which the same rows are measured.
        beside: Fits of the same weights by other methods.

    Raises:
        FeatureMismatchError: A fit is of other weights, or what it found is of another kind than must be.
    """
    began = time.process_time()
    fits = named_fits([features, *beside])
    used = inputs.rows(slice(0, settings.n_rows))
    if is_of_components(features):
        rows, curves = left_out_rows(settings), {}
    else:
        rows, curves = _rows(audit_subject(features, inputs, settings), settings)
    if untrained is not None and not is_of_components(untrained):
        rows = _with_controls(rows, "untrained", _values(untrained, inputs, settings, _NOT_UNTRAINED))
    for label, fit in list(fits.items())[1:]:
        if not is_of_components(fit):
            rows = _with_controls(rows, label, _values(fit, inputs, settings, ()))
    if is_of_components(features) or beside:
        by_masks = fits | ({} if untrained is None or not is_of_components(untrained) else {"untrained": untrained})
        rows += masking_rows(by_masks, used, settings)
    if is_of_components(features):
        rows.append(component_stability(features, second, inputs, settings))
    else:
        rows.append(_stability(features, second, settings))
    record: dict[str, Any] = asdict(settings) | {"n_rows_used": len(used)}
    methods = (*fits, SINGULAR, RANDOM) if is_of_components(features) or beside else ()
    return Audit(tuple(rows), curves, settings.steps, time.process_time() - began, record, methods)


def _values(fit: Fitted, inputs: ModelInputs, settings: AuditSettings, left_out: Sequence[str]) -> dict[str, float]:
    """The numbers of another fit's rows."""
    rows, _ = _rows(audit_subject(fit, inputs, settings), settings)
    return {row.name: row.value for row in rows if row.value is not None and row.name not in left_out}


def _with_controls(rows: list[AuditRow], control: str, values: Mapping[str, float]) -> list[AuditRow]:
    return [
        replace(row, controls={**row.controls, control: values[row.name]}) if row.name in values else row for row in rows
    ]


def _rows(subject: AuditSubject, settings: AuditSettings) -> tuple[list[AuditRow], dict[str, tuple[float, ...]]]:
    """Every row but stability, and the curves that they were read from."""
    effects = step_along(subject, settings)
    specific, curves = specificity(subject, effects, settings)
    linear, linear_curves = linearity(subject, effects, settings)
    joint = [additivity(subject, effects, settings), deletion(subject, settings), adversary(subject, settings)]
    sign = signs(subject, effects, settings)  # all draw from one generator, this one last
    return [*specific, sign, linear, *joint], curves | linear_curves


def _stability(features: Fitted, second: Fitted | None, settings: AuditSettings) -> AuditRow:
    meaning = "mean |cosine| with the features of a second fit, matched one to one"
    if second is None:
        return AuditRow("stability", None, {}, settings.least_agreement, True, f"{meaning}; give refit= or second=")
    matches = match(features, second, seed=settings.seed)
    agreement, controls = matches.mean_cosine, {"random": matches.control_cosine}
    meaning = f"{meaning}; {matches.share_above(0.8):.0%} of them above 0.8"
    return AuditRow("stability", agreement, controls, settings.least_agreement, True, meaning, ("random",))
