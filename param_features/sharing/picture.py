"""One picture of a fit: features' top examples with their tokens highlighted, and its error beside its controls'."""

import importlib
import textwrap
import warnings
from pathlib import Path
from typing import Any

from param_features.errors import MissingExtraError
from param_features.fitted import Fitted, Metrics
from param_features.measure import Example, examples_of
from param_features.sharing.text import visible

_LONGEST = 20
_WIDTH = 118
"""Of the examples' part, in characters."""
_BLUE, _GREY = "#2b6cb0", "#bbb"


def draw(features: Fitted, path: Path, *, n_features: int = 10, n_examples: int = 3) -> Path:
    """Write the picture of a fit; without a model, or where samples are no tokens, it has the bars alone.

    Cost: a pass of activations over the examples that were saved with the features, once.

    Args:
        features: A fit.
        path: Where to; matplotlib knows the suffix.
        n_features: How many have their examples shown, the first ones.
        n_examples: How many examples of each.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    examples = shown_examples(features, n_features, n_examples)
    names = ", ".join(features.params)
    title = f"{features.n_features} {features.dictionary.kind} of {visible(names, 60)}"
    if examples:
        n_rows = _n_lines(examples)
        figure = _figure((11.5, 0.4 + 0.165 * n_rows))
        text, bars = figure.subplots(1, 2, width_ratios=[3, 1.2])
        _draw_examples(text, examples)
        title += f": top examples of the first {len(examples)}"
    else:
        figure = _figure((5, 4))
        bars = figure.subplots()
    _draw_errors(bars, features.metrics, features.dictionary.kind)
    figure.suptitle(title, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a box stands for what the font lacks
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def shown_examples(features: Fitted, n_features: int, n_examples: int) -> dict[int, list[Example]]:
    """Top examples of the first features; none without a model, saved examples or tokens."""
    engine, examples = features.engine, features.examples
    if engine is None or examples is None or not engine.per_position or examples.tokens is None:
        return {}
    return {
        feature: examples_of(features, feature, n_examples, features.own_examples)
        for feature in range(min(n_features, features.n_features))
    }


def _figure(size: tuple[float, float]) -> Any:
    """A figure that belongs to no window and changes no setting of pyplot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise MissingExtraError(
            f'The picture needs matplotlib, and the import failed: {error}. Run: pip install "param_features[plots]".'
        ) from error
    return figure(figsize=(size[0], max(size[1], 4)), layout="constrained")


def _draw_examples(axes: Any, examples: dict[int, list[Example]]) -> None:
    axes.axis("off")
    axes.set(xlim=(0, _WIDTH), ylim=(_n_lines(examples), -1))
    line = 0
    for feature, top in examples.items():
        axes.text(0, line, f"{feature}", family="monospace", weight="bold", va="center", fontsize=9)
        bound = max((abs(value) for example in top for value in example.activations), default=0) or 1
        for example in top:
            _draw_tokens(axes, example, bound, x=4, y=line)
            line += 1
        line += 1


def _n_lines(examples: dict[int, list[Example]]) -> int:
    """Lines of the examples' part: each feature's examples, and a gap below them."""
    return sum(len(top) + 1 for top in examples.values())


def _draw_tokens(axes: Any, example: Example, bound: float, x: float, y: float) -> None:
    """The tokens up to the activating one, as many as fit, and the next after an arrow; red is negative, blue positive."""
    style = {"family": "monospace", "fontsize": 8, "va": "center", "parse_math": False}
    following = _shown(example.next_token).strip(" ") if example.next_token else "(end)"
    for index in _fitting(example, _WIDTH - x - len(following) - 4):
        value = example.activations[index] / bound
        faded = 1 - 0.7 * abs(value)
        colour = (1, faded, faded) if value < 0 else (faded, faded, 1)
        edge = "black" if index == example.position else colour
        token = _shown(example.tokens[index])
        box = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": edge, "linewidth": 0.8}
        word = token.strip(" ") or token
        axes.text(x + token.index(word), y, word, bbox=box, **style)
        x += len(token)
    axes.text(x + 0.7, y, f"→ {following}", color="gray", **style)


def _fitting(example: Example, room: float) -> range:
    """The positions that end with the activating one and whose tokens fit."""
    start = example.position
    room -= len(_shown(example.tokens[start]))
    while start > 0 and room >= len(_shown(example.tokens[start - 1])):
        start -= 1
        room -= len(_shown(example.tokens[start]))
    return range(start, example.position + 1)


def _shown(token: str) -> str:
    return visible(token, _LONGEST)


def _draw_errors(axes: Any, metrics: Metrics, kind: str) -> None:
    names = [metrics.score, *(name for name in metrics if name.startswith("control_"))]
    labels = [kind, *(_label(metrics, name) for name in names[1:])]
    colours = [_BLUE, *[_GREY] * (len(names) - 1)]
    values = [float(metrics.get(name, float("nan"))) for name in names]
    bars = axes.bar(range(len(names)), values, color=colours)
    axes.set_xticks(range(len(names)), [textwrap.fill(label, 12) for label in labels], parse_math=False)
    axes.bar_label(bars, fmt="%.2f")
    top = max((value for value in values if value < float("inf")), default=1)
    axes.set(
        ylabel=f"{metrics.score.replace('_', ' ')}, held out, l0 = {metrics.get('l0', float('nan')):g}",
        ylim=(0, 1.1 * max(1, top)),
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label(metrics: Metrics, name: str) -> str:
    """The control's name as on the report's page, without the words that all share."""
    return metrics.remark(name).partition(":")[0].removesuffix(" of the gradients").removesuffix(" of the same rank") or name
