"""Taking out of weights what features contribute, and what they hold of the weights."""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from param_features.features.intervening import IntervenedFeatures
from param_features.intervene import Steering, ablation_coefficients, outside_span, span_coefficients
from param_features.machine import methods_in_own_modes, public


@methods_in_own_modes
class AblatedFeatures(IntervenedFeatures):
    """Features whose part in the weights can be taken out."""

    @public
    def ablate(
        self,
        features: Iterable[int],
        *,
        rule: str = "weight",
        tokens: Any = None,
        inputs: Any = None,
        target: float = 0.9,
        scale: float = 0.1,
        seed: int = 0,
    ) -> Steering:
        """Run the model without what some features contribute, in a `with` block that restores every bit.

        Features are local directions: they need not sum to W, and no rule removes "their part" of it (`residual` gives what
        lies outside their span). Choose the rule by the question:

        - `"weight"`: δ = −Gram⁺ ⟨v, W⟩ takes the directions out of the weights, by projection. It does next to nothing
          where W holds little of them.
        - `"search"`: the shortest step against the features' mean activations on their top samples at which the mean
          divergence from the reference falls there to `target` of what it is: the outputs lose what sets them apart.
        - `"noise"`: δ_k ~ N(0, (`scale` ‖W‖)² / n): what depends on the directions is blurred.

        Args:
            features: Which ones.
            rule: One of the three.
            tokens: For `"search"`: where to look; by default the held-out sequences. Each feature's 20 top
                examples among them count.
            inputs: Instead of tokens, for modules that take none.
            target: For `"search"`: the share of the mean divergence that is left, in (0, 1).
            scale: For `"noise"`: the noise's norm as a share of ‖W‖.
            seed: For `"noise"`.

        Returns:
            A context manager as `steer` gives; `.coefficients` says what the rule chose.

        Raises:
            SettingError: `rule`, `target` or `scale` is not accepted.
            FeatureCountError: There is no such feature, or none is given.
            SearchError: The divergence never falls to the target along these features.
            NotBoundError: The features were loaded without a model.
        """
        steps = ablation_coefficients(
            self, features, rule=rule, tokens=tokens, inputs=inputs, target=target, scale=scale, seed=seed
        )
        return self.steer(steps)

    def residual(self) -> dict[str, Float[Tensor, "*shape"]]:
        """W minus the nearest point of the features' span, by name, for those who need "features + rest = W".

        Rest + Σ c_k v_k = W with the c that `weight_coefficients` gives. Few directions span little of a weight: the rest is
        most of it, and that is no failing of features that are local directions. New tensors, float32 or better.

        Raises:
            NotBoundError: The features were loaded without a model.
        """
        return outside_span(self.v_out, self.bound_engine("residual").subset)

    def weight_coefficients(self) -> Float[Tensor, " feature"]:
        """C for which Σ c_k v_k is nearest to W, in units of the weights; the shortest such c where features depend.

        Raises:
            NotBoundError: The features were loaded without a model.
        """
        return span_coefficients(self.v_out, self.bound_engine("weight_coefficients").subset)
