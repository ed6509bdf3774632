"""`pf.decompose`: from a model, parameter names and inputs to features with their controls."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from param_features.adapters import Adapter, adapter_for
from param_features.background import ReadBackground, read_background
from param_features.contrast import FitCall, Stores, fit_beside
from param_features.decompose import (
    Fit,
    FitSettings,
    HessianSettings,
    OffTarget,
    fit_hessian,
    fit_l3d,
)
from param_features.directions import FORMATS
from param_features.divergence import Divergence, Reference, check_curved, check_reference, read_divergence
from param_features.errors import InputError
from param_features.features import ParamFeatures
from param_features.gradients import (
    GradientEngine,
    GradientStore,
    Harvester,
    HarvestSettings,
    OutputInfo,
    SampleGradients,
    SamplePlan,
    check_influence,
    inspect_output,
    limited,
    plan_engine,
    plan_samples,
)
from param_features.inputs import ModelInputs, read_inputs
from param_features.measure import MeasureSettings, Metrics, held_out_metrics
from param_features.pairs import PairInputs, as_pairs, check_pairs, read_pairs
from param_features.params import ParamInfo, ParamSpec, ParamSubset, select
from param_features.readiness import check_ready, training_notice
from param_features.record import ParamRecord
from param_features.references import collect_references
from param_features.request import Request, check_request, default_fit

_HELD_OUT_PAIRS = 10
"""Of few pairs a quarter is held out at least, up to so many: a tenth of 40 would be four."""


def list_params(model: Any) -> list[ParamInfo]:
    """Every parameter's name, shape, number of entries and parts, by the library's own names; tied weights once."""
    adapter = adapter_for(model)
    parts = [name[:-1].rpartition("[") for name in adapter.parts()]
    return [
        ParamInfo(
            view.name, tuple(view.shape), view.shape.numel(), tuple(part for whole, _, part in parts if whole == view.name)
        )
        for view in adapter.views().values()
    ]


def decompose(
    model: Any,
    params: ParamSpec,
    tokens: Any = None,
    *,
    inputs: Any = None,
    n_features: int = 100,
    rank: int = 1,
    format: str = "matrix",
    l0: float | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = "sample",
    background: Any = None,
    output: Callable[[Any], Tensor] | None = None,
    tokenizer: Any = None,
    method: str = "l3d",
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    n_samples: int | None = None,
    harvest: HarvestSettings | None = None,
    fit: FitSettings | HessianSettings | None = None,
    measure: MeasureSettings | None = None,
) -> ParamFeatures:
    """Find directions in the chosen parameters, each of which matters for few inputs.

    The model is run in evaluation mode and is left exactly as it was: weights, hooks, gradient flags, modes and random
    state, after success, after an error and after Ctrl-C. Ctrl-C during the fit returns the features fitted so far.

    Cost: one forward pass of the data and one backward pass of the layers above the parameters per position taken;
    then `steps` small optimiser steps. About two minutes for one W_K of a 260,000-parameter model and 65,536 samples on
    two cores. A step of `method="hessian"` costs two passes of the model per feature. Memory: the gradients, factored or
    dense, whichever is smaller.

    Args:
        model: A HookedTransformer, a TransformerBridge, a Hugging Face model, any of these inside nnsight, or any module;
            see `pf.describe`.
        params: A name (`"blocks.4.attn.W_K"`), a glob, a compiled regex or a list of these; see `pf.list_params`. Part of a
            fused matrix: `"transformer.h.4.attn.c_attn.weight[k]"`.
        tokens: Integers [batch, pos], a list of strings, a column of a dataset, or what a tokenizer returns, whose
            `attention_mask` is heeded: padding is never a sample.
        inputs: Instead of tokens: a tensor, or a tuple or dict of arguments, with the batch first. An `attention_mask`
            among them marks padding.
        n_features: Number of features.
        rank: Factors per feature and parameter; a bias has one at most.
        format: How a feature is held during the fit: `"matrix"` (`rank` outer products of d_out with d_in), `"cp"` (`rank`
            outer products over all axes: heads, within heads and d_in for W_K) or `"tucker"` (rank `rank` along each axis).
            The result is in the matrix format whichever it is. The Hessian method takes `"matrix"` alone.
        l0: Mean number of features kept per sample; n_features / 20, at least 1, by default.
        divergence: `"kl"`, `"se"`, `"sum"`, your own function of (output, reference) to one scalar per sample, or `"auto"`:
            KL for logits and squared error otherwise.
        reference: What outputs are compared with: `"sample"`, `"mean"`, `"uniform"`, `"label"`, or your own outputs,
            [d_output] or [n_references, d_output]. Or pairs of prompts, which replace `tokens`: a list of (clean, corrupted)
            texts or ids, or `pf.Pairs(clean, corrupted)`. Every clean prompt's last position is then compared with that of
            its own corrupted partner; `activations` average over partners' outputs.
        background: Samples that the features are to leave alone: any tokens (or inputs), or `pf.Background(data, …)` with
            settings. The first half of the features then rebuilds the target's gradients under a penalty on what they do on
            the background, the second half keeps the background's reconstruction; `features.on_target` tells them apart.
        output: Takes what the model returns and gives the tensor to be explained, batch first; by default the returned
            tensor, or its `.logits`.
        tokenizer: For strings, where the model carries none: a Hugging Face tokenizer.
        method: `"l3d"` fits directions to gradients; `"hessian"` climbs to directions along which some samples' divergence
            from their own output is steeply curved, and which do not interfere; for `"kl"` and `"se"`.
        steps: Optimiser steps; overrides `fit.steps`.
        seed: Of every random choice. Same seed, same machine, same result.
        progress: Whether to show progress bars and notices, on the error stream.
        n_samples: Samples to harvest; overrides `harvest.n_samples`.
        harvest: Further settings of harvesting.
        fit: Further settings of the fit: `pf.FitSettings` for `"l3d"`, `pf.HessianSettings` for `"hessian"`.
        measure: Further settings of measuring.

    Returns:
        The features, with metrics on held-out sequences beside the same metrics of three controls.

    Raises:
        UnknownParameterError: A name matches nothing; lists the nearest.
        EmptySelectionError: No parameter was asked for.
        InputError: Tokens or inputs that the model cannot take.
        FeatureCountError: `n_features` or `l0` out of range.
        RankError: `rank` exceeds what the format can use of the largest chosen matrix.
        SettingError: Another setting is out of range or unknown.
        SampleCountError: Fewer training samples than features.
        NonFiniteError: NaN or infinity in weights, inputs, outputs or gradients.
        NoGradientError: A chosen parameter does not influence the output.
        OutputError: The model returns neither a tensor nor an object with `.logits`, and there is no `output`.
        ModelStateError: The model is on the meta device, spread over devices, or mixes the rows of a batch.
        MemoryEstimateError: The gradients would not fit in memory.

    Source: L3D (arXiv 2504.00194); its first draft for `method="hessian"`, see `decompose/hessian.py` for what differs; the
        metrics' controls are this library's own.
    """
    l0 = max(1.0, n_features / 20) if l0 is None else float(l0)
    request = Request(method, n_features, rank, format, l0, seed, progress)
    harvest = harvest or HarvestSettings()
    harvest = harvest if n_samples is None else replace(harvest, n_samples=n_samples)
    fit = fit or default_fit(request)
    fit = fit if steps is None else replace(fit, steps=steps)
    adapter = adapter_for(model).reading(tokenizer=tokenizer, output=output)
    subset = select(adapter.views(), params, adapter.aliases(), adapter.parts())
    check_request(request, fit, subset)
    check_ready(adapter)
    subset.check_finite()
    spec = as_pairs(reference)
    pairs = None if spec is None else read_pairs(adapter, spec, tokens, inputs)
    data = read_inputs(adapter, tokens, inputs) if pairs is None else pairs.clean
    found = inspect_output(adapter, data)
    chosen = read_divergence(divergence, is_logits=found.is_logits)
    if pairs is None:
        check_reference(reference, chosen)
    else:
        check_pairs(adapter, pairs, found, chosen, method)
    other = None if background is None else read_background(adapter, background, found, request.n_features, method)
    if method == "hessian":
        check_curved(chosen)
    if divergence == "auto":
        is_known = "is" if found.is_logits else "is not"
        request.say(f"divergence: {chosen.name!r}, since the output of shape {found.shape} {is_known} known to be logits.")
    notice = training_notice(adapter)
    if notice is not None:
        request.say(notice)
    run = Run(adapter, subset, data, found, chosen, request, harvest, fit, measure or MeasureSettings(), pairs, other)
    return run.features(reference)


@dataclass(frozen=True)
class Run:
    """One decomposition after its inputs were checked."""

    adapter: Adapter
    subset: ParamSubset
    data: ModelInputs
    output: OutputInfo
    divergence: Divergence
    request: Request
    harvest: HarvestSettings
    fit: FitSettings | HessianSettings
    measure: MeasureSettings
    pairs: PairInputs | None = None
    background: ReadBackground | None = None

    def features(self, reference: Any) -> ParamFeatures:
        """Harvest, fit and measure."""
        engine = plan_engine(self.adapter, self.subset, self.data, self.output)
        check_influence(engine, self.data)
        for name, why in engine.routes.why_dense.items():
            self.request.say(f"{name}: dense gradients ({why}); slower, the same answer.")
        drawn, pool = self._references(engine, reference)
        harvester = Harvester(engine, self.divergence, drawn, self.harvest)
        plan, train, held_out = self._harvest(harvester)
        fit = partial(self._fit, engine, plan)
        if self.background is None:
            found, extra, record = fit(train), {}, {}
        else:
            found, extra, record = self._contrasted(fit, engine, (train, held_out), reference)
        metrics = Metrics({**self._metrics(found, train, held_out), **extra})
        for control in metrics.matched_by:
            self.request.say(f"{control} reconstructs as well as the fit: these features have shown nothing beyond it.")
        return self._result(engine, found, metrics, drawn, pool, plan, record)

    def _metrics(self, found: Fit, train: SampleGradients, held_out: SampleGradients) -> Metrics:
        return held_out_metrics(
            found.v_in,
            found.v_out,
            found.threshold,
            train=train,
            held_out=held_out,
            subset=self.subset,
            rank=self.request.rank,
            l0=self.request.l0,
            generator=self._generator(4),
            encoder=found.encoder,
        )

    def _contrasted(
        self, fit: FitCall, engine: GradientEngine, target: Stores, reference: Any
    ) -> tuple[Fit, dict[str, float], dict[str, Any]]:
        """Features that leave the background alone, metrics beside a fit without it, and the record."""
        asked, background = self.request, self.background
        assert background is not None
        kind, given = ("sample", None) if self.pairs is not None else (reference, self._given(reference))
        n_own, settings = background.settings.n_own(asked.n_features), self.harvest
        there = background.stores(engine, self.divergence, kind, given, settings, n_own, self._generator(5), asked.progress)
        sizes = {"n_features": asked.n_features, "rank": asked.rank, "l0": asked.l0}
        return fit_beside(fit, target, there, background.settings, generator=self._generator(6), **sizes)

    def _references(self, engine: GradientEngine, reference: Any) -> tuple[Reference, Tensor]:
        """What samples are compared with during the fit, and what activations average over later."""
        n, generator = self.measure.n_references, self._generator(1)
        if self.pairs is not None:
            rows = torch.randperm(len(self.data), generator=generator)[:n]
            return Reference("pairs"), self.pairs.references(engine, self.divergence, rows)
        pool = collect_references(engine, self.divergence, self.data, reference, self._given(reference), n, generator)
        kind = reference if isinstance(reference, str) else "given"
        return Reference(kind, pool if kind in ("mean", "given") else None), pool

    def _fit(
        self,
        engine: GradientEngine,
        plan: SamplePlan,
        store: SampleGradients,
        n_features: int | None = None,
        off_target: OffTarget | None = None,
    ) -> Fit:
        asked = self.request
        n_features = asked.n_features if n_features is None else n_features
        l0 = min(asked.l0, n_features)
        shared = {"n_features": n_features, "rank": asked.rank, "l0": l0, "progress": asked.progress}
        generator = self._generator(3)
        if isinstance(self.fit, HessianSettings):
            divergence, rows = check_curved(self.divergence), self.data.rows(plan.train)
            return fit_hessian(engine, divergence, rows, store, settings=self.fit, generator=generator, **shared)
        shared |= {"format": FORMATS[asked.format], "modes": {view.name: view.modes for view in self.subset.views}}
        return fit_l3d(store, settings=self.fit, generator=generator, off_target=off_target, **shared)

    def _generator(self, stage: int) -> torch.Generator:
        """A generator for each stage, so that one stage's draws never shift another's."""
        return torch.Generator().manual_seed(self.request.seed * 16 + stage)

    def _harvest(self, harvester: Harvester) -> tuple[SamplePlan, SampleGradients, SampleGradients]:
        settings, is_paired = limited(self.harvest, harvester, self.data), self.pairs is not None
        plan = plan_samples(
            self.data,
            per_position=self.output.per_position and not is_paired,
            settings=settings,
            n_features=self.request.n_features,
            generator=self._generator(0),
            n_held_out=_HELD_OUT_PAIRS if is_paired else 0,
        )
        generator = self._generator(2)
        train = self._store(harvester, plan.train, plan.n_slots, generator, "harvest")
        train.check_gradients()
        return plan, train, self._store(harvester, plan.held_out, plan.n_slots, generator, "held out")

    def _store(
        self, harvester: Harvester, rows: Tensor, n_slots: int, generator: torch.Generator, title: str
    ) -> GradientStore:
        own = None if self.pairs is None else self.pairs.own(harvester.engine, self.divergence, rows)
        progress = self.request.progress
        return harvester.store(self.data.rows(rows), n_slots, generator, progress=progress, title=title, own=own)

    def _given(self, reference: str | Tensor) -> Tensor | None:
        """The user's own outputs as references."""
        if isinstance(reference, str):
            return None
        if reference.dim() not in (1, 2) or reference.shape[-1] != self.output.d_output:
            raise InputError(
                f"reference has shape {tuple(reference.shape)}. Outputs here have {self.output.d_output} numbers: give "
                f"[{self.output.d_output}] or [n_references, {self.output.d_output}]."
            )
        device = self.subset.views[0].tensor.device
        return self.divergence.to_reference(reference.to(device).float().reshape(-1, self.output.d_output))

    def _result(
        self,
        engine: GradientEngine,
        found: Fit,
        metrics: Metrics,
        drawn: Reference,
        pool: Tensor,
        plan: SamplePlan,
        record: dict[str, Any],
    ) -> ParamFeatures:
        fingerprint = self.subset.fingerprint()
        params = {view.name: ParamRecord.of(view, fingerprint[view.name]) for view in self.subset.views}
        config = {
            **asdict(self.request),
            "harvest": asdict(self.harvest),
            "fit": asdict(self.fit),
            "measure": asdict(self.measure),
            "steps_done": found.steps_done,
            "model": self.adapter.description,
            "output": None if self.adapter.given_output is None else _name_of(self.adapter.given_output),
            **record,
        }
        return ParamFeatures(
            v_in=found.v_in,
            v_out=found.v_out,
            threshold=found.threshold,
            encoder=found.encoder,
            params=params,
            divergence=self.divergence,
            reference=drawn.kind,
            references=pool,
            metrics=metrics,
            config=config,
            examples=self.data.rows(plan.held_out[: self.measure.n_examples]),
            engine=engine,
        )


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
