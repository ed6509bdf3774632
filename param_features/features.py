"""`ParamFeatures`: what `decompose` returns and `load` gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.decompose import LINEAR, Encoder
from param_features.directions import LowRank
from param_features.divergence import Divergence
from param_features.errors import FeatureCountError, InputError, NotBoundError, SettingError
from param_features.gradients import GradientEngine
from param_features.inputs import ModelInputs, read_inputs, real_first
from param_features.measure import (
    Example,
    L0Curve,
    Metrics,
    TopLogits,
    activation_parts,
    activations,
    default_l0s,
    errors_by_l0,
    harvest_halves,
    top_examples,
    top_logits,
)
from param_features.measure.activations import Route
from param_features.measure.examples import Ranking
from param_features.params import unfold_matrix
from param_features.record import ParamRecord, saved_record, saved_tensors
from param_features.store import write_bundle
from param_features.views import NeuronView, Page, choice_view, feature_view, neuron_view, show, tokens_view
from param_features.views.report import contents, write_report


@dataclass(frozen=True)
class ParamFeatures:
    """Low-rank directions in parameter space, each of which matters for few inputs.

    A feature is a local gradient direction: features need not sum to W.

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

    def __len__(self) -> int:
        """Number of features."""
        return self.n_features

    def __repr__(self) -> str:
        """What was decomposed and how well, with the controls."""
        names = ", ".join(self.params)
        head = f"ParamFeatures: {self.n_features} features of {names} (divergence {self.divergence.name!r}, reference "
        return f"{head}{self.reference!r})\n{self.metrics!r}"

    def activations(
        self,
        tokens: Any = None,
        *,
        inputs: Any = None,
        reference: Tensor | None = None,
        n_references: int | None = None,
        route: Route = "auto",
    ) -> Float[Tensor, "*sample feature"]:
        """Every feature's activation at every sample.

        Args:
            tokens: Integers [batch, pos], or a list of strings.
            inputs: Instead of tokens, anything that the module takes.
            reference: Outputs to compare with, [d_output] or [n_references, d_output]; the fit's own by default.
            n_references: How many of the stored references to average over; all by default.
            route: `"vjp"`, `"jvp"`, or the cheaper of the two.

        Returns:
            [batch pos feature] for token models, [batch feature] otherwise; signed, in divergence units (nats for KL) per
            unit step along the feature; 0 at padding. On the CPU.

        Raises:
            NotBoundError: The features were loaded without a model.
            InputError: Inputs that the model cannot take, or references of the wrong shape.
        """
        engine = self._bound("activations")
        found = read_inputs(engine.adapter, tokens, inputs)
        references = self._references(reference, n_references)
        return activations(engine, self.v_in, self.divergence, references, found, route=route)

    def codes(
        self, tokens: Any = None, *, inputs: Any = None, reference: Tensor | None = None, n_references: int | None = None
    ) -> Float[Tensor, "*sample feature"]:
        """The few coordinates that rebuild each sample's gradient: as in the fit, zero for every feature that is not kept.

        Activations are linear in the gradient; a code is what the fit itself used. Arguments, shape, units and errors are
        those of `activations`.
        """
        read = replace(self, v_in=self.encoder.reads(self.v_in, self.v_out))
        overlaps = read.activations(tokens, inputs=inputs, reference=reference, n_references=n_references)
        return self.encoder.codes(overlaps, self.v_out.gram(), self.threshold)

    def top_examples(
        self, feature: int, n: int = 10, *, tokens: Any = None, inputs: Any = None, by: Ranking = "share"
    ) -> list[Example]:
        """The samples that a feature matters most for, one from each sequence, strongest first.

        Args:
            feature: Which one.
            n: How many.
            tokens: Where to look; the held-out sequences of the fit by default.
            inputs: The same, for modules that take no tokens.
            by: `"share"`, the part of the sample's activations that is this feature's, or `"activation"`, its size alone,
                by which samples with a large gradient lead every feature's list.

        Returns:
            The examples; their `activation` is signed.

        Raises:
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
        """
        self.check_feature(feature)
        engine = self._bound("top_examples")
        found = self._found(tokens, inputs)
        acts = self._example_activations(found)
        acts = real_first(acts, found) if engine.per_position else acts.unsqueeze(1)
        rows = found.token_rows if engine.per_position else None
        return top_examples(acts, feature, rows, engine.adapter.to_strings, n=n, by=by)

    def top_logits(self, feature: int, n: int = 10, *, n_examples: int = 20) -> TopLogits:
        """The outputs that a step along a feature moves most, on average over its top examples.

        Args:
            feature: Which one.
            n: How many in either direction.
            n_examples: Over how many of its top examples to average.

        Raises:
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
        """
        best = self.top_examples(feature, n_examples)
        where = [example.row for example in best], [example.position for example in best]
        rows, positions = self._example_inputs().chosen(*where)
        return top_logits(self._bound("top_logits"), self.v_out.rows([feature]), rows, positions, n=n)

    def samples(
        self, tokens: Any = None, *, inputs: Any = None
    ) -> tuple[Float[Tensor, "sample feature"], Float[Tensor, "sample feature"]]:
        """Activations and codes of every sample in one row each, padding left out: for histograms and densities.

        Cost: that of `activations`, twice where the encoder reads V_out and that is not V_in.

        Args:
            tokens: Whose; the held-out sequences of the fit by default.
            inputs: The same, for modules that take no tokens.

        Returns:
            Activations, and the coordinates that rebuild each gradient together, zero for features that are not kept.

        Raises:
            NotBoundError: The features were loaded without a model.
        """
        engine = self._bound("samples")
        found = self._found(tokens, inputs)
        acts = overlaps = self._example_activations(found)
        read = self.encoder.reads(self.v_in, self.v_out)
        if read is not self.v_in:
            overlaps = activations(engine, read, self.divergence, self.references, found)
        codes = self.encoder.codes(overlaps, self.v_out.gram(), self.threshold)
        is_real = torch.ones(acts.shape[:-1], dtype=torch.bool)
        if engine.per_position and found.mask is not None:
            is_real = found.mask.cpu()
        return acts[is_real], codes[is_real]

    def densities(self, tokens: Any = None, *, inputs: Any = None) -> Float[Tensor, " feature"]:
        """Share of the samples that keep each feature; arguments and errors are those of `samples`."""
        return (self.samples(tokens, inputs=inputs)[1] != 0).double().mean(0)

    def errors_by_l0(
        self,
        tokens: Any = None,
        *,
        inputs: Any = None,
        l0s: Sequence[float] | None = None,
        n_samples: int = 8192,
        seed: int = 0,
    ) -> L0Curve:
        """Reconstruction error when fewer or more features are kept, beside the controls', on the same samples.

        Half of the sequences (inputs) are measured on. The principal directions come from the other half; those behind
        `metrics["control_pca"]` come from all training samples, which are more, and may do a little better.

        Cost: a harvest of up to five times `n_samples` gradients; see `decompose`.

        Args:
            tokens: Where to measure; the held-out sequences of the fit by default.
            inputs: The same, for modules that take no tokens.
            l0s: Features kept per sample on average; by default the fit's l0, its half, quarter, double and fourfold.
            n_samples: About how many samples to measure on at most.
            seed: Of positions, references and the random control.

        Returns:
            The errors by name; `pf.plot.pareto` draws them.

        Raises:
            FeatureCountError: An l0 lies outside (0, n_features].
            SettingError: `n_samples` is not positive, or `l0s` is empty.
            SampleCountError: There are fewer than four sequences.
            NotBoundError: The features were loaded without a model.
        """
        if n_samples < 1:
            raise SettingError(f"n_samples={n_samples} must be at least 1; a few thousand is usual.")
        engine, generator = self._bound("errors_by_l0"), torch.Generator().manual_seed(seed)
        found = self._found(tokens, inputs)
        sampled = {"n_samples": n_samples, "generator": generator}
        stores = harvest_halves(engine, self.divergence, self.reference, self.references, found, **sampled)
        l0s = default_l0s(self.metrics["l0"], self.n_features) if l0s is None else l0s
        call = {"l0s": l0s, "generator": generator, "encoder": self.encoder}
        return errors_by_l0(self.v_in, self.v_out, stores, engine, **call)

    def direction(self, feature: int) -> dict[str, Float[Tensor, "*shape"]]:
        """A feature's unit-norm direction as dense tensors of the parameters' shapes, by name; new tensors.

        Raises:
            FeatureCountError: There is no such feature.
        """
        self.check_feature(feature)
        matrices = self.v_out.rows([feature]).materialize()
        records = self.params
        return {name: unfold_matrix(matrix[0], records[name].fold, records[name].shape) for name, matrix in matrices.items()}

    def activation_parts(self, tokens: Any = None, *, inputs: Any = None) -> Float[Tensor, "*sample param feature"]:
        """What each decomposed parameter adds to each activation: V_in restricted to it; the parts sum to the activation.

        Parameters are in the order of `features.params`. Cost: that of `activations` for each parameter.

        Raises:
            NotBoundError: The features were loaded without a model.
            InputError: Inputs that the model cannot take.
        """
        engine = self._bound("activation_parts")
        found = read_inputs(engine.adapter, tokens, inputs)
        return activation_parts(engine, self.v_in, self.divergence, self.references, found)

    def view(self, feature: int | None = None, tokens: Any = None, *, n: int = 10) -> Page:
        """What `show` displays, as an object: `str()` is coloured text, a notebook draws it, `.save(path)` writes a page."""
        unit = self.divergence.unit
        if feature is not None:
            self.check_feature(feature)
        if tokens is None:
            if feature is None:
                raise InputError("Nothing to show. Give a feature, tokens to choose a feature on, or both.")
            return feature_view(feature, self.top_examples(feature, n), unit=unit)
        strings, found = self._texts(tokens)
        acts = real_first(self._example_activations(found), found)
        if feature is None:
            return choice_view(strings, acts, n=min(n, self.n_features), unit=unit)
        return tokens_view(feature, strings, acts[..., feature], unit=unit)

    def show(self, feature: int | None = None, tokens: Any = None, *, n: int = 10) -> None:
        """Display a feature's top examples, its activations on given tokens or texts, or texts to choose a feature on.

        In a notebook with circuitsvis; in a terminal as coloured text. Blue is positive, red negative.

        Args:
            feature: Which one; without it, `tokens` are shown with their n most active features to choose from.
            tokens: Texts or ids to show instead of the top examples.
            n: How many top examples, or features to choose from.

        Raises:
            InputError: Neither a feature nor tokens are given.
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
            NonFiniteError: Activations are NaN or infinite.
        """
        show(self.view(feature, tokens, n=n))

    def view_neurons(self, tokens: Any, *, features: Sequence[int] | None = None) -> NeuronView:
        """What `show_neurons` displays, as an object."""
        for feature in features or ():
            self.check_feature(feature)
        strings, found = self._texts(tokens)
        parts = activation_parts(self._bound("show"), self.v_in, self.divergence, self.references, found)
        parts = torch.stack([real_first(part, found) for part in parts.unbind(-2)], -2)
        return neuron_view(strings, parts, params=list(self.params), features=features, unit=self.divergence.unit)

    def show_neurons(self, tokens: Any, *, features: Sequence[int] | None = None) -> None:
        """Display texts in circuitsvis' browser of layers and neurons: the layers are parameters, the neurons features.

        The number at a token is what the parameter adds to the feature's activation there; the parameters' numbers sum to
        the activation. Cost: that of `activations` for each parameter; about 8 bytes of page a token, parameter and feature.

        Args:
            tokens: Texts or ids.
            features: Which ones to offer; all by default, the strongest here first.

        Raises:
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
            NonFiniteError: Activations are NaN or infinite.
        """
        show(self.view_neurons(tokens, features=features))

    def report(
        self,
        path: str | PathLike,
        *,
        tokens: Any = None,
        inputs: Any = None,
        sae: Any = None,
        hook_name: str | None = None,
        n_examples: int = 10,
        n_rows: int = 200,
    ) -> Path:
        """Write one self-contained page: metrics beside controls, a table of features, and each one's examples and numbers.

        The page asks no host for anything and runs no code but its own: tokens are shown as text, whatever they hold.
        Cost: a pass of activations over the rows, and one forward-mode pass for each feature.

        Args:
            path: The file, such as `"report.html"`; missing folders are made.
            tokens: Where to look; the held-out sequences of the fit by default.
            inputs: The same, for modules that take no tokens.
            sae: An SAE of sae-lens, its folder, or a pair (release, id) on the hub, whose features are put beside these; see
                `pf.compare`.
            hook_name: Where the SAE reads; what its metadata say by default.
            n_examples: Examples shown for each feature, each from another row.
            n_rows: Of what is given, the first so many are used.

        Returns:
            The file's path.

        Raises:
            NotBoundError: The features were loaded without a model.
            MissingExtraError: plotly, or with an SAE sae-lens, is not installed.
            InputError: Inputs that the model cannot take.
            SettingError: `n_examples` or `n_rows` is below 1.
        """
        from param_features.sae.compare import compare_on  # the comparison is made of two sets of features: it comes later

        self._bound("report")
        if min(n_examples, n_rows) < 1:
            raise SettingError(f"n_examples={n_examples} and n_rows={n_rows} must be positive.")
        found = self._found(tokens, inputs).rows(slice(0, n_rows))
        title = f"{self.n_features} features of {', '.join(self.params)}"
        comparison = None if sae is None else compare_on(self, sae, found, hook_name=hook_name)
        curve = self.errors_by_l0(tokens, inputs=inputs, n_samples=4096)
        return write_report(path, title, contents(self, found, curve, n_examples=n_examples, comparison=comparison))

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write `features.safetensors` and `config.json` into a directory: data only, no code.

        The held-out examples are saved too, so that a colleague sees the same top examples; examples that are no tensors
        are left out.
        """
        write_bundle(directory, saved_tensors(self), saved_record(self))

    def bound_to(self, engine: GradientEngine) -> "ParamFeatures":
        """The same features with a model, on its device, its parameters under that model's names, in the same order."""
        names = dict(zip(self.params, engine.subset.names, strict=True))
        fingerprints = [record.fingerprint for record in self.params.values()]
        views = zip(engine.subset.views, fingerprints, strict=True)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(engine.subset.views[0].tensor.device)

        v_out = self.v_out.map(move).renamed(names)
        return replace(
            self,
            v_in=v_out if self.v_in is self.v_out else self.v_in.map(move).renamed(names),
            v_out=v_out,
            params={view.name: ParamRecord.of(view, fingerprint) for view, fingerprint in views},
            references=move(self.references),
            examples=None if self.examples is None else self.examples.map(move),
            engine=engine,
            _cache={},
        )

    def _bound(self, call: str) -> GradientEngine:
        if self.engine is None:
            raise NotBoundError(
                f"{call}() needs the model, and these features were loaded without one. Use pf.load(dir, model=…)."
            )
        return self.engine

    def check_feature(self, feature: int) -> None:
        """Refuse a number that no feature has.

        Raises:
            FeatureCountError: Gives the range.
        """
        if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < self.n_features:
            raise FeatureCountError(f"There is no feature {feature!r}. Features are numbered 0 to {self.n_features - 1}.")

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
