"""Held-out rows with components masked: how far each sample's output moves, and what the next token then costs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from param_features.fit.components import (
    ComponentDictionary,
    Distance,
    MaskedModel,
    Masks,
    Parts,
    drawn_sources,
    importances_for_masks,
    masks_from,
)
from param_features.gradients import Applied
from param_features.problem import Divergence, ModelInputs

Importances = Mapping[str, Float[Tensor, "row _pos _component"]]
MasksOf = Callable[[Importances], Masks]

_TOGETHER = 1024
"""Samples that a pass takes together."""

_SIGN_STEP = 0.1
_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Candidate:
    """Components of every matrix and their importances on some rows: those of a fit, or of what it must do better than.

    Attributes:
        parts: U and V of each site.
        importances: In [0, 1], by site; zero at padding.
    """

    parts: Mapping[str, Parts]
    importances: Importances


@dataclass(frozen=True, eq=False)
class Outcome:
    """What masks did.

    Attributes:
        distances: D of every sample, row by row.
        loss: Mean cross-entropy of the next token; NaN where the outputs are no logits of tokens.
    """

    distances: Float[Tensor, " sample"]
    loss: float

    @property
    def mean(self) -> float:
        """Mean D over samples."""
        return float(self.distances.mean())


class MaskedRows:
    """Some rows, run clean once, then under any masks. Use it within `model.held()`.

    Memory: the rows' clean outputs and what each matrix is applied to.
    """

    def __init__(self, model: MaskedModel, divergence: Divergence, inputs: ModelInputs) -> None:
        """Run the rows clean."""
        self.model, self.inputs, self.distance = model, inputs, Distance(divergence)
        self.weights = {site.name: site.weight() for site in model.sites}
        self.chunks = torch.arange(len(inputs)).split(max(1, _TOGETHER // inputs.n_pos))
        passes = [model.clean(inputs.rows(rows)) for rows in self.chunks]
        self.clean = [each.output for each in passes]
        self.applied: dict[str, Applied] = {
            name: torch.cat([each.applied[name] for each in passes]) for name in self.weights
        }
        self._real = {
            name: torch.cat([_filled(each.real[name], each.applied[name]) for each in passes]) for name in self.weights
        }
        self._following = _following(model, inputs, self.clean[0].shape[1])

    @property
    def row_of_sample(self) -> Int[Tensor, " sample"]:
        """The row of every sample."""
        if not self.model.engine.per_position:
            return torch.arange(len(self.inputs))
        is_sample = self.inputs.sample_mask
        if is_sample is None:
            return torch.arange(len(self.inputs)).repeat_interleave(self.inputs.n_pos)
        return is_sample.cpu().nonzero()[:, 0]

    def by_row(self, outcome: Outcome) -> Float[Tensor, " row"]:
        """Σ D of each row: samples of one row are no independent draws, rows are."""
        sums = torch.zeros(len(self.inputs), dtype=torch.float64)
        return sums.index_add_(0, self.row_of_sample, outcome.distances.double())

    def real(self, name: str) -> Bool[Tensor, "row pos"]:
        """Which positions of a site are no padding."""
        return self._real[name]

    @torch.no_grad()
    def candidate(self, dictionary: ComponentDictionary) -> Candidate:
        """A fit's components with their importances here."""
        found: dict[str, list[Tensor]] = {name: [] for name in dictionary.parts}
        for rows in self.chunks:
            applied = {name: values[rows] for name, values in self.applied.items()}
            inner = {name: parts.inner(applied[name]) for name, parts in dictionary.parts.items()}
            for name, z in dictionary.net(inner, applied).items():
                found[name].append(importances_for_masks(z) * self.real(name)[rows].unsqueeze(-1))
        return Candidate(dictionary.parts, {name: torch.cat(each) for name, each in found.items()})

    @torch.no_grad()
    def masked(self, candidate: Candidate, masks_of: MasksOf) -> Outcome:
        """Run the rows under masks that are made from their importances. Cost: a forward pass."""
        remainders = self._remainders(candidate)
        outputs = [self._output(candidate, masks_of, remainders, rows) for rows in self.chunks]
        return self._outcome(outputs)

    def clean_outcome(self) -> Outcome:
        """The rows without masks: D is 0."""
        return self._outcome(self.clean)

    def stochastic(self, candidate: Candidate, n_draws: int, generator: torch.Generator) -> Outcome:
        """All masks drawn uniformly between importance and 1, Δ's between 0 and 1: the mean over some draws."""
        drawn = [
            self.masked(candidate, lambda importances: masks_from(importances, drawn_sources(importances, generator)))
            for _ in range(n_draws)
        ]
        distances = torch.stack([outcome.distances for outcome in drawn]).mean(0)
        return Outcome(distances, sum(outcome.loss for outcome in drawn) / n_draws)

    def adversarial(self, candidate: Candidate, steps: Collection[int], generator: torch.Generator) -> dict[int, Outcome]:
        """The largest D that an adversary has met after so many steps.

        Its sources, one for each component and one for each Δ, are the same for all rows and positions; they start anywhere
        and climb D by the sign of its gradient, 0.1 at a time. Cost: a forward and a backward pass a step.

        Source: VPD (Goodfire, 2026), adversarial evaluation; there the last D is taken, not the largest.
        """
        remainders, found = self._remainders(candidate), {}
        sources = {
            name: torch.rand(parts.n + 1, generator=generator).to(parts.U).requires_grad_()
            for name, parts in candidate.parts.items()
        }
        worst: Outcome | None = None
        for step in range(max(steps) + 1):
            outcome = self._climbed(candidate, sources, remainders)
            if worst is None or outcome.mean > worst.mean:
                worst = outcome
            if step in steps:
                found[step] = worst
        return found

    def _climbed(self, candidate: Candidate, sources: Mapping[str, Tensor], remainders: Mapping[str, Tensor]) -> Outcome:
        """What the sources do; then they are a step further."""
        outputs = []
        for rows, clean in zip(self.chunks, self.clean, strict=True):
            with torch.enable_grad():
                output = self._output(candidate, lambda importances: _shared(importances, sources), remainders, rows)
                self.distance(output, clean).sum().backward(inputs=list(sources.values()))
            outputs.append(output.detach())
        with torch.no_grad():
            for source in sources.values():
                if source.grad is not None:
                    source.add_(source.grad.sign(), alpha=_SIGN_STEP).clamp_(0, 1)
                source.grad = None
        return self._outcome(outputs)

    def _output(
        self, candidate: Candidate, masks_of: MasksOf, remainders: Mapping[str, Tensor], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "sample d_output"]:
        masks = masks_of({name: values[rows] for name, values in candidate.importances.items()})
        return self.model.masked(self.inputs.rows(rows), candidate.parts, masks, remainders)

    def _remainders(self, candidate: Candidate) -> dict[str, Tensor]:
        return {name: parts.remainder(self.weights[name]) for name, parts in candidate.parts.items()}

    @torch.no_grad()
    def _outcome(self, outputs: list[Float[Tensor, "sample d_output"]]) -> Outcome:
        """In float64 where the device has it: D of nearly equal outputs is a small difference of large numbers."""
        distances, total, start = [], 0.0, 0
        for output, clean in zip(outputs, self.clean, strict=True):
            output, clean = (side if side.device.type == "mps" else side.double() for side in (output, clean))
            distances.append(self.distance(output, clean).cpu())
            if self._following is not None:
                ids = self._following[start : start + len(output)].to(output.device)
                total += float(functional.cross_entropy(output, ids, ignore_index=_IGNORED, reduction="sum"))
            start += len(output)
        n_tokens = 0 if self._following is None else int((self._following != _IGNORED).sum())
        return Outcome(torch.cat(distances), total / n_tokens if n_tokens else float("nan"))


