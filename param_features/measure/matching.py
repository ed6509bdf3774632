"""`pf.match`: the features of two fits, paired."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from param_features.errors import FeatureMismatchError
from param_features.fitted import Fitted
from param_features.machine import own_modes, public
from param_features.measure.agreement import Match, correlations, match_directions


@public
@own_modes()
def match(
    ours: Fitted,
    theirs: Fitted,
    tokens: Any = None,
    *,
    inputs: Any = None,
    names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Match:
    """Pair the features of two fits one to one by |cosine| in parameter space: stability over seeds, checkpoints, models.

    Cost: small, unless activations are compared: those of both fits.

    Args:
        ours: The first fit.
        theirs: The second, of the same parameters, or of parameters with the same matrix shapes.
        tokens: Where the activations of the pairs are correlated; without it or `inputs` they are not.
        inputs: The same, for models that take no tokens.
        names: The second fit's name for each of the first one's parameters, where they differ and so do the weights.
        seed: Of the random directions that the mean |cosine| stands beside.

    Returns:
        The pairs; `match(a, b).mean_cosine` is the agreement in one number.

    Raises:
        FeatureMismatchError: The fits are of different parameters, or parameters of different shapes.
        NotBoundError: Activations are asked for and a fit was loaded without its model.

    Example:
        >>> import torch, param_features as pf
        >>> call = {"inputs": torch.randn(200, 6), "n_features": 3, "l0": 1, "steps": 5, "progress": False}
        >>> model = torch.nn.Linear(6, 4)
        >>> a, b = (pf.decompose(model, "weight", seed=seed, **call) for seed in (0, 1))
        >>> round(pf.match(a, a).mean_cosine, 6), pf.match(a, b).mean_cosine < 1
        (1.0, True)
    """
    renamed = {their_name: our_name for our_name, their_name in _names(ours, theirs, names).items()}
    matched = match_directions(ours.v_out, theirs.v_out.renamed(renamed), torch.Generator().manual_seed(seed))
    if tokens is None and inputs is None:
        return matched
    our_activations, their_activations = (
        features.activations_on(features.read(tokens, inputs, "activations")).flatten(0, -2) for features in (ours, theirs)
    )
    return replace(matched, correlation=correlations(our_activations, their_activations, matched.pairs))


def _names(ours: Fitted, theirs: Fitted, given: Mapping[str, str] | None) -> dict[str, str]:
    """The second fit's name for each parameter of the first, by what is given, else by name, else by weights."""
    by_weights = {record.fingerprint: name for name, record in theirs.params.items()}
    names = {}
    for name, record in ours.params.items():
        same_name = name if name in theirs.params else None
        counterpart = (given or {}).get(name) or same_name or by_weights.get(record.fingerprint)
        their_record = None if counterpart is None else theirs.params.get(counterpart)
        if their_record is None or their_record.matrix_shape != record.matrix_shape:
            parameters = ", ".join(f"{n!r} {r.matrix_shape}" for n, r in theirs.params.items())
            raise FeatureMismatchError(
                f"{name!r} of the first fit has no counterpart of the same matrix shape {record.matrix_shape} in the "
                f"second, which holds {parameters}. Match fits of the same parameters, or say names={{first: second}}."
            )
        names[name] = str(counterpart)
    if len(set(names.values())) != len(theirs.params):
        unmatched = sorted(set(theirs.params) - set(names.values()))
        raise FeatureMismatchError(
            f"The second fit also holds {', '.join(map(repr, unmatched)) or 'fewer parameters'}, which the first has not: "
            "their directions lie in different spaces. Match fits of the same parameters."
        )
    return names
