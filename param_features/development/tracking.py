"""`pf.track`: fixed features through the checkpoints of a training run."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from param_features.audit import check_refit
from param_features.changes import ParamMatrices, chosen_matrices
from param_features.development.checkpoints import TrainingStep, check_checkpoints, lent, read_steps
from param_features.development.track_result import Track, track_of
from param_features.development.track_rows import TrackPlan, TrackRow, errors_at, row_at
from param_features.errors import ModelStateError, SampleCountError, SettingError
from param_features.fitted import Fitted
from param_features.gradients import GradientEngine, HarvestSettings
from param_features.machine import own_modes, public
from param_features.params import Adapter, ParamSpec, adapter_for, check_ready, fingerprint
from param_features.problem import read_inputs
from param_features.run import decompose

_HELD_OUT = 0.25
"""Of the rows, where features are fitted here."""


@public
@own_modes()
def track(
    checkpoints: Any,
    features: Any,
    tokens: Any = None,
    *,
    params: ParamSpec | None = None,
    inputs: Any = None,
    steps: Sequence[TrainingStep] | None = None,
    refit: bool = False,
    fit: Mapping[str, Any] | None = None,
    n_samples: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Track[Fitted]:
    """Follow features through training: what they do at each checkpoint, what training moves along them, when they go stale.

    Every checkpoint's weights, all of them, are put into the features' model one after the other, and taken out again: the
    model ends bit for bit as it was, after success, after an error and after Ctrl-C, which returns the checkpoints that are
    finished. Divergences are against outputs of the checkpoint itself.

    Features are local directions of the weights that they were found at. Far from there their impact may be small because
    the model does not do yet what they stand for, or because it does it along other directions: `errors`, beside random
    directions, and with `refit` the `match`, tell the two apart.

    Cost: for each checkpoint, activations of `n_samples` samples, a forward-mode pass over them per feature, and a harvest
    of up to five times as many gradients; with `refit` a fit as well. Memory: two copies of the weights.

    Args:
        checkpoints: A list in the order of training, or {step: checkpoint}. A checkpoint is a state dict; a module; the path
            of a .safetensors or torch file; for a Hugging Face model also a folder, or `"owner/name@revision"`, read by the
            model class's own `from_pretrained`; or a function that returns one of these, called when its turn comes.
        features: Bound to a model; or a model, with `params`: features are then fitted at the last checkpoint first.
        tokens: Where to measure, better not what the features were fitted to; their own held-out examples by default. With
            a model: what the features are fitted to, a quarter of which is held out and measured on.
        params: With a model: which parameters, as for `pf.decompose`.
        inputs: Instead of tokens, anything that the module takes.
        steps: Of the checkpoints in a list, rising; 0, 1, 2, … by default.
        refit: Whether features are fitted at each checkpoint too, in the way of the first but with another seed, to half of
            the rows: what any fit reaches there, and how alike the directions are. At home this is the agreement of two
            fits of the same weights, the most that can be expected anywhere.
        fit: With a model: further arguments of `pf.decompose`.
        n_samples: About how many samples to measure on: errors on samples of half of the rows, the rest on the first rows
            that have as many, 16 at least.
        seed: Of references, positions, random directions and refits.
        progress: Whether to show a progress bar, on the error stream.

    Returns:
        Tensors [checkpoint, feature], errors beside controls, the drift, and `change_points()`.

    Raises:
        InputError: No checkpoints, one that is of no accepted kind, or a tensor of another shape; or inputs that the model
            cannot take.
        SettingError: Steps are not rising, a setting is out of range, or refits are asked for and the features cannot be
            fitted again.
        SampleCountError: There are fewer than four rows, or with a model fewer than sixteen.
        UnknownParameterError: A checkpoint lacks a parameter.
        StoreError: A checkpoint cannot be read.
        NotBoundError: The features were loaded without a model.
        ModelStateError: A part of the model is offloaded.
        NonFiniteError: A checkpoint holds NaN or infinity; the error's note says which.
        KeyboardInterrupt: Ctrl-C before the first checkpoint was finished.
    """
    if isinstance(features, Fitted):
        features.dictionary.of_gradients(
            "pf.track() follows how well gradients are rebuilt", "Track features of method 'l3d'."
        )
    listed = read_steps(checkpoints, steps)
    if n_samples < 1:
        raise SettingError(f"n_samples={n_samples} must be at least 1; about 1000 is usual.")
    adapter = _whole_adapter(features, params, fit)
    check_checkpoints(adapter, listed)
    if not isinstance(features, Fitted):
        _check_rows(len(read_inputs(adapter, tokens, inputs)), 4 / _HELD_OUT)
    with lent(adapter) as load:
        if not isinstance(features, Fitted):
            step, last = listed[-1]
            load(last, step)
            harvest = HarvestSettings(held_out_fraction=_HELD_OUT)
            settings = {"harvest": harvest, "seed": seed, "progress": progress} | dict(fit or {})
            features = decompose(features, params, tokens, inputs=inputs, **settings)
            tokens = inputs = None
        plan = TrackPlan(features.inputs_or_examples(tokens, inputs), n_samples, refit, seed)
        _check_rows(len(plan.inputs), 4)
        if refit:
            check_refit(features, "Leave refit= out.")
        follower = _Follower(features, plan)
        steps_done, rows, homes = follower.over(listed, load, progress)
    if homes:
        home, home_errors = homes[-1], rows[homes[-1]].errors
    else:
        home, home_errors = None, errors_at(features, plan) if follower.is_home else {}
    return track_of(steps_done, rows, features, home=home, home_errors=home_errors, n_asked=len(listed))


@dataclass(frozen=True)
class _Follower:
    """Features, and what is measured of them at each checkpoint."""

    features: Fitted
    plan: TrackPlan

    @property
    def is_home(self) -> bool:
        """Whether the decomposed parameters are now, bit for bit, those that the features were fitted at."""
        records = self.features.params
        return all(fingerprint(view) == records[view.name].fingerprint for view in self._engine.subset.views)

    @property
    def _engine(self) -> GradientEngine:
        return self.features.bound_engine("track")

    def over(
        self, listed: Sequence[tuple[TrainingStep, Any]], load: Any, progress: bool
    ) -> tuple[list[TrainingStep], list[TrackRow], list[int]]:
        """Steps and rows of the checkpoints that were finished, and which of them are home."""
        steps: list[TrainingStep] = []
        rows: list[TrackRow] = []
        homes: list[int] = []
        before: ParamMatrices | None = None
        try:
            for step, checkpoint in tqdm(listed, desc="track", unit="checkpoint", disable=not progress, file=sys.stderr):
                row, before, is_home = self._at(step, checkpoint, load, before)
                homes += [len(rows)] if is_home else []
                rows.append(row)
                steps.append(step)
        except KeyboardInterrupt:
            if not rows:
                raise
        return steps[: len(rows)], rows, homes

    def _at(
        self, step: TrainingStep, checkpoint: Any, load: Any, before: ParamMatrices | None
    ) -> tuple[TrackRow, ParamMatrices, bool]:
        try:
            load(checkpoint, step)
            now = chosen_matrices(self._engine, self._engine.subset.tensors)
            change = None if before is None else {name: now[name] - before[name] for name in now}
            return row_at(self.features, self.plan, change), now, self.is_home
        except Exception as error:
            error.add_note(f"This was at the checkpoint of step {step}.")
            raise


def _whole_adapter(features: Any, params: ParamSpec | None, fit: Mapping[str, Any] | None) -> Adapter:
    """The adapter of the model, given alone or with features; nothing of it is offloaded."""
    if isinstance(features, Fitted):
        if params is not None or fit is not None:
            raise SettingError(
                "params= and fit= are for a model, of which features are to be fitted; these exist. Leave them out."
            )
        return _refuse_offloaded(features.bound_engine("track").adapter)
    if params is None:
        raise SettingError(
            f"features is a {type(features).__name__}. Give features that are bound to a model, or a model with "
            'params=, such as params="blocks.0.attn.W_K".'
        )
    adapter = adapter_for(features)
    check_ready(adapter)
    return _refuse_offloaded(adapter)


def _refuse_offloaded(adapter: Adapter) -> Adapter:
    offloaded = next((view.name for view in adapter.views().values() if view.stored.is_meta), None)
    if offloaded is not None:
        raise ModelStateError(
            f"{offloaded!r} is offloaded or has no values, so that no checkpoint's can be put there. Load the model whole, "
            "without device_map=."
        )
    return adapter


def _check_rows(n: int, n_least: float) -> None:
    if n < n_least:
        raise SampleCountError(
            f"Got {n} sequences (inputs). Of those that are measured on one half is for controls, and two are needed in "
            f"each half: give at least {n_least:.0f}, and better a few hundred."
        )
