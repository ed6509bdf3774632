"""Which attention layer two sets of features share, and how it makes its scores."""

import re

from param_features.errors import AdapterError, FeatureMismatchError, SettingError, UnknownParameterError
from param_features.fitted import Fitted
from param_features.params import Attention


def shared_layer(features_q: Fitted, features_k: Fitted, layer: int | str | None) -> tuple[str, Attention]:
    """Find the layer whose query matrix the first set holds and whose key matrix the second, with its name.

    Raises:
        AdapterError: It is not known how the model makes its scores.
        UnknownParameterError: There is no such layer.
        SettingError: There are several, and `layer` names none of them.
        FeatureMismatchError: The sets are of different models.
    """
    attentions = _known_attentions(features_q, features_k)
    shared = {
        name: attention
        for name, attention in attentions.items()
        if attention.query in features_q.params and attention.key in features_k.params
    }
    if not shared:
        names = ", ".join(map(repr, dict.fromkeys([*features_q.params, *features_k.params])))
        example = next(iter(attentions.values()))
        raise UnknownParameterError(
            f"The features are of {names}. One layer's query matrix must be in the first set and its key matrix in the "
            f"second: {example.query!r} and {example.key!r}, for example. Decompose these, in one call or two."
        )
    chosen = {name: attention for name, attention in shared.items() if layer is None or layer in (name, _number(name))}
    if len(chosen) != 1:
        raise SettingError(f"layer={layer!r}. The features share {', '.join(map(repr, shared))}: give one's name or number.")
    return next(iter(chosen.items()))


def _known_attentions(features_q: Fitted, features_k: Fitted) -> dict[str, Attention]:
    """List the model's layers of which it is known how they make scores, by name."""
    engines = [features.engine for features in (features_q, features_k) if features.engine is not None]
    if not engines:
        raise AdapterError(
            "The features were loaded without a model, so heads, scale and rotation are not known. Use "
            "pf.load(dir, model=…), or give attention=pf.circuits.Attention(query=…, key=…, n_heads=…, scale=…)."
        )
    modules = {id(engine.adapter.module) for engine in engines}
    if len(modules) > 1:
        raise FeatureMismatchError("The two sets are of different models. Give features of one model's W_Q and W_K.")
    attentions = engines[0].adapter.attentions()
    if not attentions:
        raise AdapterError(
            f"How {engines[0].adapter.description} makes its attention scores is not known: its layers are of no known "
            "kind, or norm queries and keys first. Where only a rotation lies between, say how: attention="
            "pf.circuits.Attention(query=…, key=…, n_heads=…, scale=…, n_key_heads=…, "
            "rotary=pf.circuits.Rotary.of_base(rotary_dim))."
        )
    return attentions


def _number(name: str) -> int | None:
    """Read the layer's number from its name: the 2 of `blocks.2.attn`."""
    match = re.search(r"\d+", name)
    return int(match[0]) if match else None
