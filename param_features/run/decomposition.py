"""From a model, parameter names and inputs to features with their controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from param_features.fit import Fit, FitRequest, FitSettings, HessianSettings, OffTarget, fit_hessian, fit_l3d
from param_features.fit.formats import FORMATS
from param_features.fitted import Fitted, Metrics
from param_features.gradients import (
    GradientEngine,
    GradientStore,
    Harvester,
    HarvestSettings,
    SampleGradients,
    SamplePlan,
    SampleProbe,
    build_engine,
    own_references,
    plan_samples,
    question_of,
)
from param_features.gradients.disk import FactorStore, near
from param_features.machine import ALONE, Processes, free_bytes, launched, notify, own_modes, public
from param_features.measure import held_out_metrics
from param_features.params import ParamRecord, ParamSpec
from param_features.problem import (
    ModelInputs,
    Problem,
    Question,
    ReadBackground,
    Stage,
    check_curved,
    position_record,
    read_background,
    read_model,
    read_problem,
    say_notices,
    stage_generator,
)
from param_features.run.contrast import FitCall, Stores, background_gradients, fit_beside
from param_features.run.estimation.room import fit_in_room
from param_features.run.estimation.sizes import Sizes
from param_features.run.request import (
    MethodSettings,
    Request,
    check_request,
    leaves_batch_open,
    method_settings,
    read_fit,
    settings_record,
    usual_l0,
)
from param_features.run.resuming import CheckpointFolder, CheckpointSettings, Job, resumable


@public
@own_modes()
def decompose(
    model: Any,
    params: ParamSpec | None = None,
    tokens: Any = None,
    *,
    inputs: Any = None,
    store: str | PathLike | FactorStore | None = None,
    n_features: int = 100,
    l0: float | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = None,
    background: Any = None,
    output: Callable[[Any], Tensor] | None = None,
    positions: Any = "all",
    tokenizer: Any = None,
    method: str = "l3d",
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    n_samples: int | None = None,
    harvest: HarvestSettings | None = None,
    fit: FitSettings | HessianSettings | Mapping[str, Any] | None = None,
    checkpoints: str | PathLike | CheckpointSettings | None = None,
) -> Fitted:
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
            tensor, or its `.logits`. With three axes, [batch pos d_output], a sample is a position, whatever the divergence.
        positions: Which positions are samples: `"all"` that are real, `"last"`, an integer or a slice, which count a row's
            real positions (`-2`, `slice(10, -1)`), truth values [batch, pos], or a function of the tokens [batch, pos] to
            truth values. The features remember it: activations are zero, and no examples taken, at other positions. Truth
            values speak of these data alone. Rows without such a position are left out.
        tokenizer: For strings, where the model carries none: a Hugging Face tokenizer.
        method: `"l3d"` fits directions to gradients; `"hessian"` climbs to directions along which some samples' divergence
            from their own output is steeply curved, and which do not interfere; for `"kl"` and `"se"`.
        steps: Optimiser steps; overrides `fit.steps`.
        seed: Of every random choice. Same seed, same machine, same result.
        progress: Whether to show progress bars and what is going on, on the error stream.
        n_samples: Samples to harvest; overrides `harvest.n_samples`.
        harvest: How samples, references and examples are taken from the data.
        fit: Further settings of the fit, rank and format among them: `pf.FitSettings` for `"l3d"`, `pf.HessianSettings` for
            `"hessian"`. Where none are given but rank and format, and a batch of 1,024 samples does not fit in memory, a
            smaller one is taken, and a notice says so.
        checkpoints: A folder in which harvest and fit are kept as they go, or `pf.CheckpointSettings(folder, every=5)` for
            other seconds between them. The same call goes on from there after a kill, and ends with the bits of an unbroken
            one on the same machine; Ctrl-C leaves a checkpoint too. Gradients then lie on disk, and how many are taken does
            not depend on the memory: see docs/how-to/store.md.

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
        OutputError: The model returns neither a tensor nor an object with `.logits`, and there is no `output`; or what is to
            be explained has more than three axes.
        ModelStateError: The model is on the meta device, spread over devices, or mixes the rows of a batch.
        MemoryEstimateError: The gradients, the fit or the controls would not fit in memory; `pf.estimate` tells beforehand.
        StoreError: The store is unfinished or damaged, or was harvested from something else than what is given; or a
            checkpoint is.
        DiskFullError: Gradients or a checkpoint do not fit in the folder of `checkpoints`; what was whole stays.

    Source: L3D (arXiv 2504.00194); its first draft for `method="hessian"`, see `fit/hessian.py` for what differs; the
        metrics' controls are this library's own.
    """
    processes, fit = launched(), read_fit(method, fit)
    l0 = usual_l0(n_features) if l0 is None else float(l0)
    request = Request(method, n_features, l0, seed, progress and processes.is_main)
    opened = None if store is None else FactorStore.open(store)
    harvest = harvest or (HarvestSettings() if opened is None else opened.settings)
    harvest = harvest if n_samples is None else replace(harvest, n_samples=n_samples)
    settings = method_settings(method, fit, steps=steps)
    names = opened.names if opened is not None and params is None else [] if params is None else params
    chosen = read_model(model, names, tokenizer=tokenizer, output=output)
    check_request(request, settings, chosen.subset)
    if opened is None:
        reference = "sample" if reference is None else reference
        problem = read_problem(
            chosen, tokens, inputs, divergence=divergence, reference=reference, positions=positions, method=method
        )
    else:
        opened.check_count(n_features)
        problem = opened.problem(
            chosen,
            tokens,
            inputs,
            divergence=divergence,
            reference=reference,
            positions=positions,
            settings=harvest,
            method=method,
        )
    left_alone = None if background is None else read_background(problem, background, n_features, method)
    if method == "hessian":
        check_curved(problem.divergence)
    say_notices(problem, divergence if opened is None else None, request.say)
    is_open = leaves_batch_open(fit) and checkpoints is None  # a resumed fit must find the batch that it began with
    run = Decomposition(problem, request, harvest, settings, left_alone, opened, is_open, processes)
    if checkpoints is None:
        return run.fitted()
    with resumable(CheckpointSettings.of(checkpoints), run.job) as (gradients, folder):
        return replace(run, store=gradients, folder=folder).fitted()


