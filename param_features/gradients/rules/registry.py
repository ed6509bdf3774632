"""The registry of layer rules."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from param_features.errors import RegistryError
from param_features.gradients.types import Gradient

LayerRule = Callable[[Any, Any, Tensor], Gradient]
"""(layer, input [batch ...] or all inputs of a call, output gradient [batch ...]) -> gradient with the batch as samples."""

_RULES: dict[tuple[type | str, str], LayerRule] = {}


def register_rule(key: type | str, attribute: str = "*") -> Callable[[LayerRule], LayerRule]:
    """Register the decorated function as the rule of a layer class's parameter, or under a name of its own.

    Args:
        key: The layer's class (subclasses inherit the rule); or, so that nothing need be imported, its top-level package and
            name, such as `"transformers.Conv1D"`; or a name that an adapter's taps use.
        attribute: The parameter's name within the layer; `"*"` for any.

    Returns:
        A decorator that hands the rule back unchanged.

    Raises:
        RegistryError: That key and attribute already have a rule.
    """

    def register(rule: LayerRule) -> LayerRule:
        if (key, attribute) in _RULES:
            raise RegistryError(
                f"{key!r}, {attribute!r} already has the rule {_RULES[key, attribute].__name__}. Register a subclass of "
                "the layer instead: look-up follows the MRO and takes the first hit."
            )
        _RULES[key, attribute] = rule
        return rule

    return register


def required_rule(key: type | str, attribute: str) -> LayerRule:
    """The rule as `rule_for` finds it.

    Raises:
        RegistryError: There is none; lists the known ones.
    """
    rule = rule_for(key, attribute)
    if rule is None:
        known = sorted(str(name if isinstance(name, str) else name.__name__) for name, _ in _RULES)
        raise RegistryError(f"No layer rule for {key!r}, {attribute!r}. Known: {', '.join(dict.fromkeys(known))}.")
    return rule


def rule_for(key: type | str, attribute: str) -> LayerRule | None:
    """The rule of the first class in the MRO that has one (or of the name), None without one."""
    for candidate in [name for _, name in _names_of(key)] if isinstance(key, type) else (key,):
        for name in (attribute, "*"):
            if (candidate, name) in _RULES:
                return _RULES[candidate, name]
    return None


def has_ruled_forward(key: type | str, attribute: str, layer: nn.Module) -> bool:
    """Whether a layer runs the very forward of the class that its rule was registered for.

    A rule's name stands for a place that an adapter knows, but `"rms_norm"`, which is any class called so.
    """
    if not isinstance(key, type):
        return key != "rms_norm"
    ruled = next((cls for cls, name in _names_of(key) if {(name, attribute), (name, "*")} & _RULES.keys()), None)
    return "forward" not in vars(layer) and getattr(type(layer), "forward", None) is getattr(ruled, "forward", None)


def _names_of(layer: type) -> list[tuple[type, type | str]]:
    """Every class of the MRO as it is and by its name."""
    return [(cls, key) for cls in layer.__mro__ for key in (cls, f"{cls.__module__.partition('.')[0]}.{cls.__name__}")]
