"""Training components: their parts, importances and adversary, step by step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from param_features.fit.checkpointing import Checkpoints, keeping
from param_features.fit.components.adversary import Adversary, Sources
from param_features.fit.components.batch import StepBatch
from param_features.fit.components.dictionary import ComponentDictionary
from param_features.fit.components.from_inputs import Positions, independent_parts, seen_positions, starting_of
from param_features.fit.components.gates import importances_for_masks, importances_for_penalties
from param_features.fit.components.importance import NETWORKS, ImportanceNet, network_size
from param_features.fit.components.losses import (
    Distance,
    drawn_sources,
    faithfulness,
    frequency_penalty,
    importance_penalty,
    masks_from,
    one_site,
    random_subset,
    side_by_side,
)
from param_features.fit.components.parts import Parts, least_square_parts
from param_features.fit.components.passes import CleanPass, MaskedModel, Masks, repeated
from param_features.fit.components.places import check_same_positions
from param_features.fit.components.settings import ComponentSettings
from param_features.fit.components.starting import Pairs, gradient_starts, parts_along, parts_near, random_directions
from param_features.fit.loop import Fit, take_steps
from param_features.gradients import GradientEngine, sites_of
from param_features.machine import ALONE, Processes
from param_features.problem import Divergence, ModelInputs

_ALIVE = 1e-6
_MEMORY = 0.99


def fit_components(
    engine: GradientEngine,
    divergence: Divergence,
    data: ModelInputs,
    n_components: Mapping[str, int],
    settings: ComponentSettings,
    *,
    generator: torch.Generator,
    progress: bool,
    start: Mapping[str, Pairs] | None = None,
    checkpoints: Checkpoints | None = None,
    processes: Processes = ALONE,
) -> Fit:
    """Learn the components. Ctrl-C ends the fit early and keeps what is learned so far.

    Cost: a step costs one forward pass of the batch, and a forward and a backward pass for each set of masks.

    Args:
        engine: Runs the model.
        divergence: Of outputs under masks from the model's own.
        data: The training data.
        n_components: How many of each matrix.
        settings: How they are learned.
        generator: Draws batches, masks and starting points.
        progress: Whether to show a progress bar with D under masks, l0, how many are alive, and ‖Δ‖.
        start: Pairs that components start from, by matrix; those of `settings.start` where none are given.
        checkpoints: Where the fit is kept, and gone on with.
        processes: Who share the rows of every batch; Ctrl-C then ends all of them.
    """
    trainer = ComponentTrainer(engine, divergence, data, n_components, settings, generator, start, processes)
    with trainer.model.held(), keeping(trainer, checkpoints) as steps:
        take_steps(steps, settings.steps, progress=progress, is_shared=processes.n > 1)
    return trainer.result()


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured, for the progress bar; D by the name of its loss."""

    distances: dict[str, float]
    l0: float
    remainder: float


