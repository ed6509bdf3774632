"""From features and inputs to the report's file: what else is measured for it, and the page written."""

from os import PathLike
from pathlib import Path
from typing import Any

from param_features.audit import Audit
from param_features.circuits import Circuit
from param_features.errors import SettingError
from param_features.files import new_file
from param_features.fitted import Fitted
from param_features.measure import curve_of
from param_features.problem import ModelInputs
from param_features.report.document import contents
from param_features.report.write import write_report
from param_features.sae import compare_on

_N_CURVE_SAMPLES = 4096


def report_on(
    features: Fitted,
    path: str | PathLike,
    inputs: ModelInputs,
    *,
    sae: Any,
    hook_name: str | None,
    audit: Audit | None,
    circuit: Circuit | None,
    n_examples: int,
    n_rows: int,
) -> Path:
    """Measure what a report shows of features and write its page; see `ParamFeatures.report`.

    Args:
        features: Bound to a model.
        path: The page's file.
        inputs: The curve of errors is measured on all of them, everything else on the first `n_rows`.
        sae: An SAE whose features stand beside these, if any.
        hook_name: Where the SAE reads; what its metadata say by default.
        audit: The table of a section of its own, if any.
        circuit: The graph of a section of its own, if any.
        n_examples: Examples shown for each feature.
        n_rows: How many rows of the inputs are shown.

    Returns:
        The file's path.

    Raises:
        SettingError: `n_examples` or `n_rows` is below 1.
    """
    if min(n_examples, n_rows) < 1:
        raise SettingError(f"n_examples={n_examples} and n_rows={n_rows} must be positive.")
    file, rows = new_file(path, "report.html"), inputs.rows(slice(0, n_rows))
    comparison = None if sae is None else compare_on(features, sae, rows, hook_name=hook_name)
    has_curve = features.dictionary.kind == "features"
    curve = curve_of(features, inputs, n_samples=_N_CURVE_SAMPLES) if has_curve else None
    page = contents(features, rows, curve, n_examples=n_examples, comparison=comparison, audit=audit, circuit=circuit)
    return write_report(file, f"{features.n_features} {features.dictionary.kind} of {', '.join(features.params)}", page)
