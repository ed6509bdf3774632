"""An audit: every row in turn."""

import time
from dataclasses import asdict, replace
from typing import Any

from param_features.audit.deletions import deletion
from param_features.audit.settings import AuditSettings
from param_features.audit.stepping import linearity, signs, specificity, take_steps
from param_features.audit.subjects import Subject, subject
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
) -> Audit:
    """Measure every row, those of an untrained model's features beside them.

    Args:
        features: Bound to a model.
        inputs: Where.
        settings: How much, and from when a row passes.
        second: Another fit of the same parameters, for stability.
        untrained: A fit of a model that has learned nothing, on which the same rows are measured.
    """
    began = time.process_time()
    rows, curves = _rows(subject(features, inputs, settings), settings)
    if untrained is not None:
        blank, _ = _rows(subject(untrained, inputs, settings), settings)
        values = {row.name: row.value for row in blank if row.value is not None and row.name not in _NOT_UNTRAINED}
        rows = [
            replace(row, controls={**row.controls, "untrained": values[row.name]}) if row.name in values else row
            for row in rows
        ]
    rows.append(_stability(features, second, settings))
    record: dict[str, Any] = asdict(settings) | {"n_rows_used": min(settings.n_rows, len(inputs))}
    return Audit(tuple(rows), curves, settings.steps, time.process_time() - began, record)


def _rows(audited: Subject, settings: AuditSettings) -> tuple[list[AuditRow], dict[str, tuple[float, ...]]]:
    steps = take_steps(audited, settings)
    specific, curves = specificity(audited, steps, settings)
    linear, more = linearity(audited, steps, settings)
    rest = [additivity(audited, steps, settings), deletion(audited, settings), adversary(audited, settings)]
    return [*specific, signs(audited, steps, settings), linear, *rest], curves | more


def _stability(features: Fitted, second: Fitted | None, settings: AuditSettings) -> AuditRow:
    meaning = "mean |cosine| with the features of a second fit, matched one to one"
    if second is None:
        return AuditRow("stability", None, {}, settings.least_agreement, True, f"{meaning}; give refit= or second=")
    found = match(features, second, seed=settings.seed)
    agreement, controls = found.mean_cosine, {"random": found.control_cosine}
    meaning = f"{meaning}; {found.share_above(0.8):.0%} of them above 0.8"
    return AuditRow("stability", agreement, controls, settings.least_agreement, True, meaning, ("random",))
