"""`pf.decompose`: from a model, parameter names and inputs to features with their controls."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from param_features.adapters import adapter_for
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
from param_features.divergence import Reference, check_curved
from param_features.estimate.room import fit_in_room
from param_features.estimate.sizes import Sizes
from param_features.factors import FactorStore
from param_features.features import ParamFeatures
from param_features.gradients import (
    GradientEngine,
    GradientStore,
    Harvester,
    HarvestSettings,
    SampleGradients,
    SamplePlan,
    limited,
    near,
)
from param_features.measure import MeasureSettings, Metrics, held_out_metrics
from param_features.memory import free_bytes
from param_features.params import ParamInfo, ParamSpec, select
from param_features.processes import ALONE, Processes, launched
from param_features.readiness import check_present, check_ready
from param_features.record import ParamRecord
from param_features.request import Request, check_request, default_fit
from param_features.resuming import Asked, CheckpointFolder, resumable
from param_features.source import (
    BACKGROUND,
    BESIDE,
    FIT,
    HARVEST,
    MEASURE,
    PLAN,
    REFERENCES,
    Source,
    read_source,
    say_notices,
    stage_generator,
)


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
    params: ParamSpec | None = None,
    tokens: Any = None,
    *,
    inputs: Any = None,
    store: str | PathLike | FactorStore | None = None,
    n_features: int = 100,
    rank: int = 1,
    format: str = "matrix",
    l0: float | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = None,
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
    checkpoint_dir: str | PathLike | None = None,
    checkpoint_every: float = 60.0,
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
        store: Gradients that `pf.harvest` took before, or their directory, instead of a harvest. The parameters, the data,
            the divergence, the reference and the samples are then the store's, and may be left out; what is given must be
            the same. The result is that of a harvest in memory with the store's seed.
        n_features: Number of features.
        rank: Factors per feature and parameter; a bias has one at most.
        format: How a feature is held during the fit: `"matrix"` (`rank` outer products of d_out with d_in), `"cp"` (`rank`
            outer products over all axes: heads, within heads and d_in for W_K) or `"tucker"` (rank `rank` along each axis).
            The result is in the matrix format whichever it is. The Hessian method takes `"matrix"` alone.
        l0: Mean number of features kept per sample; n_features / 20, at least 1, by default.
        divergence: `"kl"`, `"se"`, `"sum"`, your own function of (output, reference) to one scalar per sample, or `"auto"`:
            KL for logits and squared error otherwise.
        reference: What outputs are compared with: `"sample"`, the default, `"mean"`, `"uniform"`, `"label"`, or your own
            outputs, [d_output] or [n_references, d_output]. Or pairs of prompts, which replace `tokens`: a list of (clean,
            corrupted) texts or ids, or `pf.Pairs(clean, corrupted)`. Every clean prompt's last position is then compared
            with that of its own corrupted partner; `activations` average over partners' outputs.
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
        fit: Further settings of the fit: `pf.FitSettings` for `"l3d"`, `pf.HessianSettings` for `"hessian"`. Where none are
            given and a batch of 1,024 samples does not fit in memory, a smaller one is taken, and said.
        measure: Further settings of measuring.
        checkpoint_dir: A folder in which harvest and fit are kept as they go. The same call goes on from there after a kill,
            and ends with the bits of an unbroken one on the same machine; Ctrl-C leaves a checkpoint too. Gradients then lie
            on disk, and how many are taken does not depend on the memory: see docs/how-to/store.md.
        checkpoint_every: Seconds of the fit from one checkpoint to the next; 0 keeps one after every step.

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
        MemoryEstimateError: The gradients, the fit or the controls would not fit in memory; `pf.estimate` tells beforehand.
        StoreError: The store is unfinished or damaged, or was harvested from something else than what is given; or a
            checkpoint is.
        DiskFullError: Gradients or a checkpoint do not fit in `checkpoint_dir`; what was whole stays.

    Source: L3D (arXiv 2504.00194); its first draft for `method="hessian"`, see `decompose/hessian.py` for what differs; the
        metrics' controls are this library's own.
    """
    l0 = max(1.0, n_features / 20) if l0 is None else float(l0)
    processes = launched()
    request = Request(method, n_features, rank, format, l0, seed, progress and processes.is_main)
    kept = None if store is None else FactorStore.open(store)
    harvest = harvest or (HarvestSettings() if kept is None else kept.settings)
    harvest = harvest if n_samples is None else replace(harvest, n_samples=n_samples)
    is_batch_open, fit = fit is None, fit or default_fit(request)
    fit = fit if steps is None else replace(fit, steps=steps)
    adapter = adapter_for(model).reading(tokenizer=tokenizer, output=output)
    names = kept.names if kept is not None and params is None else params or []
    subset = select(adapter.views(), names, adapter.aliases(), adapter.parts())
    check_request(request, fit, subset)
    check_ready(adapter)
    check_present(subset)
    subset.check_finite()
    given = {"divergence": divergence, "method": method}
    if kept is None:
        reference = "sample" if reference is None else reference
        source = read_source(adapter, subset, tokens, inputs, reference=reference, **given)
    else:
        kept.check_count(n_features)
        source = kept.source(adapter, subset, tokens, inputs, reference=reference, settings=harvest, **given)
    found = source.output
    other = None if background is None else read_background(adapter, background, found, request.n_features, method)
    if method == "hessian":
        check_curved(source.divergence)
    say_notices(source, divergence if kept is None else None, request.say)
    is_open = is_batch_open and checkpoint_dir is None  # a resumed fit must find the batch that it began with
    run = Run(source, request, harvest, fit, measure or MeasureSettings(), other, kept, is_open, processes)
    if checkpoint_dir is None:
        return run.features()
    with resumable(checkpoint_dir, checkpoint_every, Asked(source, request, harvest, fit, other, kept)) as (store, folder):
        return replace(run, store=store, folder=folder).features()


