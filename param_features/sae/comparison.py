"""What `pf.compare` returns: pairs of features, which have no counterpart, and both sets' numbers beside controls."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.adapters import SparseAutoencoder
from param_features.errors import FeatureCountError, SettingError
from param_features.fitted import Fitted
from param_features.machine import public
from param_features.measure import Counterparts
from param_features.problem import ModelInputs
from param_features.sae.matching import Matching, Pair
from param_features.sae.pairs_shown import SampleRow, pair_view
from param_features.views import View

_MEANINGS = {
    "l0": "features kept per sample",
    "density": "share of samples that keep a feature, median",
    "dead": "kept on no sample",
    "purity_token": "top samples with their commonest token",
    "purity_next": "top samples with their commonest next token",
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Parameter features beside SAE features on the same samples.

    Attributes:
        features: The parameter features.
        sae: The SAE.
        hook_name: Where in the model it reads.
        inputs: What both were run on.
        n_samples: Positions, or inputs, without padding.
        n_top: How many of its strongest samples stand for a feature.
        level: The quantile of controls that a counterpart must exceed.
        tables: Every pair, [feature sae_feature]: correlation, areas under ROC, overlap.
        of_features: Which parameter features have a counterpart.
        of_sae: Which SAE features have one.
        metrics: `"features"`, `"random_features"`, `"sae"`, `"random_sae"` and `"any_samples"`, each with its numbers.
        top: The samples on which each parameter feature is strongest, strongest first.
        sae_top: The same for SAE features.
        sae_strengths: The SAE's activations with their signs, sparse in the COO layout.
    """

    features: Fitted
    sae: SparseAutoencoder
    hook_name: str
    inputs: ModelInputs
    n_samples: int
    n_top: int
    level: float
    tables: Counterparts
    of_features: Matching
    of_sae: Matching
    metrics: Mapping[str, Mapping[str, float]]
    top: Int[Tensor, "rank feature"]
    sae_top: Int[Tensor, "rank sae_feature"]
    sae_strengths: Float[Tensor, "sample sae_feature"]

    @property
    def only_features(self) -> list[int]:
        """Parameter features without a counterpart in the SAE, the least correlated first."""
        return self.of_features.alone

    @property
    def only_sae(self) -> list[int]:
        """Active SAE features without a counterpart among the parameter features, the least correlated first."""
        return self.of_sae.alone

    @public
    def pairs(self, feature: int, n: int = 5, *, by: str = "correlation") -> list[Pair]:
        """The SAE features that go best with a parameter feature, best first.

        Args:
            feature: Which parameter feature.
            n: How many.
            by: `"correlation"`, `"auroc"`, `"sae_auroc"` or `"overlap"`.

        Raises:
            FeatureCountError: There is no such feature.
            SettingError: `by` is unknown.
        """
        _check(feature, self.features.n_features, "parameter")
        return [self._pair(feature, sae_feature) for sae_feature in _best(self._table(by)[feature], n)]

    @public
    def sae_pairs(self, sae_feature: int, n: int = 5, *, by: str = "correlation") -> list[Pair]:
        """The parameter features that go best with an SAE feature, best first; arguments as in `pairs`.

        Raises:
            FeatureCountError: There is no such feature.
            SettingError: `by` is unknown.
        """
        _check(sae_feature, self.sae.n_features, "SAE")
        return [self._pair(feature, sae_feature) for feature in _best(self._table(by)[:, sae_feature], n)]

    def table(self) -> list[Pair]:
        """Every parameter feature with its best SAE feature by correlation, in order of features."""
        return [self.pairs(feature, 1)[0] for feature in range(self.features.n_features)]

    def sae_table(self) -> list[Pair]:
        """Every SAE feature that is active with its best parameter feature by correlation, in order of features."""
        return [self.sae_pairs(sae_feature, 1)[0] for sae_feature in self.of_sae.counted.nonzero()[:, 0].tolist()]

    @public
    def view(self, feature: int, n: int = 5) -> View:
        """A parameter feature's top examples, each marked by it and, below, by its best SAE feature.

        Raises:
            FeatureCountError: There is no such feature.
        """
        pair = self.pairs(feature, 1)[0]
        return self._view(pair, self._rows(self.top[:, feature].tolist(), n), feature_first=True)

    @public
    def sae_view(self, sae_feature: int, n: int = 5) -> View:
        """An SAE feature's top examples, each marked by it and, below, by its best parameter feature.

        Raises:
            FeatureCountError: There is no such feature.
        """
        pair = self.sae_pairs(sae_feature, 1)[0]
        return self._view(pair, self._rows(self.sae_top[:, sae_feature].tolist(), n), feature_first=False)

    def __repr__(self) -> str:
        """Print how many features have counterparts, and both sets' numbers beside their controls."""
        lines = [f"{line.title:<20}{line.ours:>32}{line.theirs:>32}  {line.meaning}".rstrip() for line in self.lines()]
        return "\n".join([self.title, *lines])

    def _repr_html_(self) -> str:
        """What `repr` prints as a table, the best pairs below with links where there are any."""
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self.lines())
        pairs = sorted(self.table(), key=lambda pair: -pair.correlation)[:10]
        titles = ("feature", "SAE feature", "correlation", "area under ROC", "the reverse", "overlap")
        head = "".join(f"<th>{title}</th>" for title in titles)
        return (
            f"<h4>{html.escape(self.title)}</h4><table>{rows}</table>"
            f"<table><tr>{head}</tr>{''.join(map(_pair_row, pairs))}</table>"
        )

    @property
    def title(self) -> str:
        """One line that names what is compared."""
        names = ", ".join(self.features.params)
        return (
            f"Comparison: {self.features.n_features} features of {names} and {self.sae.n_features} of a "
            f"{self.sae.architecture} SAE at {self.hook_name}, {self.n_samples} samples"
        )

    def lines(self) -> list["ComparisonLine"]:
        """Make the lines of the table, its head first."""
        sides, tables = (self.of_features, self.of_sae), self.tables
        areas, overlaps = (
            (tables.auroc.amax(1), tables.reverse_auroc.amax(0)),
            (tables.overlap.amax(1), tables.overlap.amax(0)),
        )
        top = f"the top {self.n_top} samples, median"
        lines = [
            ComparisonLine("", "parameter features (random)", "SAE features (random)", ""),
            _line("with a counterpart", sides, _counted, "in the other set: above the threshold"),
            _line("best correlation", sides, _correlated, "median over features"),
            _line("threshold", sides, _threshold, f"above {self.level:.0%} of random directions"),
            _line("best area under ROC", areas, _median, f"telling {top}"),
            _line("best overlap", overlaps, _median, f"of {top}"),
        ]
        for name, meaning in _MEANINGS.items():
            if name in self.metrics["features"]:
                lines.append(
                    _line(name, ("features", "sae"), partial(self._with_control, name), self._with_chance(name, meaning))
                )
        return lines

    def _with_control(self, name: str, side: str) -> str:
        measured, control = self.metrics[side][name], self.metrics[f"random_{side}"][name]
        digits = 0 if name == "dead" else 3
        return f"{measured:.{digits}f} ({control:.{digits}f})"

    def _with_chance(self, name: str, meaning: str) -> str:
        chance = self.metrics["any_samples"].get(name)
        return meaning if chance is None else f"{meaning}; any {self.n_top} samples: {chance:.3f}"

    def _table(self, by: str) -> Tensor:
        """Every pair's number of one kind, by its name in `Pair`."""
        tables = {
            "correlation": self.tables.correlation,
            "auroc": self.tables.auroc,
            "sae_auroc": self.tables.reverse_auroc,
            "overlap": self.tables.overlap,
        }
        if by not in tables:
            raise SettingError(f"by={by!r} is unknown. Accepted: {', '.join(map(repr, tables))}.")
        return tables[by]

    def _pair(self, feature: int, sae_feature: int) -> Pair:
        tables = self.tables
        return Pair(
            feature=feature,
            sae_feature=sae_feature,
            correlation=float(tables.correlation[feature, sae_feature]),
            auroc=float(tables.auroc[feature, sae_feature]),
            sae_auroc=float(tables.reverse_auroc[feature, sae_feature]),
            overlap=float(tables.overlap[feature, sae_feature]),
            url=self.sae.url(sae_feature),
        )

    @public
    def sae_places(self, sae_feature: int, n: int) -> list[SampleRow]:
        """The rows and positions at which an SAE feature is strongest, one of each row, strongest first."""
        return self._rows(self.sae_top[:, sae_feature].tolist(), n)

    def _rows(self, samples: Sequence[int], n: int) -> list[SampleRow]:
        """Find where the first n samples of different rows lie."""
        places = self._places()
        by_row: dict[int, SampleRow] = {}
        for sample in samples:
            row, position = places[sample].tolist()
            by_row.setdefault(row, SampleRow(row, position))
        return list(by_row.values())[:n]

    def _places(self) -> Int[Tensor, "sample two"]:
        """Find every sample's row, and its position among the row's real ones."""
        if not self.features.bound_engine("compare").per_position:
            return torch.stack([torch.arange(len(self.inputs)), torch.zeros(len(self.inputs), dtype=torch.long)], 1)
        return self.inputs.sample_places

    def _view(self, pair: Pair, rows: list[SampleRow], *, feature_first: bool) -> View:
        return pair_view(self.features, self.sae, self.hook_name, self.inputs, pair, rows, feature_first=feature_first)


