"""A model and its data, read and checked: what gradients are taken of, for a decomposition and for a store alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from param_features.adapters import Adapter
from param_features.divergence import Divergence, Reference, check_reference, read_divergence
from param_features.errors import InputError
from param_features.gradients import (
    GradientEngine,
    HarvestSettings,
    OutputInfo,
    OwnReferences,
    SamplePlan,
    check_influence,
    inspect_output,
    plan_engine,
    plan_samples,
)
from param_features.inputs import ModelInputs, read_inputs
from param_features.pairs import PairInputs, as_pairs, check_pairs, read_pairs
from param_features.params import ParamSubset
from param_features.readiness import training_notice
from param_features.references import collect_references

_HELD_OUT_PAIRS = 10
"""Of few pairs a quarter is held out at least, up to so many: a tenth of 40 would be four."""

PLAN, REFERENCES, HARVEST, FIT, MEASURE, BACKGROUND, BESIDE = range(7)
"""What draws at random."""


def stage_generator(seed: int, stage: int) -> torch.Generator:
    """A generator for each stage, so that one stage's draws never shift another's."""
    return torch.Generator().manual_seed(seed * 16 + stage)


@dataclass(frozen=True)
class Source:
    """What gradients are taken of, and what outputs are compared with.

    Attributes:
        reference: A name, or the user's own outputs; `"pairs"` with pairs.
        pairs: Where every sample has a partner; `data` are then the clean prompts.
        kept: References that gradients were already taken with, for `"mean"` and `"given"`.
    """

    adapter: Adapter
    subset: ParamSubset
    data: ModelInputs
    output: OutputInfo
    divergence: Divergence
    reference: str | Tensor
    pairs: PairInputs | None = None
    kept: Tensor | None = None

    def engine(self, say: Callable[[str], None]) -> GradientEngine:
        """Takes the gradients; says which parameters take the slow route.

        Raises:
            NoGradientError: The output is not computed from a parameter.
        """
        engine = plan_engine(self.adapter, self.subset, self.data, self.output)
        check_influence(engine, self.data)
        for name, why in engine.routes.why_dense.items():
            say(f"{name}: dense gradients ({why}); slower, the same answer.")
        return engine

    def references(self, engine: GradientEngine, n: int, generator: torch.Generator) -> tuple[Reference, Tensor]:
        """What samples are compared with during the fit, and what activations average over later."""
        if self.kept is not None and isinstance(self.reference, str):
            return Reference(self.reference, self.kept), self.kept
        if self.pairs is not None:
            rows = torch.randperm(len(self.data), generator=generator)[:n]
            return Reference("pairs"), self.pairs.references(engine, self.divergence, rows)
        pool = collect_references(engine, self.divergence, self.data, self.reference, self.given, n, generator)
        kind = self.reference if isinstance(self.reference, str) else "given"
        return Reference(kind, pool if kind in ("mean", "given") else None), pool

    @property
    def given(self) -> Tensor | None:
        """The user's own outputs as references."""
        reference = self.reference
        if isinstance(reference, str):
            return self.kept if reference == "given" else None
        if reference.dim() not in (1, 2) or reference.shape[-1] != self.output.d_output:
            raise InputError(
                f"reference has shape {tuple(reference.shape)}. Outputs here have {self.output.d_output} numbers: give "
                f"[{self.output.d_output}] or [n_references, {self.output.d_output}]."
            )
        device = self.subset.views[0].tensor.device
        return self.divergence.to_reference(reference.to(device).float().reshape(-1, self.output.d_output))

    def plan(self, settings: HarvestSettings, n_features: int, generator: torch.Generator) -> SamplePlan:
        """Which samples are taken."""
        is_paired = self.pairs is not None
        return plan_samples(
            self.data,
            per_position=self.output.per_position and not is_paired,
            settings=settings,
            n_features=n_features,
            generator=generator,
            n_held_out=_HELD_OUT_PAIRS if is_paired else 0,
        )

    def own(self, engine: GradientEngine, rows: Tensor) -> OwnReferences | None:
        """References that belong to some of the rows; None where they are drawn."""
        return None if self.pairs is None else self.pairs.own(engine, self.divergence, rows)


def read_source(
    adapter: Adapter, subset: ParamSubset, tokens: Any, inputs: Any, *, divergence: Any, reference: Any, method: str = "l3d"
) -> Source:
    """Read and check what the user gave; errors are those of `pf.decompose`."""
    spec = as_pairs(reference)
    pairs = None if spec is None else read_pairs(adapter, spec, tokens, inputs)
    data = read_inputs(adapter, tokens, inputs) if pairs is None else pairs.clean
    output = inspect_output(adapter, data)
    chosen = read_divergence(divergence, is_logits=output.is_logits)
    if pairs is None:
        check_reference(reference, chosen)
    else:
        check_pairs(adapter, pairs, output, chosen, method)
    return Source(adapter, subset, data, output, chosen, reference if pairs is None else "pairs", pairs)


def say_notices(source: Source, asked: Any, say: Callable[[str], None]) -> None:
    """Say which divergence was chosen, where it was left open, and what a model in training is."""
    if asked == "auto":
        is_known = "is" if source.output.is_logits else "is not"
        shape = source.output.shape
        say(f"divergence: {source.divergence.name!r}, since the output of shape {shape} {is_known} known to be logits.")
    notice = training_notice(source.adapter)
    if notice is not None:
        say(notice)
