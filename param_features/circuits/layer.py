"""Which attention layer two sets of features share, and how it makes its scores."""

import re

from param_features.errors import AdapterError, FeatureMismatchError, SettingError, UnknownParameterError
from param_features.fitted import Fitted
from param_features.params import Attention


def shared_layer(features_q: Fitted, features_k: Fitted, layer: int | str | None) -> tuple[str, Attention]:
    """The layer whose query matrix the first set holds and whose key matrix the second, with its name.

    Raises:
        AdapterError: It is not known how the model makes its scores.
        UnknownParameterError: There is no such layer.
        SettingError: There are several, and `layer` names none of them.
        FeatureMismatchError: The sets are of different models.
    """
    known = _known(features_q, features_k)
    shared = {name: one for name, one in known.items() if one.query in features_q.params and one.key in features_k.params}
    if not shared:
        names = ", ".join(map(repr, dict.fromkeys([*features_q.params, *features_k.params])))
        some = next(iter(known.values()))
        raise UnknownParameterError(
            f"The features are of {names}. One layer's query matrix must be in the first set and its key matrix in the "
            f"second: {some.query!r} and {some.key!r}, for example. Decompose these, in one call or two."
        )
    chosen = {name: one for name, one in shared.items() if layer is None or layer in (name, _number(name))}
    if len(chosen) != 1:
        raise SettingError(f"layer={layer!r}. The features share {', '.join(map(repr, shared))}: give one's name or number.")
    return next(iter(chosen.items()))


def _known(features_q: Fitted, features_k: Fitted) -> dict[str, Attention]:
    """Layers of the model whose scores are known, by name."""
    engines = [features.engine for features in (features_q, features_k) if features.engine is not None]
    if not engines:
        raise AdapterError(
            "The features were loaded without a model, so heads, scale and rotation are not known. Use "
            "pf.load(dir, model=…), or give attention=pf.circuits.Attention(query=…, key=…, n_heads=…, scale=…)."
        )
    modules = {id(engine.adapter.module) for engine in engines}
    if len(modules) > 1:
        raise FeatureMismatchError("The two sets are of different models. Give features of one model's W_Q and W_K.")
    found = engines[0].adapter.attentions()
    if not found:
        raise AdapterError(
            f"How {engines[0].adapter.description} makes its attention scores is not known: its layers are of no known "
            "kind, or norm queries and keys first. Where only a rotation lies between, say how: attention="
            "pf.circuits.Attention(query=…, key=…, n_heads=…, scale=…, n_key_heads=…, "
            "rotary=pf.circuits.Rotary.of_base(rotary_dim))."
        )
    return found


def _number(name: str) -> int | None:
    """The 2 of `blocks.2.attn`."""
    found = re.search(r"\d+", name)
    return int(found[0]) if found else None
