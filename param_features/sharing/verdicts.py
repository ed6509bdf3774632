"""A fit's metrics as a table, and in a sentence whether its features beat their controls."""

import math
import re

from param_features.fitted import Metrics

_ERROR = "reconstruction_error"
_NAME = re.compile(r"[a-z0-9_]+")


def verdict(metrics: Metrics) -> str:
    """Say which controls the features beat and by how much, and first of all which do as well."""
    controls = _controls(metrics)
    if not controls:
        return (
            "**No control was measured with these features.** Nothing here says whether they beat directions that cost "
            "nothing to find."
        )
    matched = [name for name in controls if not metrics[_ERROR] < metrics[name]]
    beaten = [name for name in controls if name not in matched]
    sentences = []
    if matched:
        sentences.append(
            f"**As good as these features: {_joined([_label(metrics, name) for name in matched])}.** Beyond those, which "
            "cost nothing to find, the features have shown nothing."
        )
    if beaten:
        lower = [f"{_label(metrics, name)} ({1 - metrics[_ERROR] / metrics[name]:.0%})" for name in beaten]
        sentences.append(f"Their error on held-out samples is lower than that of {_joined(lower)}.")
    return " ".join(sentences)


def metrics_table(metrics: Metrics) -> str:
    """A Markdown table with each number in a row: the error, its controls, then the other metrics."""
    first = [_ERROR, *_controls(metrics)]
    names = [name for name in first if name in metrics] + [name for name in metrics if name not in first]
    rows = [
        f"| `{name}` | {_number(name, metrics[name])} | {metrics.remark(name)} |"
        for name in names
        if _is_shown(metrics, name)
    ]
    return "\n".join(["| metric | value | |", "|---|---:|---|", *rows])


def _controls(metrics: Metrics) -> list[str]:
    """Names of the controls that can be compared with; none without an error."""
    names = [name for name in metrics if name.startswith("control_") and _is_shown(metrics, name)]
    return names if _ERROR in metrics and _is_shown(metrics, _ERROR) else []


def _is_shown(metrics: Metrics, name: str) -> bool:
    """Whether name and number are what this library writes: files of strangers may hold anything."""
    return _NAME.fullmatch(name) is not None and isinstance(metrics[name], int | float)


def _number(name: str, value: float) -> str:
    is_count = name.startswith("n_") or name == "dead"
    return f"{value:,.0f}" if is_count and math.isfinite(value) else f"{value:.3f}"


def _label(metrics: Metrics, name: str) -> str:
    return metrics.remark(name).partition(":")[0] or f"`{name}`"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