class ComparisonLine(NamedTuple):
    """One line of the printed table: its title, both sides' cells, and what they mean."""

    title: str
    ours: str
    theirs: str
    meaning: str


def _line(title: str, sides: tuple[Any, Any], write: Callable[[Any], str], meaning: str) -> ComparisonLine:
    return ComparisonLine(title, write(sides[0]), write(sides[1]), meaning)


def _best(values: Float[Tensor, " other"], n: int) -> list[int]:
    return values.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:n].tolist()


def _check(feature: int, n: int, kind: str) -> None:
    if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < n:
        raise FeatureCountError(f"There is no {kind} feature {feature!r}. They are numbered 0 to {n - 1}.")


def _counted(side: Matching) -> str:
    return f"{len(side.shared)} of {int(side.counted.sum())} ({side.n_above('random')}; shuffled {side.n_above('shuffled')})"


def _correlated(side: Matching) -> str:
    return f"{side.median():.3f} ({side.median('random'):.3f}; shuffled {side.median('shuffled'):.3f})"


def _threshold(side: Matching) -> str:
    return f"{side.threshold:.3f}"


def _median(values: Tensor) -> str:
    return f"{float(values.nanmedian()):.3f}"


def _pair_row(pair: Pair) -> str:
    name = str(pair.sae_feature)
    linked = name if pair.url is None else f'<a href="{html.escape(pair.url)}">{name}</a>'
    numbers = (pair.correlation, pair.auroc, pair.sae_auroc, pair.overlap)
    cells = [str(pair.feature), linked, *(f"{number:.3f}" for number in numbers)]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
