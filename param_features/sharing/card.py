"""The card of shared features: what was decomposed, how far to trust it, what it shows, and how to load it.

Names, settings and tokens come from models and files of strangers: each stands in a code span or block that it cannot end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from param_features.errors import MissingExtraError
from param_features.fitted import Fitted
from param_features.machine import notify
from param_features.measure import Example
from param_features.sharing.base_model import base_model_name, loading_lines
from param_features.sharing.picture import draw, shown_examples
from param_features.sharing.readings import READINGS
from param_features.sharing.settings import CardSettings
from param_features.sharing.text import code, fenced, visible
from param_features.sharing.verdicts import metrics_table, verdict
from param_features.sharing.yaml_head import front_matter

CARD, PICTURE = "README.md", "features.png"
_UNKNOWN = "OWNER/NAME"
_MOST_PARAMS = 20


def write_card(features: Fitted, folder: Path, settings: CardSettings, *, repo: str | None = None) -> Path:
    """Write `README.md`, and `features.png` where it is settings and matplotlib is installed; return the card's path."""
    picture = _drawn(features, folder, settings) if settings.is_illustrated else None
    card = folder / CARD
    card.write_text(card_text(features, settings, repo=repo, is_illustrated=picture is not None), encoding="utf-8")
    return card


def card_text(features: Fitted, settings: CardSettings, *, repo: str | None = None, is_illustrated: bool = False) -> str:
    """Write the card as Markdown.

    Cost: with a model, a pass of activations over the examples that were saved with the features, once.
    """
    base, said = settings.base_model or base_model_name(features), READINGS[features.dictionary.kind]
    parts = [
        front_matter(settings, base),
        f"# {features.n_features} {said.name} of {_brief(list(features.params))}",
        f"{said.lead}, found by `param_features`.",
        f"{verdict(features.metrics)} Numbers: [below](#metrics).",
        _pictured(features, settings) if is_illustrated else "",
        _decomposed(features, settings, base),
        f"## Metrics\n\nOn samples that the fit has not seen.\n\n{metrics_table(features.metrics)}",
        _examples(features, settings),
        _loading(features, repo or _UNKNOWN, base),
        said.reading,
        said.citation,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _pictured(features: Fitted, settings: CardSettings) -> str:
    has_examples = bool(shown_examples(features, settings.n_features, 1))
    examples = "Top examples with highlighted tokens, and the" if has_examples else "The"
    return f"![{examples} error beside that of the controls]({PICTURE})"


def _drawn(features: Fitted, folder: Path, settings: CardSettings) -> Path | None:
    """Draw the picture and return its path; None, with a `Notice`, where matplotlib is missing."""
    try:
        return draw(features, folder / PICTURE, n_features=settings.n_features, n_examples=settings.n_examples)
    except MissingExtraError as error:
        notify(f"The card has no picture. {error}")
        return None


def _decomposed(features: Fitted, settings: CardSettings, base: str | None) -> str:
    config = features.config
    model = [f"[`{base}`](https://huggingface.co/{base})"] if base else []
    model += [code(str(config["model"]))] if config.get("model") else []
    lines = {
        "parameters": _params(features),
        "model": ", read as ".join(model),
        "data": _data(features, settings),
        "divergence": f"{code(features.divergence.name)} from reference {code(features.reference)}",
        "method": ", ".join(_settings(features)),
    }
    return "## What was decomposed\n\n" + "\n".join(f"- **{name}**: {text}" for name, text in lines.items() if text)


def _params(features: Fitted) -> str:
    parts = [
        f"{code(name)} ({' × '.join(str(int(size)) for size in record.shape)})" for name, record in features.params.items()
    ]
    return _cut(parts)


def _brief(names: Sequence[str]) -> str:
    return _cut([code(name) for name in names], 3)


def _cut(parts: Sequence[str], most: int = _MOST_PARAMS) -> str:
    ending = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + ending


def _data(features: Fitted, settings: CardSettings) -> str:
    sources = [f"[`{name}`](https://huggingface.co/datasets/{name})" for name in settings.datasets]
    sources += [code(settings.data)] if settings.data else []
    rows = features.examples
    if rows is not None and rows.is_all_tensors:
        sources.append(f"held-out rows inside `features.safetensors`: {len(rows):,}")
    return "; ".join(sources)


def _settings(features: Fitted) -> list[str]:
    """The settings that the record holds, by the names that `pf.decompose` has for them."""
    config = features.config
    fit: Any = config.get("fit")
    steps = {"steps": fit.get("steps")} if isinstance(fit, Mapping) else {}
    settings = {name: config.get(name) for name in ("method", "format", "rank", "n_features", "l0", "seed")} | steps
    return [code(f"{name}={value!r}") for name, value in settings.items() if value is not None]


def _examples(features: Fitted, settings: CardSettings) -> str:
    by_feature = shown_examples(features, settings.n_features, settings.n_examples)
    if not by_feature:
        return ""
    lines = [
        line for feature, examples in by_feature.items() for line in (features.name_of(feature), *map(_line, examples), "")
    ]
    return (
        f"## Top examples of the first {len(by_feature)} {features.dictionary.kind}\n\nThe samples that each matters "
        f"most for, one from each text: the {features.measured}, the token at which it acts between « and », and what "
        f"followed after the arrow.\n\n{fenced(lines[:-1])}"
    )


def _line(example: Example) -> str:
    """An example whose tokens are cut short, so that the marked one is always shown."""
    following = None if example.next_token is None else visible(example.next_token, 20)
    return f"  {replace(example, tokens=tuple(visible(token, 20) for token in example.tokens), next_token=following)}"


def _loading(features: Fitted, repo: str, base: str | None) -> str:
    bare = f"""import param_features as pf

features = pf.load("{repo}")
print(features)
direction = features.direction(0)  # by parameter, of its shape"""
    return f"""## How to load them

Directions and numbers need no model:

```python
{bare}
```

With the model they can be measured, shown and steered along. Its weights are compared with those that were decomposed, in
whichever library it is:

```python
{loading_lines(features, repo, base)}
```

Both files are data alone, safetensors and JSON; loading them runs no code. What fetches them comes with the library's extra
`hf`."""
