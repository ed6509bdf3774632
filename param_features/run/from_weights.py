"""`method="components"`: one decomposition of weights into components, from what was given to what is fitted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from param_features.errors import InputError, SettingError
from param_features.fit import Checkpoints, Fit
from param_features.fit.components import ComponentDictionary, ComponentSettings, fit_components, network_size, pairs_of
from param_features.fit.formats import LowRank
from param_features.fitted import Fitted, Metrics
from param_features.gradients import GradientEngine, HarvestSettings, SamplePlan, plan_rows, question_of
from param_features.gradients.disk import Compression, Recipe, recipe_of
from param_features.machine import ALONE, Processes, notify
from param_features.measure import component_metrics
from param_features.params import ParamSpec, checksum, named_in
from param_features.problem import (
    ModelInputs,
    Problem,
    Stage,
    read_model,
    read_problem,
    say_notices,
    stage_generator,
    targeted,
    with_targets,
)
from param_features.run.matrices import counts_of, engine_of_matrices
from param_features.run.record import param_records, run_record, settings_record
from param_features.run.request import ComponentRequest
from param_features.run.resuming import CheckpointSettings, kept_in

_INSTEAD = {
    "store": "gradients are no part of it: give tokens= or inputs=",
    "l0": "how many are needed follows from fit=pf.ComponentSettings(importance_weight=…)",
    "rank": "a component is of rank 1",
    "background": "give the inputs of interest alone as tokens=",
}
_OWN_REFERENCES = (None, "self")
_OF_STORES = ("seed", "shard_mib", "compress_rank", "dtype", "reference", "partners")
"""What recipes of gradients say and no components follow from."""

_HEEDED = ("n_samples", "held_out_fraction", "n_references", "n_examples")


def refuse_foreign(reference: Any, harvest: HarvestSettings | None, **given: Any) -> None:
    """Refuse what other methods take and this one does not.

    Raises:
        SettingError: Names the argument, and what to do instead.
    """
    for name, value in given.items():
        if value is not None:
            raise SettingError(f"{name}= is not for method='components': {_INSTEAD[name]}.")
    if not isinstance(reference, str | None) or reference not in _OWN_REFERENCES:
        raise SettingError(
            "reference= is not for method='components', which compares the output under masks with the model's own. Leave "
            "it out, or give 'self'."
        )
    if harvest is not None:
        for field in fields(harvest):
            if field.name not in _HEEDED and getattr(harvest, field.name) != field.default:
                raise SettingError(
                    f"harvest={field.name} is not for method='components', which takes no gradients. Accepted there: "
                    f"{', '.join(_HEEDED)}; samples of a step are fit=pf.ComponentSettings(batch_size=…)."
                )


def _check_distance(problem: Problem) -> None:
    """Refuse a divergence that may fall below that of two equal outputs.

    Raises:
        SettingError: It may.
    """
    if problem.divergence.name == "sum":
        raise SettingError(
            "divergence='sum' is no distance between the output under masks and the model's own, as method='components' "
            "needs. Accepted: 'kl', 'se', or a function of (output, reference) that is least where they are equal."
        )


def _directions_of(start: Fitted | None, engine: GradientEngine) -> LowRank | None:
    """The directions of features, or of other components, of the engine's matrices.

    Raises:
        SettingError: They are of other matrices.
    """
    if start is None:
        return None
    for view in engine.subset.views:
        record = start.params.get(view.name)
        if record is None or tuple(record.matrix_shape) != view.matrix_shape:
            raise SettingError(
                f"start= has nothing of {view.name!r} of shape {view.matrix_shape}: it is of {', '.join(start.params)}. "
                "Give features or components of the same matrices."
            )
    return start.v_out


@dataclass(frozen=True)
class ComponentRun:
    """One decomposition into components after its inputs were checked.

    Attributes:
        problem: The chosen matrices, and what the model is run on.
        engine: Runs the model.
        request: What is asked of the fit.
        harvest: How many rows and examples are taken.
        fit: Settings of the fit.
        processes: Who share the work.
        start: Directions that components start from; None for what the settings say.
    """

    problem: Problem
    engine: GradientEngine
    request: ComponentRequest
    harvest: HarvestSettings
    fit: ComponentSettings
    processes: Processes = ALONE
    start: LowRank | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        params: ParamSpec | None,
        tokens: Any,
        inputs: Any,
        *,
        n_features: int | Mapping[str, int] | None,
        divergence: str | Callable[[Tensor, Tensor], Tensor],
        output: Callable[[Any], Tensor] | None,
        positions: Any,
        tokenizer: Any,
        seed: int,
        progress: bool,
        harvest: HarvestSettings,
        fit: ComponentSettings,
        processes: Processes,
        targets: Any = None,
        start: Fitted | None = None,
    ) -> "ComponentRun":
        """Read and check what `pf.decompose` was given; errors are its own."""
        spec = [] if params is None else list(params) if isinstance(params, Iterator) else params
        chosen = read_model(model, spec, tokenizer=tokenizer, output=output)
        adapter = chosen.adapter
        if targets is not None:
            tokens, targets = with_targets(tokens, targets)
        problem = read_problem(
            chosen, tokens, inputs, divergence=divergence, reference="sample", positions=positions, method="components"
        )
        _check_distance(problem)
        if targets is not None:
            problem = replace(problem, data=targeted(problem.data, targets))
        engine = engine_of_matrices(problem, named_in(spec, adapter.views(), adapter.aliases(), adapter.parts()))
        problem = replace(problem, subset=engine.subset)
        request = ComponentRequest(counts_of(n_features, engine.subset, adapter.aliases()), seed, progress)
        run = cls(problem, engine, request, harvest, fit, processes, _directions_of(start, engine))
        say_notices(problem, divergence, request.say)
        run.say_sizes(is_count_open=n_features is None)
        return run

    @cached_property
    def plan(self) -> SamplePlan:
        """Which rows are learned from, and which are measured on."""
        return plan_rows(self.problem, self.harvest, self._generator(Stage.PLAN))

    def say_sizes(self, *, is_count_open: bool) -> None:
        """Print the sizes that were chosen from the shapes."""
        shapes = {view.name: (self.request.counts[view.name], view.matrix_shape[1]) for view in self.problem.subset.views}
        kind, hidden = network_size(self.fit, shapes)
        least, most = min(self.request.counts.values()), max(self.request.counts.values())
        each = f"{least}" if least == most else f"{least} to {most}"
        chosen = ", chosen from the shapes" if is_count_open else ""
        self.request.say(
            f"components: {self.request.n_features:,} of {len(shapes)} matrices, {each} each{chosen}; importance network "
            f"{kind!r}, hidden width {hidden}."
        )

    def fitted(self, checkpoints: CheckpointSettings | None = None) -> Fitted:
        """Fit and measure.

        Args:
            checkpoints: Where the fit is kept as it goes; errors are those of `kept_in`.
        """
        if checkpoints is None:
            return self._fitted()
        with kept_in(checkpoints, self._recipe()) as folder:
            return self._fitted(folder.of_components())

    def _recipe(self) -> Recipe:
        """All that decides what the fit finds. Cost: hashes the model's weights and the data."""
        settings = {f"fit.{name}": value for name, value in asdict(self.fit).items()}
        start = None if self.start is None else checksum(self.start.tensors)
        return self.data_recipe() | self.request.record() | settings | {"start": start}

    def data_recipe(self) -> Recipe:
        """What the components are of. Cost: hashes the model's weights and the data."""
        recipe = recipe_of(self.problem, self.harvest, seed=0, shard_mib=0, compression=Compression())
        return {name: value for name, value in recipe.items() if name not in _OF_STORES}

    def _fitted(self, checkpoints: Checkpoints | None = None) -> Fitted:
        plan = self.plan
        question = question_of(self.problem, self.engine, self.harvest.n_references, self._generator(Stage.REFERENCES))
        fit = self._fit(plan, checkpoints)
        held_out = self.problem.data.rows(plan.held_out)
        examples = held_out.rows(slice(0, self.harvest.n_examples))
        return Fitted(
            dictionary=fit.dictionary,
            question=question,
            params=param_records(self.problem.subset),
            metrics=self._metrics(fit.dictionary, plan, held_out),
            config=self._config(fit, examples),
            examples=examples,
            engine=self.engine,
        )

    def _fit(self, plan: SamplePlan, checkpoints: Checkpoints | None) -> Fit:
        data = self.problem.data.rows(plan.train)
        if data.targets is not None and not bool(data.targets.any()):
            raise InputError("targets= marks none of the rows that were drawn for training. Mark more rows.")
        generator = self._generator(Stage.FIT)
        return fit_components(
            self.engine,
            self.problem.divergence,
            data,
            self.request.counts,
            self.fit,
            generator=generator,
            start=None if self.start is None else pairs_of(self.start, self.request.counts, generator),
            progress=self.request.progress,
            checkpoints=checkpoints,
            processes=self.processes,
        )

    def _metrics(self, dictionary: ComponentDictionary, plan: SamplePlan, held_out: ModelInputs) -> Metrics:
        """Scores on held-out rows beside their controls; a `Notice` of controls that do as well."""
        found = component_metrics(
            dictionary, self.engine, self.problem.divergence, held_out, generator=self._generator(Stage.MEASURE)
        )
        metrics = Metrics(found | {"n_samples": len(plan.train) * plan.n_slots})
        if metrics.matched_by:
            notify(
                f"Of the controls, {', '.join(metrics.matched_by)} did as well as the components at the same l0: beside "
                "these the components have shown nothing."
            )
        return metrics

    def _config(self, fit: Fit, examples: ModelInputs) -> dict[str, Any]:
        """Settings of the run, for the record."""
        return {
            **self.request.record(),
            "progress": self.request.progress,
            **settings_record(self.harvest, self.fit),
            **run_record(self.problem, fit, examples),
        }

    def _generator(self, stage: Stage) -> torch.Generator:
        return stage_generator(self.request.seed, stage)
