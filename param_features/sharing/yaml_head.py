"""The card's first lines, which the hub reads: YAML, each value written as JSON, which YAML is a superset of."""

import json
from collections.abc import Sequence

from param_features.sharing.settings import CardSettings
from param_features.sharing.text import visible

TAGS = ("param-features", "interpretability", "mechanistic-interpretability", "parameter-decomposition", "l3d")


def front_matter(settings: CardSettings, base_model: str | None) -> str:
    """The card's head between two lines of `---`; what is not known is left out."""
    fields: dict[str, str | Sequence[str] | None] = {
        "library_name": "param_features",
        "tags": list(dict.fromkeys((*TAGS, *settings.tags))),
        "license": settings.license,
        "base_model": base_model,
        "datasets": list(settings.datasets),
    }
    lines = [line for name, value in fields.items() if value for line in _field(name, value)]
    return "\n".join(["---", *lines, "---"])


def _field(name: str, value: str | Sequence[str]) -> list[str]:
    if isinstance(value, str):
        return [f"{name}: {_quoted(value)}"]
    return [f"{name}:", *(f"- {_quoted(entry)}" for entry in value)]


def _quoted(value: str) -> str:
    return json.dumps(visible(value), ensure_ascii=False)
