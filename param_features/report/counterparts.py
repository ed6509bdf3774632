"""The report's part about an SAE: both sets' numbers, each side's nearest counterparts, and texts marked by both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.measure import Example, label_of
from param_features.report.samples import Vocabulary, digits, text_example, window
from param_features.sae import Comparison, Pair

_PAIRS = 3
_LABELLED, _EXAMPLES = 20, 3
_MOST_ROWS = 400


@dataclass(frozen=True)
class PageTexts:
    """The texts on which a page shows examples.

    Attributes:
        strings: Each row's tokens; empty where inputs are no tokens.
        acts: The parameter features' activations, each row's real positions first.
        vocabulary: The page's strings.
        usual: The share of windows in which a token occurs.
    """

    strings: Sequence[Sequence[str]]
    acts: Float[Tensor, "batch pos feature"]
    vocabulary: Vocabulary
    usual: Callable[[str], float]


class CounterpartsWriter:
    """Writes what the page shows of a comparison with an SAE, made on the page's own inputs."""

    def __init__(self, comparison: Comparison, texts: PageTexts) -> None:
        """Read the SAE features that are shown; memory: samples times those."""
        self.comparison, self.texts = comparison, texts
        self.pairs = [comparison.pairs(k, _PAIRS) for k in range(comparison.features.n_features)]
        reverse = sorted(comparison.sae_table(), key=lambda pair: pair.correlation)
        half = _MOST_ROWS // 2
        self.reverse = reverse if len(reverse) <= _MOST_ROWS else reverse[:half] + reverse[-half:]
        shown = {pairs[0].sae_feature for pairs in self.pairs} | {pair.sae_feature for pair in self.reverse}
        self.columns = self._columns(sorted(shown)) if texts.strings else {}

    def feature(self, k: int) -> dict[str, Any]:
        """A parameter feature's nearest SAE features, and whether the best of them counts as a counterpart."""
        matching = self.comparison.of_features
        return {
            "sae": [_pair(pair) for pair in self.pairs[k]],
            "shared": bool(matching.counted[k] and matching.best[k] > matching.threshold),
        }

    def marks(self, k: int, example: Example) -> list[float]:
        """The nearest SAE feature's activations over the window in which an example of a parameter feature is shown."""
        acts = self.columns[self.pairs[k][0].sae_feature][example.row]
        return [digits(value) for value in acts[window(example.position)]]

    def section(self) -> dict[str, Any]:
        """Both sets' numbers, and every active SAE feature with its nearest parameter feature."""
        shared = set(self.comparison.of_sae.shared)
        n_active = int(self.comparison.of_sae.counted.sum())
        return {
            "title": self.comparison.title,
            "lines": [list(line) for line in self.comparison.lines()],
            "n_active": n_active,
            "n_shown": len(self.reverse),
            "only_features": self.comparison.only_features,
            "features": [self._sae_feature(pair, is_shared=pair.sae_feature in shared) for pair in self.reverse],
        }

    def _sae_feature(self, pair: Pair, *, is_shared: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"pair": _pair(pair), "shared": is_shared, "label": "", "examples": []}
        if not self.texts.strings:
            return entry
        places = self.comparison.sae_places(pair.sae_feature, _LABELLED)
        best = [example for place in places if (example := self._example(pair.sae_feature, *place)).activation != 0]
        shown = [text_example(example, self.texts.vocabulary) for example in best[:_EXAMPLES]]
        for row, example in zip(shown, best, strict=False):
            parameter_acts = self.texts.acts[example.row, : len(example.tokens), pair.feature]
            row["marks"] = [digits(value) for value in parameter_acts[window(example.position)].tolist()]
        return entry | {"label": label_of(best, self.texts.usual), "examples": shown}

    def _example(self, sae_feature: int, row: int, position: int) -> Example:
        tokens, acts = tuple(self.texts.strings[row]), self.columns[sae_feature][row]
        following = tokens[position + 1] if position + 1 < len(tokens) else None
        return Example(acts[position], row, position, tokens, tuple(acts), following)

    def _columns(self, shown: list[int]) -> dict[int, list[list[float]]]:
        """Each shown SAE feature's activations, by row."""
        lengths = [len(row) for row in self.texts.strings]
        dense = self.comparison.sae_strengths.index_select(1, torch.tensor(shown)).to_dense()
        places, at_tokens = self.comparison.inputs.sample_places, torch.zeros(len(lengths), max(lengths), len(shown))
        at_tokens[tuple(places.T)] = dense.to(at_tokens)
        rows = [row[:n].T.tolist() for row, n in zip(at_tokens, lengths, strict=True)]
        return {feature: [row[place] for row in rows] for place, feature in enumerate(shown)}


def _pair(pair: Pair) -> dict[str, Any]:
    numbers = {name: digits(getattr(pair, name)) for name in ("correlation", "overlap")}
    areas = {name: None if (area := getattr(pair, name)) != area else digits(area) for name in ("auroc", "sae_auroc")}
    return {"feature": pair.feature, "sae": pair.sae_feature, "url": pair.url, **numbers, **areas}
