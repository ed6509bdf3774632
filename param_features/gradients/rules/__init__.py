"""Layer rules: from a layer's input and output gradient to the factored gradient of one of its parameters.

One short file per kind of layer. `rule_for` finds a rule by name or along a class's MRO; a layer without one takes the
dense route, which gives the same answer.
"""

from param_features.gradients.rules import convolution, embedding, experts, linear, norm, shared  # noqa: F401  (they register)
from param_features.gradients.rules.registry import LayerRule, register_rule, required_rule, rule_for

__all__ = ["LayerRule", "register_rule", "required_rule", "rule_for"]
