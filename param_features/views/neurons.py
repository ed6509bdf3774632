"""Texts, parameters and features in circuitsvis' browser of layers and neurons, TextNeuronActivations."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from param_features.views.circuitsvis_page import block, check_finite, literal
from param_features.views.page import Page
from param_features.views.tokens import TokenRow


@dataclass(frozen=True, repr=False)
class NeuronView(Page):
    """Choose a parameter and a feature, and see what that parameter adds to the feature's activation at every token.

    circuitsvis colours each sign by its own extreme over all numbers; hover over a token for the number itself.

    Attributes:
        params: Names of the decomposed parameters.
        features: Numbers of the features.
        texts: Tokens of each text.
        values: The parts by text, [token][parameter][feature].

    Raises:
        NonFiniteError: An activation is NaN or infinite.
    """

    params: tuple[str, ...]
    features: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]
    values: tuple[list[list[list[float]]], ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        check_finite(value for text in self.values for token in text for row in token for value in row)

    def __str__(self) -> str:
        """Coloured text for a terminal: for each text and parameter the feature with the largest part."""
        rows = [row for text in range(len(self.texts)) for row in self._strongest(text)]
        return "\n".join([self.title, *(row.text(row.bound) for row in rows)])

    @property
    def blocks(self) -> str:
        """The page's body: one `TextNeuronActivations` for all texts."""
        props = {
            "tokens": [[literal(token) for token in text] for text in self.texts],
            "activations": [[[[_short(x) for x in row] for row in token] for token in text] for text in self.values],
            "firstDimensionName": "Parameter",
            "secondDimensionName": "Feature",
            "firstDimensionLabels": list(self.params),
            "secondDimensionLabels": [str(feature) for feature in self.features],
        }
        rows = [row for text in range(len(self.texts)) for row in self._strongest(text)]
        static = "".join(f"<div>{html.escape(row.title)}{row.static(row.bound)}</div>" for row in rows)
        return block("TextNeuronActivations", props, static)

    def _strongest(self, text: int) -> list[TokenRow]:
        """A row for each parameter: the feature whose part is largest in size."""
        tokens, values, rows = self.texts[text], self.values[text], []
        for param, name in enumerate(self.params):
            columns = list(zip(*(token[param] for token in values), strict=True))
            best = max(range(len(self.features)), key=lambda column: max(map(abs, columns[column])))
            rows.append(TokenRow(f"text {text}, {name}, feature {self.features[best]}", tokens, columns[best]))
        return rows


def neuron_view(
    strings: Sequence[Sequence[str]],
    parts: Float[Tensor, "batch pos param feature"],
    *,
    params: Sequence[str],
    features: Sequence[int] | None,
    measured: str,
) -> NeuronView:
    """Show each parameter's part of the features' activations at every token; all features by default, strongest first."""
    if features is None:
        features = parts.abs().amax((0, 1, 2)).argsort(descending=True, stable=True).tolist()
    chosen = parts[..., list(features)]
    values = tuple(chosen[index, : len(row)].tolist() for index, row in enumerate(strings))
    return NeuronView(
        f"What each parameter adds: {measured}", tuple(params), tuple(features), tuple(tuple(row) for row in strings), values
    )


def _short(value: float) -> float:
    """The value in five digits, which halves the size of the page."""
    return float(f"{value:.5g}")