def _filled(real: Bool[Tensor, "row pos"] | None, applied: Applied) -> Bool[Tensor, "row pos"]:
    return torch.ones(applied.shape[:2], dtype=torch.bool, device=applied.device) if real is None else real


def whole_without_remainder(importances: Importances) -> Masks:
    """All components on, Δ off."""
    return _without_remainder({name: torch.ones_like(g) for name, g in importances.items()})


def importance_as_mask(importances: Importances) -> Masks:
    """As much of each component as its importance says, Δ off."""
    return _without_remainder(importances)


def rounded(importances: Importances) -> Masks:
    """Components of any importance on, all others and Δ off."""
    return _without_remainder({name: (g > 0).to(g) for name, g in importances.items()})


def all_zero(importances: Importances) -> Masks:
    """Nothing of the matrices is left."""
    return _without_remainder({name: torch.zeros_like(g) for name, g in importances.items()})


def _without_remainder(masks: Importances) -> Masks:
    return Masks(dict(masks), {name: mask.new_zeros(mask.shape[:-1]) for name, mask in masks.items()})


def _shared(importances: Importances, sources: Mapping[str, Float[Tensor, " _component_and_remainder"]]) -> Masks:
    """The masks of sources that are the same at every position of every row."""
    return masks_from(importances, {name: sources[name].expand(*g.shape[:-1], -1) for name, g in importances.items()})


def _following(model: MaskedModel, inputs: ModelInputs, d_output: int) -> Int[Tensor, " sample"] | None:
    """The token after each sample's; `_IGNORED` after the last. None where outputs are no logits of tokens."""
    adapter, ids = model.engine.adapter, inputs.tokens
    if ids is None or not model.engine.per_position or not adapter.predicts_tokens or adapter.d_vocab != d_output:
        return None
    following = torch.full_like(ids, _IGNORED)
    following[:, :-1] = ids[:, 1:] if inputs.mask is None else ids[:, 1:].masked_fill(~inputs.mask[:, 1:], _IGNORED)
    return following.flatten() if inputs.sample_mask is None else following[inputs.sample_mask]
