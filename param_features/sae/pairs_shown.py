"""One text marked twice: by a parameter feature and by an SAE feature."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from param_features.adapters import SparseAutoencoder
from param_features.fitted import Fitted
from param_features.problem import ModelInputs, real_first
from param_features.sae.matching import Pair
from param_features.sae.site import activations_at
from param_features.views import TokenRow, View

_BEFORE, _AFTER = 24, 9


class SampleRow(NamedTuple):
    """A sample: its row of the inputs, and its position among the row's real ones."""

    row: int
    position: int


def pair_view(
    features: Fitted,
    sae: SparseAutoencoder,
    hook_name: str,
    inputs: ModelInputs,
    pair: Pair,
    samples: Sequence[SampleRow],
    *,
    feature_first: bool,
) -> View:
    """Show each sample's text twice, one line per feature; colours are shares of the feature's largest |activation| shown.

    Cost: both features' activations on the samples' rows.
    """
    chosen = inputs.rows(torch.tensor([sample.row for sample in samples], dtype=torch.long))
    ours, theirs = _activations(features, sae, hook_name, chosen, pair)
    strings = _strings(features, chosen)
    lines = [("feature", pair.feature, ours, "+.4f"), ("SAE feature", pair.sae_feature, theirs, ".4f")]
    lines = lines if feature_first else lines[::-1]
    rows = []
    for place, (row, position) in enumerate(samples):
        texts, marked = strings[place], position if strings[place] else 0
        for name, number, acts, style in lines:
            bound = max(float(values.abs().max()) for values in acts) or 1.0
            values = acts[place] if texts else acts[place][position : position + 1]
            title = f"{name} {number}: {float(values[marked]):{style}}"
            rows.append(_row(title, texts or (f"input {row}",), values / bound, marked))
    titles = [f"{name} {number}" for name, number, *_ in lines]
    return View(f"{titles[0]} and {titles[1]}: correlation {pair.correlation:.2f}; each on its own scale", tuple(rows))


def _activations(
    features: Fitted, sae: SparseAutoencoder, hook_name: str, rows: ModelInputs, pair: Pair
) -> tuple[list[Tensor], list[Tensor]]:
    """Both features' activations on each row's positions, the real ones first; one number where a sample is an input."""
    engine = features.bound_engine("view")
    acts = activations_at(engine.adapter, rows, hook_name, per_position=engine.per_position)
    codes = torch.cat([chunk[:, pair.sae_feature] for chunk in sae.encode(acts)])
    strengths = features.activations_on(rows)[..., pair.feature]
    if not engine.per_position:
        return [value.reshape(1) for value in strengths], [value.reshape(1) for value in codes]
    lengths = [len(row) for row in rows.token_rows] or [rows.n_pos] * len(rows)
    at_samples = torch.zeros(strengths.shape, dtype=codes.dtype)
    at_samples[tuple(rows.sample_places.T)] = codes.cpu()
    placed = real_first(strengths.unsqueeze(2), rows)[..., 0], at_samples
    ours, theirs = ([row[:n] for row, n in zip(values, lengths, strict=True)] for values in placed)
    return ours, theirs


def _strings(features: Fitted, rows: ModelInputs) -> list[tuple[str, ...]]:
    engine = features.bound_engine("view")
    if not engine.per_position or rows.tokens is None:
        return [()] * len(rows)
    return [tuple(engine.adapter.to_strings(row)) for row in rows.token_rows]


def _row(title: str, tokens: Sequence[str], values: Tensor, marked: int) -> TokenRow:
    start = max(0, marked - _BEFORE)
    window = slice(start, marked + _AFTER)
    if len(tokens) > marked + 1:
        title = f"{title} «{tokens[marked]}» → {tokens[marked + 1]!r}"
    return TokenRow(title, tuple(tokens[window]), tuple(values.tolist()[window]), marked - start)
