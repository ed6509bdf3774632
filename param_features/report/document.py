"""Everything that a report's page shows, as plain numbers and strings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.audit import Audit
from param_features.circuits import Circuit
from param_features.fitted import Fitted
from param_features.measure import (
    Example,
    L0Curve,
    label_of,
    output_label,
    top_examples,
    top_logits,
    weight_by_head,
    windows_with,
)
from param_features.params import held_still
from param_features.problem import ModelInputs, real_first
from param_features.report.circuits import circuit_section
from param_features.report.counterparts import CounterpartsWriter, PageTexts
from param_features.report.samples import Vocabulary, digits, input_example, kind_of, text_example
from param_features.report.verdict import verdict_lines
from param_features.sae import Comparison

_COUNTED, _NAMED, _MOVED = 50, 20, 10
_BINS = 40
_COUNTS = ("n_samples", "n_held_out")
_LISTED = 8


@dataclass(frozen=True)
class PageReadings:
    """Activations and codes of the features on the report's inputs.

    Attributes:
        acts: Activations, each row's real positions first; pos is 1 where a sample is an input.
        strengths: By what samples are ranked; None for shares of the activations.
        is_kept: True where a feature's code is not zero.
        is_real: False at padding.
    """

    acts: Float[Tensor, "batch pos feature"]
    strengths: Float[Tensor, "batch pos feature"] | None
    is_kept: Bool[Tensor, "batch pos feature"]
    is_real: Bool[Tensor, "batch pos"]


def read_page(features: Fitted, inputs: ModelInputs) -> PageReadings:
    """Read activations and codes in one pass, and put each row's real positions first."""
    readings = features.dictionary.read(features.bound_engine("report"), features.question, inputs)
    acts, is_kept, is_real = readings.activations, readings.codes != 0, readings.is_real
    strengths = features.dictionary.strengths(readings)
    if not features.bound_engine("report").per_position:
        strengths = None if strengths is None else strengths.unsqueeze(1)
        return PageReadings(acts.unsqueeze(1), strengths, is_kept.unsqueeze(1), is_real.unsqueeze(1))
    strengths = None if strengths is None else real_first(strengths, inputs)
    is_kept = real_first(is_kept.float(), inputs) > 0
    return PageReadings(real_first(acts, inputs), strengths, is_kept, is_real.gather(1, inputs.places))


def contents(
    features: Fitted,
    inputs: ModelInputs,
    curve: L0Curve | None,
    *,
    n_examples: int,
    comparison: Comparison | None = None,
    audit: Audit | None = None,
    circuit: Circuit | None = None,
) -> dict[str, Any]:
    """Collect the page's data: an overview, and each feature's examples, histogram, tokens, logits, weight and neighbours.

    Cost: one pass of activations over the inputs, and one forward-mode pass over each feature's top examples.

    Args:
        features: Bound to a model.
        inputs: Where to look.
        curve: Reconstruction error by l0; components have none.
        n_examples: Examples shown for each feature.
        comparison: With an SAE, on the same inputs.
        audit: Claims about the features beside controls.
        circuit: A graph in which these features may be nodes.
    """
    page = {"overview": overview(features, inputs, curve) | {"curve": None if curve is None else _lines(curve)}}
    writer = _Writer(features, inputs, read_page(features, inputs), n_examples)
    counterparts = None if comparison is None else CounterpartsWriter(comparison, writer.texts)
    rows = [writer.feature(k, counterparts) for k in range(features.n_features)]
    if counterparts is not None:
        page["sae"] = counterparts.section()
    if audit is not None:
        page["audit"] = audit_section(audit)
    if circuit is not None:
        page["circuit"] = circuit_section(circuit, writer.vocabulary, features.params, features.n_features)
    return page | {"kind": writer.kind, "features": rows, "vocabulary": writer.vocabulary.strings}


