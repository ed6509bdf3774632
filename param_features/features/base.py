"""What a set of features consists of, and its model where it has one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.decompose import LINEAR, Encoder
from param_features.directions import LowRank
from param_features.divergence import Divergence
from param_features.errors import FeatureCountError, InputError, NotBoundError, SettingError
from param_features.features.parts import Parts
from param_features.gradients import GradientEngine
from param_features.inputs import ModelInputs, read_inputs
from param_features.measure import Metrics, activations
from param_features.params import unfold_matrix
from param_features.processes import launched
from param_features.record import ParamRecord
from param_features.saved import SavedFeatures, write_saved

Features = TypeVar("Features", bound="FittedFeatures")


@dataclass(frozen=True)
class FittedFeatures:
    """What a fit leaves behind.

    Attributes:
        v_in: Maps gradients to activations.
        v_out: Unit-norm directions.
        threshold: |coordinate| from which `codes` keeps a feature.
        params: The decomposed parameters by name.
        divergence: D.
        reference: Name of the reference that the fit used.
        references: What activations average over, [n_references d_output], in the divergence's reference space.
        metrics: Held-out metrics and their controls.
        config: Settings of the run, for the record.
        examples: Held-out inputs for `top_examples`; None when they could not be saved.
        engine: The model's gradients; None for features loaded without a model.
        encoder: How `codes` follow from activations.
    """

    v_in: LowRank
    v_out: LowRank
    threshold: float
    params: Mapping[str, ParamRecord]
    divergence: Divergence
    reference: str
    references: Float[Tensor, "n_references d_output"]
    metrics: Metrics
    config: Mapping[str, Any]
    examples: ModelInputs | None = None
    engine: GradientEngine | None = None
    encoder: Encoder = LINEAR
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.v_out.n_features

    @property
    def on_target(self) -> Float[Tensor, " feature"]:
        """Share of each feature's effect that lies on the target, which weighs as much as the background: 0 to 1.

        The effect is the mean |⟨∇, v_k⟩| over held-out samples: what a unit step does to the divergence, to first order.

        Raises:
            SettingError: The features were fitted without a background.
        """
        record = self.config.get("background")
        if record is None:
            raise SettingError(
                "on_target compares a target with a background, and these features were fitted without one. Fit them with "
                "pf.decompose(…, background=tokens)."
            )
        return torch.tensor(record["on_target"], dtype=torch.float64)

    def __len__(self) -> int:
        """Number of features."""
        return self.n_features

    def __repr__(self) -> str:
        """What was decomposed and how well, with the controls."""
        names = ", ".join(self.params)
        head = f"ParamFeatures: {self.n_features} features of {names} (divergence {self.divergence.name!r}, reference "
        return f"{head}{self.reference!r})\n{self.metrics!r}"

    def direction(self, feature: int) -> dict[str, Float[Tensor, "*shape"]]:
        """A feature's unit-norm direction as dense tensors of the parameters' shapes, by name; new tensors.

        Of features with a model, `direction(k)[name]` takes every name of the parameter that `params=` takes.

        Raises:
            FeatureCountError: There is no such feature.
        """
        self.check_feature(feature)
        matrices = self.v_out.rows([feature]).materialize()
        records = self.params
        parts = (
            (name, unfold_matrix(matrix[0], records[name].fold, records[name].shape)) for name, matrix in matrices.items()
        )
        return Parts(parts, lambda: {} if self.engine is None else self.engine.adapter.aliases())

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write `features.safetensors` and `config.json` into a directory: data only, no code.

        The held-out examples are saved too, so that a colleague sees the same top examples; examples that are no tensors
        are left out. Of several processes that accelerate launched the main one writes.
        """
        if launched().is_main:
            saved = SavedFeatures(
                params=self.params,
                v_in=self.v_in,
                v_out=self.v_out,
                threshold=self.threshold,
                n_rounds=self.encoder.n_rounds,
                divergence=self.divergence.name,
                reference=self.reference,
                references=self.references,
                metrics=self.metrics,
                config=self.config,
                examples=self.examples,
            )
            write_saved(directory, saved)

    def bound_to(self: Features, engine: GradientEngine) -> Features:
        """The same features with a model, each factor on its parameter's device, parameters under that model's names."""
        names = dict(zip(self.params, engine.subset.names, strict=True))
        fingerprints = [record.fingerprint for record in self.params.values()]
        views = zip(engine.subset.views, fingerprints, strict=True)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(engine.subset.views[0].tensor.device)

        def beside_weights(directions: LowRank) -> LowRank:
            factors = directions.renamed(names).factors
            places = {view.name: view.tensor.device for view in engine.subset.views}
            return LowRank(
                {name: (left.to(places[name]), right.to(places[name])) for name, (left, right) in factors.items()}
            )

        v_out = beside_weights(self.v_out)
        return replace(
            self,
            v_in=v_out if self.v_in is self.v_out else beside_weights(self.v_in),
            v_out=v_out,
            params={view.name: ParamRecord.of(view, fingerprint) for view, fingerprint in views},
            references=move(self.references),
            examples=None if self.examples is None else self.examples.map(move),
            engine=engine,
            _cache={},
        )

    def check_feature(self, feature: int) -> None:
        """Refuse a number that no feature has.

        Raises:
            FeatureCountError: Gives the range.
        """
        if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < self.n_features:
            raise FeatureCountError(f"There is no feature {feature!r}. Features are numbered 0 to {self.n_features - 1}.")

    def _bound(self, call: str) -> GradientEngine:
        if self.engine is None:
            raise NotBoundError(
                f"{call}() needs the model, and these features were loaded without one. Use pf.load(dir, model=…)."
            )
        return self.engine

    def _references(self, given: Tensor | None, n: int | None) -> Tensor:
        if given is not None:
            rows = given.reshape(-1, given.shape[-1])
            if rows.shape[1] != self.references.shape[1]:
                raise InputError(
                    f"reference has shape {tuple(given.shape)}. Outputs here have {self.references.shape[1]} numbers: give "
                    f"[{self.references.shape[1]}] or [n_references, {self.references.shape[1]}]."
                )
            return self.divergence.to_reference(rows.to(self.references))
        if n is not None and not 1 <= n <= len(self.references):
            raise InputError(
                f"n_references={n}, but {len(self.references)} are stored. Ask for 1 to {len(self.references)}, or fit with "
                "measure=pf.MeasureSettings(n_references=…)."
            )
        return self.references[:n]

    def _texts(self, tokens: Any) -> tuple[list[list[str]], ModelInputs]:
        """Each row's tokens as strings, without padding, and the rows as the model takes them."""
        engine = self._bound("show")
        found = read_inputs(engine.adapter, tokens, None)
        return [engine.adapter.to_strings(row) for row in found.token_rows], found

    def _found(self, tokens: Any, inputs: Any) -> ModelInputs:
        """What is given, or else the held-out examples."""
        if tokens is None and inputs is None:
            return self._example_inputs()
        return read_inputs(self._bound("read_inputs").adapter, tokens, inputs)

    def _example_inputs(self) -> ModelInputs:
        if self.examples is None:
            raise InputError("These features were saved without examples. Pass tokens= or inputs=.")
        return self.examples

    def _example_activations(self, inputs: ModelInputs) -> Tensor:
        """Activations, remembered for the fit's own examples."""
        engine = self._bound("activations")
        if inputs is not self.examples:
            return activations(engine, self.v_in, self.divergence, self.references, inputs)
        if "examples" not in self._cache:
            self._cache["examples"] = activations(engine, self.v_in, self.divergence, self.references, inputs)
        return self._cache["examples"]
