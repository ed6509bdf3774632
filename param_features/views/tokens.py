"""Views of one feature on text, the same content for notebook and terminal."""

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from param_features.measure import Example
from param_features.views.circuitsvis_page import colored_tokens_block, script
from param_features.views.terminal import colored_tokens


@dataclass(frozen=True)
class Row:
    """One line of a view.

    Attributes:
        title: Shown before the tokens.
        tokens: Strings.
        values: An activation for each token.
        marked: The activating token, None without one.
    """

    title: str
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    marked: int | None = None


@dataclass(frozen=True)
class View:
    """Highlighted text. `str()` is for terminals; notebooks take `_repr_html_`.

    Attributes:
        title: What is shown.
        rows: The lines, on one scale of colours.
    """

    title: str
    rows: tuple[Row, ...]

    @property
    def bound(self) -> float:
        """|activation| that gets the full colour."""
        return max((abs(value) for row in self.rows for value in row.values), default=0.0) or 1.0

    def __str__(self) -> str:
        """Coloured text for a terminal."""
        lines = [
            f"{row.title}  {colored_tokens(row.tokens, row.values, bound=self.bound, marked=row.marked)}"
            for row in self.rows
        ]
        return "\n".join([self.title, *lines])

    def __repr__(self) -> str:
        """The same as `str()`, so that a terminal session shows it."""
        return str(self)

    def _repr_html_(self) -> str:
        """Circuitsvis blocks, the script inlined once per view."""
        blocks = [
            f"<div><b>{html.escape(row.title)}</b>{colored_tokens_block(row.tokens, row.values, bound=self.bound)}</div>"
            for row in self.rows
        ]
        return f"<h4>{html.escape(self.title)}</h4>{script()}{''.join(blocks)}"


def feature_view(feature: int, examples: Sequence[Example], *, unit: str) -> View:
    """A feature's top examples, each with its surroundings; the activating token marked."""
    return View(f"Feature {feature}: top examples, activation in {unit} per unit step", tuple(map(_example_row, examples)))


def _example_row(example: Example) -> Row:
    title = f"{example.activation:+.4f}"
    if not example.tokens:
        return Row(title, (f"input {example.row}",), (example.activation,), 0)
    start, stop = max(0, example.position - 24), example.position + 9
    window = slice(start, stop)
    title = f"{title} «{example.tokens[example.position]}»"
    title = title if example.next_token is None else f"{title} → {example.next_token!r}"
    return Row(title, example.tokens[window], example.activations[window], example.position - start)


def tokens_view(feature: int, strings: Sequence[Sequence[str]], acts: Float[Tensor, "batch pos"], *, unit: str) -> View:
    """A feature's activation at every token of given texts."""
    rows = tuple(
        Row(f"text {index}", tuple(tokens), tuple(values[: len(tokens)]))
        for index, (tokens, values) in enumerate(zip(strings, acts.tolist(), strict=True))
    )
    return View(f"Feature {feature}: activation in {unit} per unit step", rows)


def show(view: View) -> None:
    """Display in a notebook, print in a terminal."""
    if _is_notebook():
        from IPython.display import display

        display(view)
    else:
        sys.stdout.write(f"{view}\n")


def _is_notebook() -> bool:
    """Whether a kernel with rich output runs us; IPython is never imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