def overview(features: Fitted, inputs: ModelInputs, curve: L0Curve | None) -> dict[str, Any]:
    """Model, parameters, settings and metrics beside their controls."""
    metrics, config = features.metrics, features.config
    controls = {name: metrics[name] for name in metrics if name.startswith("control_")}
    return {
        "facts": [
            ["model", features.bound_engine("report").adapter.description],
            ["parameters", ", ".join(features.params)],
            ["divergence", f"{features.divergence.name}, in {features.divergence.unit}"],
            ["reference", features.reference],
            ["method", " ".join(str(config[key]) for key in ("method", "format") if key in config) or "l3d"],
            [features.dictionary.kind, str(features.n_features)],
            ["samples fitted / held out", " / ".join(f"{metrics[name]:,.0f}" for name in _COUNTS if name in metrics)],
            ["shown on", f"{len(inputs):,} sequences" if inputs.tokens is not None else f"{len(inputs):,} inputs"],
        ],
        "metrics": [[name, digits(metrics[name]), metrics.remark(name)] for name in metrics.listed],
        "error": digits(metrics[metrics.score]) if metrics.score in metrics else None,
        "score": metrics.score,
        "controls": {name: digits(value) for name, value in controls.items()},
        "matched_by": metrics.matched_by,
        "verdict": verdict_lines(metrics, curve),
        "measured": features.measured,
        "noun": features.dictionary.kind[:-1].capitalize(),
    }


def audit_section(audit: Audit) -> dict[str, Any]:
    """The audit's table and what it was read from, as the step grows."""
    shown = ("name", "verdict", "rule", "meaning")
    rows = [
        {key: getattr(row, key) for key in shown}
        | {"value": None if row.value is None else digits(row.value)}
        | {"controls": {name: digits(value) for name, value in row.controls.items()}}
        for row in audit.rows
    ]
    n_left = len(audit.rows) - audit.n_passed - audit.n_failed
    counts = f"{audit.n_passed} of {len(audit.rows)} claims pass, {audit.n_failed} fail, {n_left} not run"
    title = f"{counts}. A row passes when its value keeps to "
    return {
        "title": f"{title}the limit and beats the controls that the limit names; the other controls are for comparison.",
        "rows": rows,
        "steps": list(audit.steps),
        "curves": {name: [digits(value) for value in curve] for name, curve in audit.curves.items()},
    }


def _lines(curve: L0Curve) -> dict[str, Any]:
    errors = {name: [digits(error) for error in row] for name, row in curve.errors.items()}
    return {"l0": [digits(l0) for l0 in curve.l0s], "errors": errors, "n_samples": curve.n_samples}


