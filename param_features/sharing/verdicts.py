"""A fit's metrics as a table, and in a sentence whether its features beat their controls."""

import math
import re

from param_features.fitted import Metrics, is_counted

_TITLES = {"worse": "Better than", "alike": "As good as"}
_NAME = re.compile(r"[a-z0-9_.]+")


def verdict(metrics: Metrics) -> str:
    """The sentences as Markdown, those in bold that say what the features do not beat."""
    first, *others = verdict_sentences(metrics)
    is_warning = len(_beaten(metrics)) < max(1, len(_controls(metrics)))
    return " ".join([f"**{first}**" if is_warning else first, *others])


def verdict_sentences(metrics: Metrics) -> list[str]:
    """Say which controls the features beat and by how much, and first of all which do better or as well."""
    controls = _controls(metrics)
    if not controls:
        return [
            "No control was measured with these features.",
            "Nothing here says whether they beat directions that cost nothing to find.",
        ]
    sides = {
        side: _joined([_label(metrics, name) for name in controls if metrics.standings[name].side == side])
        for side in ("worse", "alike")
    }
    sentences = [f"{title} these features: {sides[side]}." for side, title in _TITLES.items() if sides[side]]
    if sentences:
        sentences.append("Beyond those, which cost nothing to find, the features have shown nothing.")
    beaten = [f"{_label(metrics, name)} ({metrics.standings[name].share})" for name in _beaten(metrics)]
    if beaten:
        sentences.append(f"Their error on held-out samples is lower than that of {_joined(beaten)}.")
    return sentences


def _beaten(metrics: Metrics) -> list[str]:
    return [name for name in _controls(metrics) if metrics.standings[name].is_better]


def metrics_table(metrics: Metrics) -> str:
    """A Markdown table with each number in a row: the error, its controls, then the other metrics."""
    first = [metrics.score, *_controls(metrics)]
    names = [name for name in first if name in metrics] + [name for name in metrics.listed if name not in first]
    rows = [
        f"| `{name}` | {_number(name, metrics[name])} | {metrics.remark(name)} |"
        for name in names
        if _is_shown(metrics, name)
    ]
    return "\n".join(["| metric | value | |", "|---|---:|---|", *rows])


def _controls(metrics: Metrics) -> list[str]:
    """Names of the controls that can be compared with; none without an error."""
    names = [name for name in metrics if name.startswith("control_") and _is_shown(metrics, name)]
    return names if metrics.score in metrics and _is_shown(metrics, metrics.score) else []


def _is_shown(metrics: Metrics, name: str) -> bool:
    """Whether name and number are what this library writes: files of strangers may hold anything."""
    return _NAME.fullmatch(name) is not None and isinstance(metrics[name], int | float)


def _number(name: str, value: float) -> str:
    return f"{value:,.0f}" if is_counted(name) and math.isfinite(value) else f"{value:.3f}"


def _label(metrics: Metrics, name: str) -> str:
    return metrics.remark(name).partition(":")[0] or f"`{name}`"


def _joined(parts: list[str]) -> str:
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"