@dataclass(frozen=True)
class Decomposition:
    """One decomposition after its inputs were checked.

    Attributes:
        problem: What gradients are taken of.
        request: What is asked of the fit.
        harvest: How samples, references and examples are taken.
        fit: Settings of the fit.
        background: Samples that the features are to leave alone.
        store: Gradients that were taken before.
        is_batch_open: Whether the fit's batch may be made smaller where memory wants it.
        processes: Who share the work.
        folder: Where checkpoints are kept.
    """

    problem: Problem
    request: Request
    harvest: HarvestSettings
    fit: MethodSettings
    background: ReadBackground | None = None
    store: FactorStore | None = None
    is_batch_open: bool = False
    processes: Processes = ALONE
    folder: CheckpointFolder | None = None

    @property
    def job(self) -> Job:
        """What decides the outcome."""
        return Job(self.problem, self.request, self.harvest, self.fit, self.background, self.store)

    def fitted(self) -> Fitted:
        """Harvest, fit and measure."""
        engine = build_engine(self.problem, self.request.say)
        question = question_of(self.problem, engine, self.harvest.n_references, self._generator(Stage.REFERENCES))
        probe = SampleProbe(engine, self.problem.data)
        harvester = Harvester(probe, question.divergence, question.drawn, self.harvest).agreed(self.processes)
        plan = self._plan(harvester)
        run = replace(self, fit=self._fit_in_room(harvester, plan))
        return run._measured(engine, harvester, plan, question)

    def _plan(self, harvester: Harvester) -> SamplePlan:
        """Which samples are taken: those of the store where there is one, or as many as fit in memory."""
        if self.store is not None:
            return self.store.plan
        return plan_samples(self.problem, harvester.settings_that_fit, self.request.n_features, self._generator(Stage.PLAN))

    def _fit_in_room(self, harvester: Harvester, plan: SamplePlan) -> MethodSettings:
        """Settings of the fit with which the run fits in memory.

        Raises:
            MemoryEstimateError: There are none, or the settings were given.
        """
        if isinstance(self.fit, HessianSettings):
            return self.fit
        if self.store is None:
            like = harvester.probe.like
            counts = [len(rows) * plan.n_slots for rows in (plan.train, plan.held_out)]
        else:
            like, counts = self.store.train.rows(slice(0, 2)), [self.store.train.n_samples, self.store.held_out.n_samples]
        request, free = self.request, free_bytes(self.problem.subset.device)
        free = self.processes.least(free // self.processes.n_on_machine)
        wanted = FitRequest(request.n_features, self.fit.rank, request.l0, self.fit)
        sizes = Sizes.of(like, counts[0], counts[1], wanted, is_stored=self.store is not None)
        return fit_in_room(sizes, free, is_batch_open=self.is_batch_open)

    def _measured(self, engine: GradientEngine, harvester: Harvester, plan: SamplePlan, question: Question) -> Fitted:
        train, held_out = self._harvest(harvester, plan)
        fit_to = partial(self._fit, engine, plan)
        if self.background is None:
            fit, extra, record = fit_to(train), {}, {}
        else:
            fit, extra, record = self._contrasted(fit_to, engine, (train, held_out))
        extra |= {} if self.store is None else self.store.metrics
        metrics = Metrics({**self._metrics(fit, train, held_out), **extra})
        for control in metrics.matched_by:
            notify(f"{control} reconstructs as well as the fit: these features have shown nothing beyond it.")
        examples = self.problem.data.rows(plan.held_out[: self.harvest.n_examples])
        return Fitted(
            dictionary=fit.dictionary,
            question=question,
            params=self._records(),
            metrics=metrics,
            config=self._config(fit, examples) | record,
            examples=examples,
            engine=engine,
        )

    def _metrics(self, fit: Fit, train: SampleGradients, held_out: SampleGradients) -> Metrics:
        return held_out_metrics(
            fit.dictionary,
            train=train,
            held_out=held_out,
            subset=self.problem.subset,
            rank=self.fit.rank,
            l0=self.request.l0,
            generator=self._generator(Stage.MEASURE),
        )

    def _contrasted(
        self, fit_to: FitCall, engine: GradientEngine, target: Stores
    ) -> tuple[Fit, dict[str, float], dict[str, Any]]:
        """Features that leave the background alone, metrics beside a fit without it, and the record."""
        request, background = self.request, self.background
        assert background is not None
        background_samples = background_gradients(
            background,
            engine,
            self.harvest,
            n_features=background.settings.n_own(request.n_features),
            generator=self._generator(Stage.BACKGROUND),
            progress=request.progress,
            processes=self.processes,
        )
        return fit_beside(
            fit_to,
            target,
            background_samples,
            background.settings,
            n_features=request.n_features,
            rank=self.fit.rank,
            l0=request.l0,
            generator=self._generator(Stage.BESIDE_BACKGROUND),
        )

    def _fit(
        self,
        engine: GradientEngine,
        plan: SamplePlan,
        store: SampleGradients,
        n_features: int | None = None,
        off_target: OffTarget | None = None,
    ) -> Fit:
        request = self.request
        checkpoints = None if self.folder is None else self.folder.checkpoints(store, n_features, off_target)
        n_features = request.n_features if n_features is None else n_features
        l0, generator = min(request.l0, n_features), self._generator(Stage.FIT)
        if isinstance(self.fit, HessianSettings):
            divergence, rows = check_curved(self.problem.divergence), self.problem.data.rows(plan.train)
            return fit_hessian(
                engine,
                divergence,
                rows,
                store,
                FitRequest(n_features, self.fit.rank, l0, self.fit),
                generator=generator,
                progress=request.progress,
                checkpoints=checkpoints,
                processes=self.processes,
            )
        modes = {view.name: view.modes for view in self.problem.subset.views}
        return fit_l3d(
            store,
            FitRequest(n_features, self.fit.rank, l0, self.fit, FORMATS[self.fit.format], modes),
            generator=generator,
            progress=request.progress,
            off_target=off_target,
            checkpoints=checkpoints,
            processes=self.processes,
        )

    def _generator(self, stage: Stage) -> torch.Generator:
        return stage_generator(self.request.seed, stage)

    def _harvest(self, harvester: Harvester, plan: SamplePlan) -> tuple[SampleGradients, SampleGradients]:
        """Gradients to fit to, and to measure on."""
        if self.store is not None:
            store = self.store.on(self.problem.subset.device)
            is_ours = self.folder is not None and self.folder.has_gradients
            train, held_out = near(store.train, store.held_out, n_bytes=harvester.budget if is_ours else 0)
            return train, held_out
        generator = self._generator(Stage.HARVEST)
        train = self._store(harvester, plan.train, plan.n_slots, generator, "harvest")
        train.check_gradients()
        exact = replace(harvester, settings=replace(harvester.settings, memory_dtype="float32"))
        return train, self._store(exact, plan.held_out, plan.n_slots, generator, "held out")

    def _store(
        self, harvester: Harvester, rows: Tensor, n_slots: int, generator: torch.Generator, title: str
    ) -> GradientStore:
        return harvester.store(
            self.problem.data.rows(rows),
            n_slots,
            generator,
            progress=self.request.progress,
            title=title,
            references=own_references(self.problem, harvester.engine, rows),
            processes=self.processes,
        )

    def _records(self) -> dict[str, ParamRecord]:
        fingerprint = self.problem.subset.fingerprint()
        return {view.name: ParamRecord.of(view, fingerprint[view.name]) for view in self.problem.subset.views}

    def _config(self, fit: Fit, examples: ModelInputs) -> dict[str, Any]:
        """Settings of the run, for the record."""
        output = self.problem.adapter.given_output
        positions = position_record(self.problem.positions.given, examples)
        return {
            **self.request.record(self.fit),
            "progress": self.request.progress,
            **settings_record(self.harvest, self.fit),
            "steps_done": fit.steps_done,
            "history": fit.history,
            "model": self.problem.adapter.description,
            "output": None if output is None else _name_of(output),
            **({} if positions == "all" else {"positions": positions}),
            **({} if self.store is None else {"store": self.store.summary}),
        }


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
