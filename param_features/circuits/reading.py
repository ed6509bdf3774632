"""What the user means by features and SAEs, as groups of nodes of one model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.adapters import read_sae
from param_features.circuits.groups import ComponentGroup, Group, SaeGroup, WeightGroup
from param_features.circuits.places import Factors, SaePlace, WeightPlace
from param_features.errors import FeatureMismatchError, SettingError
from param_features.fitted import Fitted
from param_features.gradients import at_least_float32, check_rules
from param_features.intervene import deltas_of, outside_span, weight_overlaps
from param_features.sae import find_place, place_written

Places = str | tuple[str, str] | None
"""Where an SAE reads, or where a transcoder reads and writes."""


def weight_group(features: Fitted, name: str, *, has_error: bool = True) -> WeightGroup:
    """Take the features of a bound set as nodes; components at their own sizes beside Δ.

    Args:
        features: Bound to a model.
        name: Of the group.
        has_error: Whether the rest of the weights is a node too.

    Raises:
        NotBoundError: The features were loaded without a model.
        AdapterError: A parameter has no layer rule here.
    """
    engine = features.bound_engine("circuit")
    check_rules(
        engine,
        needs="Circuits need",
        instead="Choose parameters of layers with a rule: linear maps, convolutions, embeddings, norms.",
    )
    directions, sizes = features.v_out, features.dictionary.sizes
    if not has_error:
        error = {}
    elif sizes is None:
        error = outside_span(directions, engine.subset)
    else:
        held = deltas_of(directions, dict(enumerate(sizes.tolist())), engine.subset)
        error = {view.name: at_least_float32(view.tensor.detach()) - held[view.name] for view in engine.subset.views}
    places = []
    for view in engine.subset.views:
        parts = (directions.factors[view.name], *([_whole(view.to_matrix(error[view.name]))] if has_error else []))
        places += [WeightPlace(tap, parts) for tap in engine.routes.taps[view.name]]
    gram = directions.gram().double().cpu()
    overlaps = weight_overlaps(directions, engine.subset).cpu()
    given = (name, directions.n_features, tuple(places), has_error, features, gram, overlaps)
    return WeightGroup(*given) if sizes is None else ComponentGroup(*given, sizes)


def sae_group(sae: Any, places: Places, features: Fitted) -> SaeGroup:
    """Take an SAE's features and its error as nodes, where the model passes what it rebuilds.

    Args:
        sae: An SAE or a transcoder.
        places: Where it reads, or where it reads and where it writes; None for what its metadata say.
        features: Of the model.

    Raises:
        AdapterError: It is no SAE.
        SettingError: Neither its metadata nor the user says where it reads, or two places are given for an SAE.
        InputError: Neither says where a transcoder writes.
        UnknownHookError: The model has no such place.
    """
    reader = read_sae(sae)
    read, written = places if isinstance(places, tuple) else (places, None)
    place = read or reader.hook_name
    if place is None:
        raise SettingError(f"Where the {reader.description} reads is not known. Give saes={{hook_name: sae}}.")
    place_out = place_written(reader, place, written)
    modules = [find_place(features.bound_engine("circuit").adapter, name) for name in (place_out, place)]
    sae_place = SaePlace(modules[0], place_out, reader, modules[1], place)
    return SaeGroup(place_out, reader.n_features, (sae_place,), True)


def read_groups(features: Any, saes: Any) -> tuple[Group, ...]:
    """Read what the user means by features and SAEs, as groups of nodes of one model.

    Args:
        features: One set of features, several in a list, or by names of the user's choice.
        saes: One SAE, several in a list, or by the names of their places; of a transcoder by where it reads, or by the pair
            of where it reads and where it writes. None for none.

    Raises:
        FeatureMismatchError: The sets belong to different models, or two hold the same parameter.
        SettingError: No features are given, or two groups have one name.
    """
    named = read_named(features)
    first = next(iter(named.values()))
    pairs = saes.items() if isinstance(saes, Mapping) else [(None, sae) for sae in _listed(saes)]
    groups: list[Group] = [weight_group(of_name, name) for name, of_name in named.items()]
    groups += [sae_group(sae, places, first) for places, sae in pairs]
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise SettingError(
            f"Two groups have one name: {', '.join(names)}. Give features={{name: features}}, and one SAE or transcoder for "
            "each place that is written."
        )
    return tuple(groups)


def read_named(features: Any) -> dict[str, Fitted]:
    """Read sets of features of one model by name: the user's, or their parameters'.

    Raises:
        FeatureMismatchError: The sets belong to different models, or two hold the same parameter.
        SettingError: No features are given.
    """
    named = _named(features)
    if not named or not all(isinstance(of_name, Fitted) for of_name in named.values()):
        raise SettingError("features= holds no feature sets. Give what pf.decompose returns, a list of these, or a mapping.")
    modules = {name: of_name.bound_engine("circuit").adapter.module for name, of_name in named.items()}
    first, owners = next(iter(named)), dict[tuple[int, str], str]()
    for name, of_name in named.items():
        if modules[name] is not modules[first]:
            raise FeatureMismatchError(
                f"{name!r} belongs to another model object than {first!r}. Bind all of them to one: "
                "pf.load(dir, model=model)."
            )
        for view in of_name.bound_engine("circuit").subset.views:
            key = (id(view.stored), str(view.layout.part))
            if owners.setdefault(key, name) != name:
                raise FeatureMismatchError(
                    f"{name!r} and {owners[key]!r} both hold {view.name!r}, whose parts would be counted twice. "
                    "Give one set for each parameter."
                )
    return named


def _named(features: Any) -> dict[str, Any]:
    if isinstance(features, Mapping):
        return dict(features)
    named: dict[str, Any] = {}
    for listed in _listed(features):
        name = ", ".join(listed.params) if isinstance(listed, Fitted) else str(listed)
        if name in named:
            raise FeatureMismatchError(f"Two sets of features hold {name!r}. Give one set for each parameter.")
        named[name] = listed
    return named


def _listed(values: Any) -> list[Any]:
    if values is None:
        return []
    is_many = isinstance(values, Sequence) and not isinstance(values, str) and not _is_release(values)
    return list(values) if is_many else [values]


def _is_release(values: Sequence) -> bool:
    return isinstance(values, tuple) and len(values) == 2 and all(isinstance(part, str) for part in values)


def _whole(matrix: Float[Tensor, "d_out d_in"]) -> Factors:
    """Write a matrix as one node of full rank."""
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return matrix.unsqueeze(0), eye.unsqueeze(0)
