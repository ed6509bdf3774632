"""Changing weights along features: steering, editing, ablating, and an audit of what that does."""

from collections.abc import Sequence
from typing import Any

from param_features.audit import Audit, AuditSettings, comparison_fits, run_audit
from param_features.features.measuring import MeasuredFeatures
from param_features.intervene import (
    Edit,
    Steering,
    copied,
    deltas_of,
    located,
    read_coefficients,
    read_where,
    steering,
    write_for_good,
)
from param_features.machine import methods_in_own_modes, public


@methods_in_own_modes
class IntervenedFeatures(MeasuredFeatures):
    """Features along which weights can be changed."""

    @public
    def steer(self, coefficients: Any, *, where: Any = None) -> Steering:
        """Run the model with W + Σ δ_k v_k in a `with` block; every bit of W is back afterwards.

        Inside the block generation, hooks, `run_with_cache` and nnsight traces see the changed weights. Blocks may be
        nested, which adds up, may be entered again, and may end in any order; an exception or Ctrl-C restores as well. A
        feature is a local direction: the larger δ, the less its activation foretells (see `audit`).

        Cost: a copy of the parameters on entering; with `where`, a small product at each call of their layers.

        Args:
            coefficients: Mapping from features to δ, in units of the weights: ‖δ v‖ = |δ|.
            where: Truth values [batch], or [batch, pos] in a model of tokens: the features act on those alone, through the
                layers' outputs. Needs parameters with a layer rule; see `pf.describe`.

        Returns:
            A context manager; its `coefficients` are the ones given.

        Raises:
            SettingError: No coefficients, or one that is no finite number.
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
            InputError: `where` is no mask; inside the block, the model is run on a batch of another shape.
            AdapterError: `where` with a parameter that has no layer rule.
            ModelStateError: In a backward pass that begins after the block and needs the steered weights again.
        """
        engine = self.bound_engine("steer")
        chosen = read_coefficients(coefficients, self.check_feature)
        return steering(engine, self.v_out, chosen, read_where(where, engine.per_position))

    @public
    def steered(self, model: Any, coefficients: Any) -> Any:
        """A copy of a model with W + Σ δ_k v_k; the model itself stays as it is.

        Args:
            model: One with the decomposed weights, in any library; None for the features' own.
            coefficients: Mapping from features to δ, as in `steer`.

        Returns:
            A deep copy of the same class. Cost: the model's memory again.

        Raises:
            SettingError: No coefficients, or one that is no finite number.
            FeatureCountError: There is no such feature.
            FingerprintError: The model's parameters are not the ones that were decomposed.
            AdapterError: The model cannot be copied, or no adapter recognises it.
            NotBoundError: No model is given and the features have none.
        """
        chosen = read_coefficients(coefficients, self.check_feature)
        subject = copied(self.bound_engine("steered").adapter.model if model is None else model)
        subset = located(subject, self.params)
        write_for_good(subset, deltas_of(self.v_out, chosen, subset))
        return subject

    @public
    def edit(self, model: Any, coefficients: Any) -> Edit:
        """Add Σ δ_k v_k to a model's weights **for good**; nothing is kept to undo it with.

        Args:
            model: One with the decomposed weights, in any library; None for the features' own, whose activations are from
                then on those of the edited model.
            coefficients: Mapping from features to δ, as in `steer`.

        Returns:
            How far each parameter was moved; prints as a sentence.

        Raises:
            ModelStateError: The model is being steered.
            SettingError: No coefficients, or one that is no finite number.
            FeatureCountError: There is no such feature.
            FingerprintError: The model's parameters are not the ones that were decomposed.
            AdapterError: No adapter recognises the model.
            NotBoundError: No model is given and the features have none.
        """
        chosen = read_coefficients(coefficients, self.check_feature)
        subset = self.bound_engine("edit").subset if model is None else located(model, self.params)
        return Edit(chosen, write_for_good(subset, deltas_of(self.v_out, chosen, subset)))

    @public
    def audit(
        self,
        tokens: Any = None,
        *,
        inputs: Any = None,
        refit: Any = None,
        second: Any = None,
        untrained: Any = None,
        beside: Sequence[Any] = (),
        settings: AuditSettings | None = None,
    ) -> Audit:
        """Try to refute the features: steps, sums, deletions and a search for the worst, each beside its controls.

        Rows, which pass by stated limits and only if they beat the controls they name: specificity (does a step move the
        feature's top inputs?), sign and linearity (does the activation foretell how D moves, and how far?), additivity (do
        joint steps do what single ones do?), deletion (are unused features free to delete?), adversary (the worst
        combination of unused features, within a norm and a stated budget) and stability (does a second seed find them?).
        Controls: random directions of the same rank and norm, features of matched density, shuffled samples, and the same
        rows for the features of an untrained model.

        Components, which are switched off and never stepped along, have rows of their own: deletion one by one and together
        (may what an input does not need be switched off?), adversary by masks (by any amount, in the worst combination?) and
        stability. Controls: random rank-1 matrices, importances of other positions, singular directions of the same matrices
        and random directions that sum to them, as many of them needed.

        Cost: about 4 · n_features · len(steps) forward passes of n_rows rows; with `refit`, two more decompositions.

        Args:
            tokens: Where; the held-out sequences of the fit by default.
            inputs: Instead of tokens, for modules that take none.
            refit: Training data, as `tokens` or `inputs` of `decompose`: a second seed and an untrained model (every
                parameter's entries shuffled) are decomposed on it with these features' settings.
            second: Instead, another fit of the same parameters.
            untrained: Instead, a fit of an untrained model.
            beside: Fits of the same weights by other methods, `[components]` beside features or the reverse: the rows on
                deletion and adversary by masks are then measured of all, features standing for what of the weights is
                nearest to them, and `print(audit.by_method)` has a column for each.
            settings: How much is looked at, and from when a row passes.

        Returns:
            The table; prints itself. `features.report(…, audit=…)` shows it.

        Raises:
            NotBoundError: The features were loaded without a model.
            InputError: Inputs that the model cannot take.
            FeatureMismatchError: `second` or one of `beside` is of other parameters.
            AdapterError: Components, or `beside`, and a parameter whose layer has no rule.
            SettingError: A setting is out of range, or the settings of the fit are not all known, for `refit`.
        """
        self.bound_engine("audit")
        settings = settings or AuditSettings()
        rows = self.inputs_or_examples(tokens, inputs)
        if refit is not None:
            takes_tokens = rows.tokens is not None
            second, untrained = comparison_fits(
                self, refit, takes_tokens=takes_tokens, second=second, blank=untrained, seed=settings.seed
            )
        return run_audit(self, rows, settings, second=second, untrained=untrained, beside=beside)
