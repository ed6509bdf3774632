"""What the features do on inputs: activations, examples, densities, errors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.features.base import FittedFeatures
from param_features.inputs import ModelInputs, read_inputs, real_first
from param_features.measure import (
    Example,
    L0Curve,
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


class MeasuredFeatures(FittedFeatures):
    """Features that can be measured on inputs."""

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
        self._bound("top_examples")
        return self._top(feature, n, self._found(tokens, inputs), by)

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

    def _top(self, feature: int, n: int, found: ModelInputs, by: Ranking = "share") -> list[Example]:
        engine, acts = self._bound("top_examples"), self._example_activations(found)
        acts = real_first(acts, found) if engine.per_position else acts.unsqueeze(1)
        rows = found.token_rows if engine.per_position else None
        return top_examples(acts, feature, rows, engine.adapter.to_strings, n=n, by=by)
