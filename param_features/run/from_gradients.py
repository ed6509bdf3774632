"""One decomposition by gradients, after its inputs were checked: harvest, fit and measure."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from param_features.fit import Fit, FitRequest, HessianSettings, OffTarget, fit_hessian, fit_l3d
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
from param_features.machine import ALONE, Processes, free_bytes, notify
from param_features.measure import held_out_metrics
from param_features.problem import ModelInputs, Problem, Question, ReadBackground, Stage, check_curved, stage_generator
from param_features.run.contrast import FitCall, Stores, background_gradients, fit_beside
from param_features.run.estimation.room import fit_in_room
from param_features.run.estimation.sizes import Sizes
from param_features.run.record import param_records, run_record, settings_record
from param_features.run.request import MethodSettings, Request
from param_features.run.resuming import CheckpointFolder, Job


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
            params=param_records(self.problem.subset),
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

    def _config(self, fit: Fit, examples: ModelInputs) -> dict[str, Any]:
        """Settings of the run, for the record."""
        return {
            **self.request.record(self.fit),
            "progress": self.request.progress,
            **settings_record(self.harvest, self.fit),
            **run_record(self.problem, fit, examples),
            **({} if self.store is None else {"store": self.store.summary}),
        }
