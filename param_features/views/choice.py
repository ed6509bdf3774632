"""Texts on which to choose a feature: circuitsvis' ColoredTokensMulti."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from param_features.views.circuitsvis_page import block, check_finite, literal
from param_features.views.page import Page
from param_features.views.tokens import TokenRow


@dataclass(frozen=True)
class Choice:
    """A text and the features offered for it.

    Attributes:
        tokens: Strings.
        features: Their numbers, the most active first.
        values: Each feature's activation at every token.
    """

    tokens: tuple[str, ...]
    features: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        """Lines of a view: the text once for each feature."""
        pairs = zip(self.features, self.values, strict=True)
        return tuple(TokenRow(f"feature {feature}", self.tokens, values) for feature, values in pairs)

    @property
    def bound(self) -> float:
        """|activation| that gets the full colour, the same for every feature: circuitsvis keeps it when one is chosen."""
        return max((row.bound for row in self.rows if any(row.values)), default=1.0)


@dataclass(frozen=True, repr=False)
class ChoiceView(Page):
    """Texts, with a feature to choose for each; hover over a number to see it, click to keep it.

    A text's features share one scale of colours, whose ends can be typed.

    Attributes:
        texts: The texts.

    Raises:
        NonFiniteError: An activation is NaN or infinite.
    """

    texts: tuple[Choice, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        check_finite(value for text in self.texts for values in text.values for value in values)

    def __str__(self) -> str:
        """Coloured text for a terminal: each text once for each feature."""
        return "\n".join([self.title, *(row.text(text.bound) for text in self.texts for row in text.rows)])

    @property
    def blocks(self) -> str:
        """The page's body: one `ColoredTokensMulti` a text."""
        return "".join(f"<div><b>text {index}</b>{_block(text)}</div>" for index, text in enumerate(self.texts))


def _block(text: Choice) -> str:
    exponent = _exponent(text.bound)
    bounds = [text.bound * 10**exponent] * len(text.features)
    props = {
        "tokens": [literal(token) for token in text.tokens],
        "values": [[value * 10**exponent for value in column] for column in zip(*text.values, strict=True)],
        "labels": [str(feature) for feature in text.features],
        "positiveBounds": bounds,
        "negativeBounds": [-bound for bound in bounds],
    }
    static = "".join(f"<div>{row.title}{row.static(text.bound)}</div>" for row in text.rows)
    note = f"<div>numbers × 10<sup>−{exponent}</sup></div>" if exponent else ""
    return note + block("ColoredTokensMulti", props, static, style="> div { padding-bottom: 0.5em !important }")


def _exponent(bound: float) -> int:
    """The power of ten by which numbers must grow for circuitsvis' six digits after the point; 0 for ordinary ones."""
    return 0 if bound >= 0.01 else -math.floor(math.log10(bound))


def choice_view(
    strings: Sequence[Sequence[str]], acts: Float[Tensor, "batch pos feature"], *, n: int, measured: str
) -> ChoiceView:
    """Offer the n features with the largest |activation| in each text, with their values at every token of it."""
    texts = tuple(_choice(tuple(row), acts[index, : len(row)], n) for index, row in enumerate(strings))
    return ChoiceView(f"The {n} most active features, one to choose: {measured}", texts)


def _choice(tokens: tuple[str, ...], acts: Float[Tensor, "pos feature"], n: int) -> Choice:
    features = acts.abs().max(0).values.argsort(descending=True, stable=True)[:n].tolist()
    return Choice(tokens, tuple(features), tuple(tuple(acts[:, feature].tolist()) for feature in features))
