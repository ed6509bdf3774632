"""Views of one feature on text, the same content for notebook and terminal."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from param_features.measure import Example
from param_features.views.circuitsvis_page import block, check_finite, literal
from param_features.views.colours import static_tokens
from param_features.views.page import Page
from param_features.views.terminal import colored_tokens

_MARK = "outline: 2px solid #d97706; position: relative; z-index: 1; font-weight: bold; text-decoration: underline"


@dataclass(frozen=True)
class TokenRow:
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

    @property
    def bound(self) -> float:
        """|activation| that gets the full colour where the row has a scale of its own."""
        return max(map(abs, self.values), default=0.0) or 1.0

    def text(self, bound: float) -> str:
        """Coloured text for a terminal."""
        return f"{self.title}  {colored_tokens(self.tokens, self.values, bound=bound, marked=self.marked)}"

    def static(self, bound: float) -> str:
        """Safe HTML that needs no script, without the title."""
        return static_tokens(self.tokens, self.values, bound=bound, marked=self.marked)


@dataclass(frozen=True, repr=False)
class View(Page):
    """Highlighted text.

    Attributes:
        rows: The lines, on one scale of colours.

    Raises:
        NonFiniteError: An activation is NaN or infinite.
    """

    rows: tuple[TokenRow, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        check_finite(value for row in self.rows for value in row.values)

    @property
    def bound(self) -> float:
        """|activation| that gets the full colour."""
        return max((abs(value) for row in self.rows for value in row.values), default=0.0) or 1.0

    def __str__(self) -> str:
        """Coloured text for a terminal."""
        return "\n".join([self.title, *(row.text(self.bound) for row in self.rows)])

    @property
    def blocks(self) -> str:
        """The page's body: one `ColoredTokens` a row."""
        return "".join(f"<div><b>{html.escape(row.title)}</b>{self._block(row)}</div>" for row in self.rows)

    def _block(self, row: TokenRow) -> str:
        props = {
            "tokens": [literal(token) for token in row.tokens],
            "values": list(row.values),
            "minValue": -self.bound,
            "maxValue": self.bound,
        }
        style = "" if row.marked is None else f".colored-tokens > span:nth-of-type({row.marked + 1}) > span {{ {_MARK} }}"
        return block("ColoredTokens", props, row.static(self.bound), style=style)


def feature_view(feature: int, examples: Sequence[Example], *, measured: str, noun: str = "feature") -> View:
    """Show a feature's top examples, each with its surroundings and the activating token marked."""
    return View(f"{noun.capitalize()} {feature}: top examples, {measured}", tuple(map(_example_row, examples)))


def _example_row(example: Example) -> TokenRow:
    title = f"{example.activation:+.4f}"
    if not example.tokens:
        return TokenRow(title, (example.place,), (example.activation,), 0)
    start, stop = max(0, example.position - 24), example.position + 9
    window = slice(start, stop)
    following = "" if example.next_token is None else f" → {example.next_token!r}"
    title = f"{title} «{example.tokens[example.position]}»{following}"
    return TokenRow(title, example.tokens[window], example.activations[window], example.position - start)


def tokens_view(
    feature: int,
    strings: Sequence[Sequence[str]],
    acts: Float[Tensor, "batch pos"],
    *,
    measured: str,
    noun: str = "feature",
) -> View:
    """Show a feature's activation at every token of given texts."""
    rows = tuple(
        TokenRow(f"text {index}", tuple(tokens), tuple(values[: len(tokens)]))
        for index, (tokens, values) in enumerate(zip(strings, acts.tolist(), strict=True))
    )
    return View(f"{noun.capitalize()} {feature}: {measured}", rows)
