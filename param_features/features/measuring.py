"""What the features do on inputs: activations, examples, densities, errors."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from param_features.fit import Route
from param_features.fitted import Fitted
from param_features.machine import methods_in_own_modes, public
from param_features.measure import (
    Example,
    L0Curve,
    Ranking,
    TopLogits,
    curve_of,
    densities_of,
    examples_of,
    top_logits,
)


@methods_in_own_modes
class MeasuredFeatures(Fitted):
    """Features that can be measured on inputs."""

    @public
    def activations(
        self,
        tokens: Any = None,
        *,
        inputs: Any = None,
        reference: Tensor | str | None = None,
        n_references: int | None = None,
        route: Route = "auto",
    ) -> Float[Tensor, "*sample feature"]:
        """Every feature's activation at every sample.

        Args:
            tokens: Integers [batch, pos], or a list of strings.
            inputs: Instead of tokens, anything that the module takes.
            reference: Outputs to compare with, [d_output] or [n_references, d_output], or the name of a reference as for
                `pf.decompose`, drawn from the features' examples where the fit had another; the fit's own by default.
            n_references: How many of the stored references to average over; all by default.
            route: `"vjp"`, `"jvp"`, or the cheaper of the two.

        Returns:
            [batch pos feature] where outputs have positions, [batch feature] otherwise; signed, in divergence units (nats
            for KL) per unit step along the feature; of components their importances, 0 to 1, for which nothing is compared
            and one forward pass is enough. 0 at padding and at positions that are no samples. On the CPU.

        Raises:
            NotBoundError: The features were loaded without a model.
            InputError: Inputs that the model cannot take, or references of the wrong shape.
            SettingError: No reference has that name, or it means nothing for the divergence; or components are asked for a
                reference or a route.
        """
        engine = self.bound_engine("activations")
        question = self.question_with(reference, n_references)
        return self.dictionary.activations(engine, question, self.read(tokens, inputs, "activations"), route=route)

    @public
    def codes(
        self,
        tokens: Any = None,
        *,
        inputs: Any = None,
        reference: Tensor | str | None = None,
        n_references: int | None = None,
    ) -> Float[Tensor, "*sample feature"]:
        """The few coordinates that rebuild each sample's gradient: as in the fit, zero for every feature that is not kept.

        Activations are linear in the gradient; a code is what the fit itself used; of components both are importances.
        Arguments, shape, units and errors are those of `activations`.
        """
        engine, question = self.bound_engine("codes"), self.question_with(reference, n_references)
        return self.dictionary.sample_codes(engine, question, self.read(tokens, inputs, "codes"))

    @public
    def top_examples(
        self, feature: int, n: int = 10, *, tokens: Any = None, inputs: Any = None, by: Ranking | None = None
    ) -> list[Example]:
        """The samples that a feature matters most for, one from each sequence, strongest first.

        Args:
            feature: Which one.
            n: How many.
            tokens: Where to look; the held-out sequences of the fit by default.
            inputs: Instead of tokens, for modules that take none.
            by: `"share"`, the part of the sample's activations that is this feature's, or `"activation"`, its size alone, by
                which samples with a large gradient lead every feature's list. By default features are ranked by share,
                components by importance, and where that is the same by the size of what they read.

        Returns:
            The examples; their `activation` is signed.

        Raises:
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
        """
        self.bound_engine("top_examples")
        return examples_of(self, feature, n, self.inputs_or_examples(tokens, inputs), by=by)

    @public
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
        rows, positions = self.own_examples.chosen([example.row for example in best], [example.position for example in best])
        return top_logits(self.bound_engine("top_logits"), self.v_out.rows([feature]), rows, positions, n=n)

    @public
    def samples(
        self, tokens: Any = None, *, inputs: Any = None
    ) -> tuple[Float[Tensor, "sample feature"], Float[Tensor, "sample feature"]]:
        """Activations and codes of every sample in one row each, padding left out: for histograms and densities.

        Cost: that of `activations`, of twice as many directions where the encoder reads V_out and that is not V_in.

        Args:
            tokens: Whose; the held-out sequences of the fit by default.
            inputs: Instead of tokens, for modules that take none.

        Returns:
            Activations, and the coordinates that rebuild each gradient together, zero for features that are not kept.

        Raises:
            NotBoundError: The features were loaded without a model.
        """
        readings = self.readings_on(self.inputs_or_examples(tokens, inputs)).real()
        return readings.activations, readings.codes

    @public
    def densities(self, tokens: Any = None, *, inputs: Any = None) -> Float[Tensor, " feature"]:
        """Share of the samples that keep each feature; arguments and errors are those of `samples`."""
        return densities_of(self, self.inputs_or_examples(tokens, inputs))

    @public
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
            inputs: Instead of tokens, for modules that take none.
            l0s: Features kept per sample on average; by default the fit's l0, its half, quarter, double and fourfold.
            n_samples: About how many samples to measure on at most.
            seed: Of positions, references and the random control.

        Returns:
            The errors by name; `pf.plot.pareto` draws them.

        Raises:
            FeatureCountError: An l0 lies outside (0, n_features].
            SettingError: `n_samples` is not positive, `l0s` is empty, or these are components.
            SampleCountError: There are fewer than four sequences.
            NotBoundError: The features were loaded without a model.
        """
        rows = self.inputs_or_examples(tokens, inputs)
        return curve_of(self, rows, l0s=l0s, n_samples=n_samples, seed=seed)

    @public
    def activation_parts(self, tokens: Any = None, *, inputs: Any = None) -> Float[Tensor, "*sample param feature"]:
        """What each decomposed parameter adds to each activation: V_in restricted to it; the parts sum to the activation.

        A component lies in one parameter, which alone adds its importance. Parameters are in the order of `features.params`.
        Cost: that of `activations` for each parameter, of components for all of them.

        Raises:
            NotBoundError: The features were loaded without a model.
            InputError: Inputs that the model cannot take.
        """
        engine = self.bound_engine("activation_parts")
        return self.dictionary.activation_parts(engine, self.question, self.read(tokens, inputs, "activation_parts"))