class ComponentTrainer:
    """The state of a fit: components, importance network, adversary, optimiser."""

    def __init__(
        self,
        engine: GradientEngine,
        divergence: Divergence,
        data: ModelInputs,
        n_components: Mapping[str, int],
        settings: ComponentSettings,
        generator: torch.Generator,
        start: Mapping[str, Pairs] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Start with Σ U ⊗ V as close to W as the first V allow; of gradients, where the settings say so."""
        self.engine, self.settings, self.generator, self.processes = engine, settings, generator, processes
        self.data = data.with_samples()
        self.distance = Distance(divergence)
        self.model = MaskedModel(engine, sites_of(engine))
        self.weights = {site.name: site.weight() for site in self.model.sites}
        self.n_rows = min(len(self.data), max(2, settings.batch_size // self.data.n_pos))
        with self.model.held():
            probe = self.model.clean(self.data.rows(slice(0, 2)))
            is_random = settings.start == "random"
            seen = {} if is_random else seen_positions(self.model, self.data, self.n_rows, generator)
        self.parts = self._starts(divergence, n_components, start or {}, seen)
        self.net = self._network(probe, seen)
        tensors = [tensor for parts in self.parts.values() for tensor in (parts.U, parts.V)]
        self.tensors = tensors
        for tensor in (*tensors, *self.net.parameters()):
            processes.spread_(tensor)
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam([*tensors, *self.net.parameters()], lr=settings.lr)
        self.n_pos = {name: applied.shape[1] for name, applied in probe.applied.items()}
        self.take_rows(self.n_rows)
        self.mean_importance = torch.ones(sum(parts.n for parts in self.parts.values()), dtype=torch.float32)
        self.n_steps = 0
        self.errors = torch.zeros(settings.steps, dtype=torch.float64)
        self.order = torch.empty(0, dtype=torch.long)

    def take_rows(self, n_rows: int) -> None:
        """Step on so many rows from now on, against an adversary that starts anew."""
        self.n_rows, self.adversary = n_rows, None
        if self.settings.adversarial_weight:
            shapes = {name: (n_rows, self.n_pos[name], parts.n) for name, parts in self.parts.items()}
            self.adversary = Adversary(shapes, self.settings.adversary_lr, self.generator, self.tensor_like)

    def _starts(
        self, divergence: Divergence, n: Mapping[str, int], given: Mapping[str, Pairs], seen: Mapping[str, Positions]
    ) -> dict[str, Parts]:
        if given:
            return {name: parts_near(weight, given[name]) for name, weight in self.weights.items()}
        if self.settings.start == "random":
            frames = {name: random_directions(n[name], W.shape[1], self.generator) for name, W in self.weights.items()}
            return {name: least_square_parts(W, frames[name].to(W)) for name, W in self.weights.items()}
        pairs = self._pairs_of_gradients(divergence, n) if self.settings.start == "gradients" else {}
        is_whole = self.data.targets is None
        found = {}
        for name, weight in self.weights.items():
            along = parts_along(weight, pairs[name], is_whole=is_whole) if name in pairs else None
            found[name] = along or independent_parts(weight, seen[name], n[name], self.generator)
        return found

    def _pairs_of_gradients(self, divergence: Divergence, n: Mapping[str, int]) -> dict[str, Pairs]:
        targets = self.data.targets
        data = self.data if targets is None else self.data.rows(targets.any(1))
        return gradient_starts(self.engine, divergence, data, self.weights, n, self.generator)

    def _network(self, probe: CleanPass, seen: Mapping[str, Positions]) -> ImportanceNet:
        shapes = {name: (parts.n, parts.V.shape[1]) for name, parts in self.parts.items()}
        tables = frozenset(name for name, applied in probe.applied.items() if not applied.is_floating_point())
        kind, hidden = network_size(self.settings, shapes)
        net = NETWORKS[kind](shapes, hidden, self.generator, tables)
        if seen:
            net.begin({name: starting_of(parts, seen[name]) for name, parts in self.parts.items()})
        if net.kind == "model":
            check_same_positions({name: applied.shape[1] for name, applied in probe.applied.items()}, probe.aligned)
        return net.to(self.tensor_like)

    @property
    def tensor_like(self) -> Tensor:
        """Gives dtype and device."""
        return next(iter(self.parts.values())).U

    @torch.enable_grad()
    def step(self) -> StepOutcome:
        """One optimiser step on one batch, of which each process takes its part."""
        index = self._next_batch()
        share = self.processes.share(len(index))
        inputs = self.data.rows(share.of(index))
        clean = self.model.clean(inputs)
        batch = StepBatch.of(inputs, share, clean)
        inner = {name: parts.inner(clean.applied[name]) for name, parts in self.parts.items()}
        z = self.net(inner, clean.applied)
        importances = {name: importances_for_masks(values) for name, values in z.items()}
        remainders = {name: parts.remainder(self.weights[name]) for name, parts in self.parts.items()}
        self._ascend(batch, clean, importances, remainders)
        passes = self._passes(batch, importances)
        distances = self._distances(batch, clean, passes, remainders)
        faith = faithfulness(remainders)
        faithfulness_weight = self.settings.faithfulness_weight if self.data.targets is None else 0.0
        loss = faithfulness_weight * faith * batch.share.weight + self._penalty(z, batch)
        for (_, weight, _), distance in zip(passes, distances, strict=True):
            loss = loss + weight * distance
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.adversary is not None:
            self.adversary.climb(batch.share)
        measured = self._measured(batch, distances, importances)
        grads = [parameter.grad for parameter in self.optimizer.param_groups[0]["params"] if parameter.grad is not None]
        batch.share.sum_([*grads, measured])
        self._update()
        return self._outcome(measured, [name for name, *_ in passes], faith)

    def _ascend(self, batch: StepBatch, clean: CleanPass, importances: dict, remainders: dict) -> None:
        if self.adversary is None:
            return
        parts = {name: Parts(parts.U.detach(), parts.V.detach()) for name, parts in self.parts.items()}
        rests = {name: rest.detach() for name, rest in remainders.items()}
        fixed = {name: g.detach() for name, g in importances.items()}

        def at(sources: Sources) -> Tensor:
            output = self.model.masked(batch.inputs, parts, masks_from(fixed, batch.part(sources)), rests)
            return self._mean(batch, output, clean)

        for _ in range(self.settings.ascents):
            self.adversary.ascend(batch.share, at)

    def _mean(self, batch: StepBatch, output: Tensor, clean: CleanPass) -> Tensor:
        """This process's summand of the mean D over the batch."""
        return self.distance(output, clean.output).sum() / batch.n_samples

    def _passes(self, batch: StepBatch, importances: dict) -> list[tuple[str, float, Masks]]:
        """Name, weight and masks of every pass of this step."""
        settings, found = self.settings, []
        drawn = lambda: drawn_sources(importances, self.generator, batch.share.n_items)  # noqa: E731
        if settings.stochastic_weight:
            found.append(("stochastic", settings.stochastic_weight, drawn()))
        if settings.one_at_a_time_weight and (len(self.parts) > 1 or not found):
            sources, weight = drawn(), settings.one_at_a_time_weight / len(self.parts)
            found += [("one", weight, one_site(sources, name)) for name in self.parts]
        if settings.subset_weight:
            found.append(("subset", settings.subset_weight, random_subset(drawn(), self.generator)))
        if self.adversary is not None:
            found.append(("adversarial", settings.adversarial_weight, self.adversary.sources))
        return [(name, weight, masks_from(importances, batch.part(sources))) for name, weight, sources in found]

    def _distances(self, batch: StepBatch, clean: CleanPass, passes: list, remainders: dict) -> list[Tensor]:
        """Mean D of every pass; all of them are one pass of the model."""
        masks = side_by_side([masks for *_, masks in passes])
        output = self.model.masked(repeated(batch.inputs, len(passes)), self.parts, masks, remainders)
        return [self._mean(batch, part, clean) for part in output.chunk(len(passes))]

    def _penalty(self, z: dict, batch: StepBatch) -> Tensor:
        settings = self.settings
        done = self.n_steps / max(1, settings.steps - 1)
        p = settings.p + (settings.p_end - settings.p) * done
        penalised = {name: importances_for_penalties(values) for name, values in z.items()}
        penalty = settings.importance_weight * importance_penalty(penalised, p, batch)
        if settings.frequency_weight:
            penalty = penalty + settings.frequency_weight * frequency_penalty(penalised, p, batch)
        return penalty

    @staticmethod
    @torch.no_grad()
    def _measured(batch: StepBatch, distances: list[Tensor], importances: dict) -> Tensor:
        """D of every pass, l0, and the mean importance of every component; this process's summands of them."""
        real = {name: batch.over_real(name, g) for name, g in importances.items()}
        means = [g.sum(0) / batch.n_real[name] for name, g in real.items()]
        counts = [(g > 0).sum() / batch.n_real[name] for name, g in real.items()]
        scalars = torch.stack([*distances, torch.stack(counts).sum().to(distances[0])])
        return torch.cat([scalars, *(mean.to(scalars) for mean in means)])

    def _update(self) -> None:
        settings = self.settings
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.tensors, settings.clip)
        fall = (1 + math.cos(math.pi * self.n_steps / settings.steps)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * (settings.lr_end + (1 - settings.lr_end) * fall)
        self.optimizer.step()
        self.n_steps += 1

    @torch.no_grad()
    def _outcome(self, measured: Tensor, passes: list[str], faith: Tensor) -> StepOutcome:
        found: dict[str, float] = {}
        scalars = measured[: len(passes) + 1].tolist()
        for name, distance in zip(passes, scalars[:-1], strict=True):
            found[name] = found.get(name, 0.0) + distance
        self.errors[self.n_steps - 1 : self.n_steps] = next(iter(found.values()))
        self.mean_importance.lerp_(measured[len(scalars) :].to(self.mean_importance), 1 - _MEMORY)
        return StepOutcome(found, scalars[-1], float(faith.detach()) ** 0.5)

    @property
    def n_in_pass(self) -> int:
        """How many rows a pass over the data goes through."""
        return len(self.data)

    @property
    def counters(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside weights, optimiser and data."""
        held = {"errors": self.errors, "mean_importance": self.mean_importance}
        return held if self.adversary is None else held | self.adversary.counters

    def status(self, outcome: StepOutcome) -> dict[str, str]:
        """What the progress bar shows."""
        alive = int((self.mean_importance > _ALIVE).sum())
        shown = {name: f"{value:.3g}" for name, value in outcome.distances.items()}
        return {**shown, "l0": f"{outcome.l0:.1f}", "alive": str(alive), "‖Δ‖": f"{outcome.remainder:.1g}"}

    def _next_batch(self) -> Int[Tensor, " row"]:
        if len(self.order) < self.n_rows:
            self.order = torch.randperm(len(self.data), generator=self.generator)
        index, self.order = self.order[: self.n_rows], self.order[self.n_rows :]
        return index

    def result(self) -> Fit:
        """The components as they are now."""
        parts = {name: Parts(parts.U.detach().clone(), parts.V.detach().clone()) for name, parts in self.parts.items()}
        net = self.net.requires_grad_(False)
        return Fit(ComponentDictionary(parts, net), self.n_steps, tuple(self.errors[: self.n_steps].tolist()))
