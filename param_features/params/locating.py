"""Finding a saved parameter in a model: by its name, or else by its weights, under whatever name another library has."""

from collections.abc import Mapping

from param_features.errors import FingerprintError, UnknownParameterError, nearest
from param_features.params.adapter import Adapter
from param_features.params.fingerprints import fingerprint
from param_features.params.readiness import check_present, check_ready
from param_features.params.record import ParamRecord
from param_features.params.subset import ParamSubset
from param_features.params.views import ParamView


def matching_views(adapter: Adapter, params: Mapping[str, ParamRecord]) -> tuple[ParamView, ...]:
    """For each saved parameter, in order, the model's own with the same weights.

    Cost: hashes the parameter of that name; where the model has none, every one of the same size.

    Raises:
        FingerprintError: No parameter has these weights, several have, two saved ones would share one, or it is tied in one
            model only.
        UnknownParameterError: The model has no parameter of that name and none with these weights.
        ModelStateError: Some of the model's weights have no values, or the matching ones come and go with each call.
    """
    check_ready(adapter)
    known = adapter.views() | adapter.parts()
    aliases = adapter.aliases()
    matched: dict[str, ParamView] = {}
    saved_as: dict[str, str] = {}
    for name, record in params.items():
        by_name = known.get(aliases.get(name, name))
        if by_name is not None and fingerprint(by_name) == record.fingerprint:
            view = by_name
        else:
            view = _by_weights(name, record, by_name, known, aliases)
        _refuse_other_ties(name, record, view)
        if view.name in matched:
            raise FingerprintError(
                f"{saved_as[view.name]!r} and {name!r} were decomposed together, and this model has both weights in "
                f"{view.name!r} only. Load a model that holds both."
            )
        matched[view.name], saved_as[view.name] = view, name
    views = tuple(matched.values())
    check_present(ParamSubset(views))
    return views


def _by_weights(
    name: str,
    record: ParamRecord,
    by_name: ParamView | None,
    known: Mapping[str, ParamView],
    aliases: Mapping[str, str],
) -> ParamView:
    same_size = [view for view in known.values() if view.matrix_shape == record.matrix_shape]
    same_weights = [view for view in same_size if fingerprint(view) == record.fingerprint]
    if len(same_weights) == 1:
        return same_weights[0]
    if same_weights:
        raise FingerprintError(
            f"{name!r} could be {', '.join(repr(view.name) for view in same_weights[:4])}: they hold the same values. Load "
            "a model that calls it by the saved name."
        )
    if by_name is None:
        raise UnknownParameterError(
            f"The model has no {name!r}, and none of its {len(same_size)} parameters of that size has the weights that were "
            f"decomposed. Nearest names: {nearest(name, [*known, *aliases])}. Load the same checkpoint with the same "
            "processing."
        )
    if tuple(by_name.shape) != record.shape:
        raise FingerprintError(
            f"{name!r} has shape {tuple(by_name.shape)} in this model; the features were found on {record.shape}. Load the "
            "model that was decomposed."
        )
    raise FingerprintError(
        f"{name!r} has other weights than the ones that were decomposed (or another dtype). Load the same checkpoint with "
        "the same processing: folding LayerNorm, centring or further training change the weights."
    )


def _refuse_other_ties(name: str, record: ParamRecord, view: ParamView) -> None:
    """Refuse a weight that this model uses in more places: its gradient is another one."""
    if len(view.places) != record.n_places:
        raise FingerprintError(
            f"{name!r} was held by {record.n_places} module(s) where it was decomposed, and {view.name!r} is held by "
            f"{len(view.places)} here (tied weights): the same values, but other gradients. Load a model tied as that was."
        )
