"""What fitting and measuring take: a few steps and a few samples, at full width where that is quick."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from param_features.fit import (
    Encoder,
    GradientDictionary,
    Trainer,
    leading_directions,
    most_samples,
    ranked_fit,
    renormalize,
)
from param_features.fit.formats import FORMATS, Directions
from param_features.gradients import SampleGradients
from param_features.measure import (
    EXTRA,
    ControlDictionary,
    SlicedPrincipal,
    control_dictionaries,
    dense_together,
    dictionary_error,
)
from param_features.params import ParamSubset
from param_features.run.estimation.ladder import Ladder
from param_features.run.estimation.sizes import Sizes
from param_features.run.estimation.tiled import Tiled

_LEAST_BATCH, _N_STEPS, _NOISE = 64, 3, 0.1
_CONTROL_WORK = 2e10
"""Multiplications that finding the principal directions of few samples may take, beyond the exact ones."""


class _Rough(Trainer):
    """A trainer that starts from the leading parts of few gradients, disturbed."""

    def _start(self, n_features: int) -> Directions:
        few = leading_directions(self.format, self.store, torch.arange(min(4, n_features)), self.modes, self.rank)
        directions = few.rows(torch.arange(n_features) % few.n_features).map(self._disturbed)
        renormalize(directions)
        return directions

    def _disturbed(self, tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, dtype=torch.float32, generator=self.generator).to(tensor)
        return tensor + _NOISE * tensor.std() * noise


@dataclass(frozen=True)
class FitProbe:
    """Times the stages after the harvest on a few samples that stand for all."""

    few: SampleGradients
    sizes: Sizes
    subset: ParamSubset
    format: str
    ladder: Ladder

    @cached_property
    def trainer(self) -> Trainer:
        """A fit in its middle, whose steps and restarts are timed."""
        sizes, modes = self.sizes, {view.name: view.modes for view in self.subset.views}
        store, generator = Tiled(self.few, sizes.n_train), torch.Generator().manual_seed(0)
        request = replace(sizes.request, format=FORMATS[self.format], modes=modes)
        trainer = _Rough(store, request, generator)
        trainer.n_steps = max(1, sizes.fit.steps // 5)
        return trainer

    @property
    def fit_seconds(self) -> float:
        """Starting directions, steps, restarts, and the ranking at the end."""
        return self._start_seconds + self._step_seconds + self._restart_seconds + self._ranking_seconds

    @property
    def measure_seconds(self) -> float:
        """The fit's and the controls' errors."""
        return self._error_seconds + self._dictionary_seconds

    @property
    def _start_seconds(self) -> float:
        trainer = self.trainer

        def start(n: int) -> None:
            leading_directions(trainer.format, trainer.store, torch.arange(n), trainer.modes, trainer.rank)

        def norms(n: int) -> None:
            Tiled.norms_of(self.few, n)

        n_features, n_samples = self.sizes.n_features, self.sizes.n_train + self.sizes.n_held_out
        return self.ladder.seconds(start, n_features, least=4) + 2 * self.ladder.seconds(norms, n_samples, least=16)

    @property
    def _step_seconds(self) -> float:
        full = min(self.sizes.fit.batch_size, self.sizes.n_train)
        step = self.ladder.seconds(self._step, full, least=min(full, _LEAST_BATCH), runs=_N_STEPS)
        return step * self.sizes.fit.steps

    def _step(self, n: int) -> None:
        trainer = self.trainer
        trainer.settings, trainer.order = (
            replace(self.sizes.fit, batch_size=n, resample=0),
            torch.empty(0, dtype=torch.long),
        )
        trainer.step()

    @property
    def _restart_seconds(self) -> float:
        fit = self.sizes.fit
        n_restarts = int(0.6 * fit.steps / max(1, int(0.6 * fit.steps / fit.resample))) if fit.resample else 0
        if not n_restarts:
            return 0.0

        def restart(n: int) -> None:
            self.trainer.settings = replace(fit, batch_size=n)
            self.trainer._restart_idle()

        full = min(fit.batch_size, -(-self.sizes.n_train // 4))
        return n_restarts * self.ladder.seconds(restart, full, least=min(full, _LEAST_BATCH))

    @property
    def _encoder(self) -> Encoder:
        return self.trainer.encoder

    def _passes(self, n: int) -> int:
        return 2 if self._encoder.is_twice(n) else 1

    def _of_samples(self, work: Callable[[int], object], n: int) -> float:
        """Seconds of what reads as many samples as errors are measured on, pursuing them once or twice."""
        n = min(n, most_samples(self.sizes.n_features))
        least = min(n, _LEAST_BATCH)
        return self.ladder.seconds(work, n, least=least) * self._passes(n) / self._passes(least)

    @cached_property
    def _dictionary(self) -> GradientDictionary:
        v_out = self.trainer.v_out.folded().map(torch.detach)
        v_in = v_out if self.sizes.fit.is_tied else self.trainer.v_in.folded().map(torch.detach)
        return GradientDictionary(v_in, v_out, 0.0, self._encoder)

    @property
    def _ranking_seconds(self) -> float:
        dictionary, l0 = self._dictionary, self.sizes.l0

        def rank(n: int) -> None:
            ranked_fit(Tiled(self.few, n), dictionary.v_in, dictionary.v_out, l0, 0, dictionary.encoder)

        return self._of_samples(rank, self.sizes.n_train)

    @property
    def _error_seconds(self) -> float:
        """Measuring the fit's error on training samples once, and on those held out twice."""

        def error(n: int) -> None:
            self._dictionary.error(Tiled(self.few, n), self.sizes.l0)

        train = self._of_samples(error, self.sizes.n_train)
        return train * (1 + 2 * self.sizes.n_held_out / self.sizes.n_train)

    @property
    def _dictionary_seconds(self) -> float:
        """Finding the controls, with fewer features where many would take long, and their errors on held-out samples."""
        sizes, generator = self.sizes, torch.Generator().manual_seed(0)
        n_features = min(sizes.n_features, max(16, int((_CONTROL_WORK / (24 * sizes.n_params)) ** 0.5)))
        wider = (sizes.n_features + EXTRA) / (n_features + EXTRA)
        controls: dict[str, ControlDictionary | SlicedPrincipal] = {}

        def find(n: int) -> None:
            few = Tiled(self.few, n)
            controls.update(
                control_dictionaries(few, self.subset, n_features=n_features, rank=sizes.rank, generator=generator)
            )

        with torch.no_grad():
            more = max(64, min(2048, dense_together(sizes.n_params)))
            fixed, growing = self.ladder.beyond_fixed(find, sizes.n_train, least=16, more=more)
            errors = sum(self._error_of(dictionary) for dictionary in controls.values())
        return fixed * wider**2 + (growing + errors) * wider

    def _error_of(self, dictionary: ControlDictionary | SlicedPrincipal) -> float:
        l0, is_pursued = self.sizes.l0, self._encoder.n_rounds is not None

        def error(n: int) -> None:
            dictionary_error(dictionary, Tiled(self.few, n), l0, is_pursued=is_pursued)

        return self._of_samples(error, self.sizes.n_held_out)