class _Writer:
    """Writes every feature's entry from one pass over the inputs."""

    def __init__(self, features: Fitted, inputs: ModelInputs, readings: PageReadings, n_examples: int) -> None:
        self.features, self.inputs, self.readings, self.n_examples = features, inputs, readings, n_examples
        self.engine = features.bound_engine("report")
        self.kind = kind_of(inputs, per_position=self.engine.per_position)
        self.rows = inputs.token_rows if self.kind == "tokens" else None
        self.vocabulary = Vocabulary()
        self.folds = {name: record.fold for name, record in features.params.items()}
        self.gram = features.v_out.gram().cpu()
        to_strings = self.engine.adapter.to_strings
        strings = [to_strings(row) for row in self.rows or []]
        self.texts = PageTexts(strings, readings.acts, self.vocabulary, windows_with(strings))
        self.outputs = None if self.kind == "tokens" else _outputs(features, inputs)

    def feature(self, k: int, counterparts: CounterpartsWriter | None) -> dict[str, Any]:
        """Everything that the page shows of one feature."""
        acts = self.readings.acts[..., k][self.readings.is_real]
        best = self._best(k)
        return {
            "label": self._label(best[:_NAMED]),
            "density": digits(float(self.readings.is_kept[..., k][self.readings.is_real].double().mean())),
            "largest": digits(float(acts[acts.abs().argmax()])),
            "examples": [self._shown(k, example, counterparts) for example in best[: self.n_examples]],
            "histogram": histogram(acts),
            **self._logits(k, best),
            **self._tokens(best),
            "weight": {name: [digits(value) for value in share.tolist()] for name, share in self._weight(k).items()},
            "nearest": self._nearest(k),
            **self._part(k),
            **({} if counterparts is None else counterparts.feature(k)),
        }

    def _part(self, k: int) -> dict[str, Any]:
        """The one matrix that it lies in, with the largest entries of what it writes and reads there."""
        part = self.features.dictionary.part_of(k)
        if part is None:
            return {}
        sides = {"writes": part.U.cpu(), "reads": part.V.cpu()}
        entries = {
            side: [
                [place, digits(float(vector[place]))] for place in vector.abs().argsort(descending=True)[:_LISTED].tolist()
            ]
            for side, vector in sides.items()
        }
        return {
            "part": {
                "site": part.site,
                "number": part.number,
                "size": digits(float(part.U.norm() * part.V.norm())),
                **entries,
            }
        }

    def _label(self, best: Sequence[Example]) -> str:
        if self.outputs is None:
            return label_of(best, self.texts.usual)
        return output_label([int(self.outputs[example.row, example.position].argmax()) for example in best])

    def _weight(self, k: int) -> dict[str, Float[Tensor, " head"]]:
        return weight_by_head(self.features.direction(k), self.folds)

    def _best(self, k: int) -> list[Example]:
        to_strings = self.engine.adapter.to_strings
        n, strengths = max(_COUNTED, self.n_examples), self.readings.strengths
        return top_examples(self.readings.acts, k, self.rows, to_strings, n=n, strengths=strengths)

    def _shown(self, k: int, example: Example, counterparts: CounterpartsWriter | None) -> dict[str, Any]:
        if self.outputs is None:
            marks = {} if counterparts is None else {"marks": counterparts.marks(k, example)}
            return text_example(example, self.vocabulary) | marks
        return input_example(example, self.inputs, self.outputs, self.kind)

    def _tokens(self, best: Sequence[Example]) -> dict[str, Any]:
        if self.kind != "tokens":
            return {}
        on = Counter(example.tokens[example.position] for example in best)
        following = Counter(example.next_token for example in best if example.next_token is not None)
        return {"on": self._numbered(on), "next": self._numbered(following)}

    def _numbered(self, counts: Mapping[str, int]) -> list[list[int]]:
        return [[self.vocabulary.number(token), n] for token, n in Counter(counts).most_common(_LISTED)]

    def _logits(self, k: int, best: Sequence[Example]) -> dict[str, Any]:
        few = best[:_MOVED]
        rows, positions = self.inputs.chosen([example.row for example in few], [example.position for example in few])
        moved = top_logits(self.engine, self.features.v_out.rows([k]), rows, positions, n=_LISTED)
        return {
            side: [[self.vocabulary.number(token), digits(change)] for token, change in pairs if sign * change > 0]
            for side, sign, pairs in (("up", 1, moved.up), ("down", -1, moved.down))
        }

    def _nearest(self, k: int) -> list[list[float]]:
        cosines = self.gram[k].clone()
        cosines[k] = 0
        order = cosines.abs().argsort(descending=True)[: min(5, len(cosines) - 1)]
        return [[index, digits(float(cosines[index]))] for index in order.tolist()]


def histogram(values: Float[Tensor, " sample"]) -> dict[str, Any]:
    """Count values in 40 equal bins from the smallest to the largest."""
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1.0
    counts = torch.histc(values.double(), _BINS, low, high).long().tolist()
    return {"from": digits(low), "to": digits(high), "counts": counts}


def _outputs(features: Fitted, inputs: ModelInputs) -> Float[Tensor, "batch pos output"]:
    """The outputs at all positions; pos is 1 where a sample is an input."""
    engine = features.bound_engine("report")
    adapter = engine.adapter
    with held_still(adapter.module), torch.no_grad():
        parts = [adapter.run(*part.args, **part.kwargs) for part in map(inputs.rows, torch.arange(len(inputs)).split(256))]
    outputs = torch.cat(parts).float().cpu()
    return outputs if engine.per_position else outputs.flatten(1).unsqueeze(1)