@dataclass(frozen=True)
class Run:
    """One decomposition after its inputs were checked.

    Attributes:
        is_batch_open: Whether the fit's batch may be made smaller where memory wants it.
    """

    source: Source
    request: Request
    harvest: HarvestSettings
    fit: FitSettings | HessianSettings
    measure: MeasureSettings
    background: ReadBackground | None = None
    store: FactorStore | None = None
    is_batch_open: bool = False
    processes: Processes = ALONE
    folder: CheckpointFolder | None = None

    def features(self) -> ParamFeatures:
        """Harvest, fit and measure."""
        engine = self.source.engine(self.request.say)
        drawn, pool = self.source.references(engine, self.measure.n_references, self._generator(REFERENCES))
        harvester = Harvester(engine, self.source.divergence, drawn, self.harvest).agreed(self.processes)
        plan = self._plan(harvester)
        return replace(self, fit=self._fit_in_room(harvester, plan))._found(engine, harvester, plan, drawn, pool)

    def _plan(self, harvester: Harvester) -> SamplePlan:
        """Which samples are taken: those of the store where there is one, or as many as fit in memory."""
        if self.store is not None:
            return self.store.plan
        settings = limited(harvester.settings, harvester, self.source.data)
        return self.source.plan(settings, self.request.n_features, self._generator(PLAN))

    def _fit_in_room(self, harvester: Harvester, plan: SamplePlan) -> FitSettings | HessianSettings:
        """Settings of the fit with which the run fits in memory.

        Raises:
            MemoryEstimateError: There are none, or the settings were given.
        """
        if isinstance(self.fit, HessianSettings):
            return self.fit
        if self.store is None:
            like = harvester.probe(self.source.data)
            counts = [len(rows) * plan.n_slots for rows in (plan.train, plan.held_out)]
        else:
            like, counts = self.store.train.rows(slice(0, 2)), [self.store.train.n_samples, self.store.held_out.n_samples]
        asked, free = self.request, free_bytes(self.source.subset.views[0].tensor.device)
        free = self.processes.least(free // self.processes.n_on_machine)
        sizes = Sizes.of(like, *counts, asked.n_features, asked.rank, asked.l0, self.fit, is_stored=self.store is not None)
        return fit_in_room(sizes, free, asked.say, is_batch_open=self.is_batch_open)

    def _found(
        self, engine: GradientEngine, harvester: Harvester, plan: SamplePlan, drawn: Reference, pool: Tensor
    ) -> ParamFeatures:
        train, held_out = self._harvest(harvester, plan)
        fit = partial(self._fit, engine, plan)
        if self.background is None:
            found, extra, record = fit(train), {}, {}
        else:
            found, extra, record = self._contrasted(fit, engine, (train, held_out))
        extra |= {} if self.store is None else self.store.metrics
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
            subset=self.source.subset,
            rank=self.request.rank,
            l0=self.request.l0,
            generator=self._generator(MEASURE),
            encoder=found.encoder,
        )

    def _contrasted(
        self, fit: FitCall, engine: GradientEngine, target: Stores
    ) -> tuple[Fit, dict[str, float], dict[str, Any]]:
        """Features that leave the background alone, metrics beside a fit without it, and the record."""
        asked, background, source = self.request, self.background, self.source
        assert background is not None
        kind, given = ("sample", None) if source.pairs is not None else (source.reference, source.given)
        n_own, settings, generator = background.settings.n_own(asked.n_features), self.harvest, self._generator(BACKGROUND)
        how = settings, n_own, generator, asked.progress, self.processes
        there = background.stores(engine, source.divergence, kind, given, *how)
        sizes = {"n_features": asked.n_features, "rank": asked.rank, "l0": asked.l0}
        return fit_beside(fit, target, there, background.settings, generator=self._generator(BESIDE), **sizes)

    def _fit(
        self,
        engine: GradientEngine,
        plan: SamplePlan,
        store: SampleGradients,
        n_features: int | None = None,
        off_target: OffTarget | None = None,
    ) -> Fit:
        asked, given = self.request, n_features
        n_features = asked.n_features if n_features is None else n_features
        l0 = min(asked.l0, n_features)
        kept = None if self.folder is None else self.folder.checkpoints(store, given, off_target)
        shared = {"n_features": n_features, "rank": asked.rank, "l0": l0, "progress": asked.progress, "checkpoints": kept}
        shared |= {"processes": self.processes}
        generator = self._generator(FIT)
        if isinstance(self.fit, HessianSettings):
            divergence, rows = check_curved(self.source.divergence), self.source.data.rows(plan.train)
            return fit_hessian(engine, divergence, rows, store, settings=self.fit, generator=generator, **shared)
        shared |= {"format": FORMATS[asked.format], "modes": {view.name: view.modes for view in self.source.subset.views}}
        return fit_l3d(store, settings=self.fit, generator=generator, off_target=off_target, **shared)

    def _generator(self, stage: int) -> torch.Generator:
        return stage_generator(self.request.seed, stage)

    def _harvest(self, harvester: Harvester, plan: SamplePlan) -> tuple[SampleGradients, SampleGradients]:
        """Gradients to fit to, and to measure on."""
        if self.store is not None:
            here = self.store.on(self.source.subset.views[0].tensor.device)
            is_own = self.folder is not None and self.folder.has_gradients
            train, held_out = near(here.train, here.held_out, n_bytes=harvester.budget if is_own else 0)
            return train, held_out
        generator = self._generator(HARVEST)
        train = self._store(harvester, plan.train, plan.n_slots, generator, "harvest")
        train.check_gradients()
        exact = replace(harvester, settings=replace(harvester.settings, memory_dtype="float32"))
        return train, self._store(exact, plan.held_out, plan.n_slots, generator, "held out")

    def _store(
        self, harvester: Harvester, rows: Tensor, n_slots: int, generator: torch.Generator, title: str
    ) -> GradientStore:
        own, progress = self.source.own(harvester.engine, rows), self.request.progress
        more = {"progress": progress, "title": title, "own": own, "processes": self.processes}
        return harvester.store(self.source.data.rows(rows), n_slots, generator, **more)

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
        fingerprint = self.source.subset.fingerprint()
        params = {view.name: ParamRecord.of(view, fingerprint[view.name]) for view in self.source.subset.views}
        config = {
            **asdict(self.request),
            "harvest": asdict(self.harvest),
            "fit": asdict(self.fit),
            "measure": asdict(self.measure),
            "steps_done": found.steps_done,
            "history": found.history,
            "model": self.source.adapter.description,
            "output": None if self.source.adapter.given_output is None else _name_of(self.source.adapter.given_output),
            **record,
            **({} if self.store is None else {"store": self.store.summary}),
        }
        return ParamFeatures(
            v_in=found.v_in,
            v_out=found.v_out,
            threshold=found.threshold,
            encoder=found.encoder,
            params=params,
            divergence=self.source.divergence,
            reference=drawn.kind,
            references=pool,
            metrics=metrics,
            config=config,
            examples=self.source.data.rows(plan.held_out[: self.measure.n_examples]),
            engine=engine,
        )


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
