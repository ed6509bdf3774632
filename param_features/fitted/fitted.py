"""What a fit leaves behind: a dictionary with its records, and its model where it has one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import FeatureCountError, InputError, NotBoundError, ParamFeaturesError, SettingError
from param_features.fit import Dictionary, Readings
from param_features.fit.formats import LowRank
from param_features.fitted.metrics import Metrics
from param_features.fitted.parts import Parts
from param_features.fitted.saved import SavedFeatures, write_saved
from param_features.gradients import GradientEngine, collect_references, following, is_as_planned
from param_features.machine import launched, methods_in_own_modes, notify, public
from param_features.params import ParamRecord, unfold_matrix
from param_features.problem import Divergence, ModelInputs, Question, check_reference, read_inputs

Features = TypeVar("Features", bound="Fitted")
Each = TypeVar("Each")

_N_REFERENCES = 16
"""Outputs that are drawn where a reference of another name than the fit's is asked for."""


@methods_in_own_modes
@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit's features, as every analysis takes them: a dictionary, the question that it answers, and records of the run.

    Two are equal where they are one object, as modules are; `pf.match` compares what they hold.

    Attributes:
        dictionary: The directions, and how gradients are read and rebuilt by them.
        question: The divergence, and the references that activations average over.
        params: The decomposed parameters by name.
        metrics: Held-out metrics and their controls.
        config: Settings of the run, for the record.
        examples: Held-out inputs for `top_examples`; None when they could not be saved.
        engine: The model's gradients; None for features loaded without a model.
    """

    dictionary: Dictionary
    question: Question
    params: Mapping[str, ParamRecord]
    metrics: Metrics
    config: Mapping[str, Any]
    examples: ModelInputs | None = None
    engine: GradientEngine | None = None
    _example_readings: list[Readings] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls: type[Features], fitted: "Fitted") -> Features:
        """The same fit with the methods of this class; one that has them already is returned as it is."""
        if isinstance(fitted, cls):
            return fitted
        return cls(**{field.name: getattr(fitted, field.name) for field in fields(fitted)})

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.dictionary.n_features

    @property
    def v_in(self) -> LowRank:
        """The directions that map gradients to activations."""
        return self.dictionary.v_in

    @property
    def v_out(self) -> LowRank:
        """The features' unit-norm directions."""
        return self.dictionary.v_out

    @property
    def threshold(self) -> float:
        """The size of a coordinate from which a code keeps its feature."""
        return self.dictionary.threshold

    @property
    def measured(self) -> str:
        """What an activation is, with its unit, in words."""
        return self.dictionary.measured(self.divergence)

    def name_of(self, feature: int) -> str:
        """What a feature is called where it is shown."""
        return f"{self.dictionary.kind[:-1]} {feature}"

    @property
    def divergence(self) -> Divergence:
        """The divergence D that gradients are taken of."""
        return self.question.divergence

    @property
    def reference(self) -> str:
        """Name of the reference that the fit used."""
        return self.question.kind

    @property
    def references(self) -> Float[Tensor, "n_references d_output"]:
        """The outputs that activations average over, in the divergence's reference space."""
        return self.question.references

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
        """How many features there are."""
        return self.n_features

    def __repr__(self) -> str:
        """Say what was decomposed and how well, with the controls."""
        names, kind = ", ".join(self.params), self.dictionary.kind
        head = (
            f"Param{kind.capitalize()}: {self.n_features} {kind} of {names} (divergence {self.divergence.name!r}, reference "
        )
        return f"{head}{self.reference!r})\n{self.metrics!r}"

    @public
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
        return self.named(parts)

    def named(self, pairs: Iterable[tuple[str, Each]]) -> Parts[Each]:
        """What belongs to each decomposed parameter, by every name that `params=` takes for it."""
        return Parts(pairs, lambda: {} if self.engine is None else self.engine.adapter.aliases())

    def with_directions(
        self: Features, v_out: LowRank, v_in: LowRank | None = None, *, threshold: float | None = None
    ) -> Features:
        """The features with other directions, which are V_in too unless another is given; examples are read anew.

        Raises:
            SettingError: These are components.
        """
        threshold = self.threshold if threshold is None else threshold
        own = self.dictionary.of_gradients("with_directions() exchanges directions", "Exchange `dictionary` itself.")
        dictionary = replace(own, v_in=v_out if v_in is None else v_in, v_out=v_out, threshold=threshold)
        return replace(self, dictionary=dictionary, _example_readings=[])

    @public
    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write `features.safetensors` and `config.json` into a directory: data only, no code.

        The held-out examples are saved too, so that a colleague sees the same top examples; examples that are no tensors
        are left out. Of several processes that accelerate launched the main one writes.
        """
        self._tell_of_changes()
        if launched().is_main:
            saved = SavedFeatures(
                params=self.params,
                dictionary=self.dictionary,
                divergence=self.divergence.name,
                reference=self.reference,
                references=self.references,
                metrics=self.metrics,
                config=self.config,
                examples=self.examples,
            )
            write_saved(directory, saved)

    def _tell_of_changes(self) -> None:
        """Give a `Notice` where the model is no longer that of the features: what is saved belongs to its weights before."""
        try:
            if self.engine is not None:
                following(self.engine)
        except ParamFeaturesError as error:
            notify(f"The features are saved; they belong to the model as it was. {error}")

    def bound_to(self: Features, engine: GradientEngine) -> Features:
        """The same features with a model, each factor on its parameter's device, parameters under that model's names."""
        names = dict(zip(self.params, engine.subset.names, strict=True))
        fingerprints = [record.fingerprint for record in self.params.values()]
        views = zip(engine.subset.views, fingerprints, strict=True)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(engine.device)

        devices = {view.name: view.tensor.device for view in engine.subset.views}
        return replace(
            self,
            dictionary=self.dictionary.placed(names, devices),
            question=replace(self.question, references=move(self.references)),
            params={view.name: ParamRecord.of(view, fingerprint) for view, fingerprint in views},
            examples=None if self.examples is None else self.examples.map(move),
            engine=engine,
            _example_readings=[],
        )

    @public
    def check_feature(self, feature: int) -> None:
        """Refuse a number that no feature has.

        Raises:
            FeatureCountError: Gives the range.
        """
        if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < self.n_features:
            kind = self.dictionary.kind
            raise FeatureCountError(
                f"There is no {kind[:-1]} {feature!r}. {kind.capitalize()} are numbered 0 to {self.n_features - 1}."
            )

    def bound_engine(self, call: str) -> GradientEngine:
        """The model's gradients, for a call that needs them; a `Notice` where it has changed since it was bound.

        Raises:
            ModelStateError: The model has changed since, so that the features no longer fit it.
            NotBoundError: The features were loaded without a model; names the call.
        """
        if self.engine is None:
            raise NotBoundError(
                f"{call}() needs the model, and these features were loaded without one. Use pf.load(dir, model=…)."
            )
        return following(self.engine)

    def question_with(self, reference: Tensor | str | None = None, n_references: int | None = None) -> Question:
        """The features' question, with other references, or with the first of its own.

        Raises:
            InputError: The references have another width than outputs, or there are not so many; or a reference by another
                name than the fit's is drawn from examples, and there are none.
            SettingError: No reference has this name, or it means nothing for the divergence, or for components.
            NotBoundError: Outputs are needed, and the features were loaded without a model.
        """
        if reference is not None or n_references is not None:
            self.dictionary.of_gradients(
                "reference= and n_references= say what outputs are compared with", "Leave them out."
            )
        n_stored, d_output = self.references.shape
        if isinstance(reference, str):
            named = self._question_named(reference, n_references or max(n_stored, _N_REFERENCES))
            return replace(self, question=named).question_with(None, n_references if len(named.references) > 1 else None)
        if reference is not None:
            check_reference(reference, self.divergence)
            rows = reference.reshape(-1, reference.shape[-1])
            if rows.shape[1] != d_output:
                raise InputError(
                    f"reference has shape {tuple(reference.shape)}. Outputs here have {d_output} numbers: give "
                    f"[{d_output}] or [n_references, {d_output}]."
                )
            return replace(self.question, references=self.divergence.to_reference(rows.to(self.references)))
        if n_references is not None and not 1 <= n_references <= n_stored:
            raise InputError(
                f"n_references={n_references}, but {n_stored} are stored. Ask for 1 to {n_stored}, or fit with "
                "harvest=pf.HarvestSettings(n_references=…)."
            )
        return replace(self.question, references=self.references[:n_references])

    def _question_named(self, reference: str, n: int) -> Question:
        """The question with references as a fit of that name would have; outputs are drawn from the examples."""
        are_alike = {reference, self.reference} <= {"sample", "label"}
        if reference == self.reference or are_alike:
            return self.question
        check_reference(reference, self.divergence)
        if reference == "uniform":
            references = torch.full_like(self.references[:1], 1 / self.references.shape[1])
        else:
            engine, generator = self.bound_engine("activations"), torch.Generator().manual_seed(0)
            references = collect_references(engine, self.divergence, self.own_examples, reference, n, generator)
        return Question(self.divergence, reference, references.to(self.references))

    def texts(self, tokens: Any, call: str = "show") -> tuple[list[list[str]], ModelInputs]:
        """Each row's tokens as strings, without padding, and the rows as the model takes them."""
        adapter = self.bound_engine(call).adapter
        inputs = self.read(tokens, None, call)
        return [adapter.to_strings(row) for row in inputs.token_rows], inputs

    def inputs_or_examples(self, tokens: Any, inputs: Any) -> ModelInputs:
        """Return the given inputs as the model takes them, or the held-out examples where none are given.

        Raises:
            InputError: Nothing is given and the features were saved without examples, or the model cannot take it.
        """
        if tokens is None and inputs is None:
            return self.own_examples
        return self.read(tokens, inputs, "read_inputs")

    def read(self, tokens: Any, inputs: Any, call: str) -> ModelInputs:
        """Return inputs as the model takes them, with those positions as samples that the fit took.

        Raises:
            NotBoundError: The features were loaded without a model; names the call.
            InputError: The model cannot take them.
        """
        engine = self.bound_engine(call)
        return engine.located(read_inputs(engine.adapter, tokens, inputs))

    @property
    def own_examples(self) -> ModelInputs:
        """Return the held-out examples that were kept with the features.

        Raises:
            InputError: The features were saved without any.
        """
        if self.examples is None:
            raise InputError("These features were saved without examples. Pass tokens= or inputs=.")
        return self.examples

    def activations_on(self, inputs: ModelInputs) -> Float[Tensor, "*sample feature"]:
        """Activations; those of the features' own examples are read once and remembered."""
        if inputs is self.examples:
            return self.readings_on(inputs).activations
        return self.dictionary.activations(self.bound_engine("activations"), self.question, inputs)

    def ranked_on(
        self, inputs: ModelInputs
    ) -> tuple[Float[Tensor, "*sample feature"], Float[Tensor, "*sample feature"] | None]:
        """Activations, and by what samples are ranked; None for shares of the activations."""
        if self.dictionary.kind == "features":
            return self.activations_on(inputs), None
        readings = self.readings_on(inputs)
        return readings.activations, self.dictionary.strengths(readings)

    def readings_on(self, inputs: ModelInputs) -> Readings:
        """Activations and codes in one pass; those of the features' own examples are read once and remembered."""
        engine = self.bound_engine("activations")
        if inputs is not self.examples or self.engine is None or not is_as_planned(self.engine):
            return self.dictionary.read(engine, self.question, inputs)
        if not self._example_readings:
            self._example_readings.append(self.dictionary.read(engine, self.question, inputs))
        return self._example_readings[0]
