"""What is checked about a model before anything is run on it."""

from param_features.errors import ModelStateError
from param_features.params.adapter import Adapter
from param_features.params.offloaded import is_offloaded
from param_features.params.subset import ParamSubset, has_plain_values
from param_features.params.views import ParamView


def check_ready(adapter: Adapter) -> None:
    """Refuse a model whose weights are not all there, or are not brought in when it runs.

    Raises:
        ModelStateError: Names a parameter without values and how to load them; or the wrapper makes it another model.
    """
    if adapter.refuse is not None:
        adapter.refuse()
    views = adapter.views().values()
    empty = next((view.name for view in views if view.stored.is_meta and not is_offloaded(view)), None)
    if empty is not None:
        raise ModelStateError(f"{empty!r} is on the meta device: it has a shape but no values. {_how_to_load(adapter)}")


def check_present(subset: ParamSubset) -> None:
    """Refuse chosen parameters that are there only while the model runs.

    Raises:
        ModelStateError: Names the first that `device_map=` offloaded.
    """
    offloaded = next((view.name for view in subset.views if view.stored.is_meta), None)
    if offloaded is not None:
        raise ModelStateError(
            f"device_map= offloaded {offloaded!r} to the disk or the CPU: its values come and go with each call. Other "
            "weights may be offloaded; give the layers of the parameters that are decomposed a device, or leave this one "
            "out."
        )


def why_never_chosen(view: ParamView) -> str | None:
    """In a few words, why a parameter can have no gradients though the model runs; None where nothing speaks against it."""
    if is_offloaded(view):
        return "offloaded: its values come and go with each call"
    if not view.stored.is_floating_point():
        return f"{view.stored.dtype}: only floating-point weights have gradients"
    return None if has_plain_values(view.stored) else f"{type(view.stored).__name__}: it keeps its values in another form"


def _how_to_load(adapter: Adapter) -> str:
    if adapter.wrapper.startswith("nnsight"):
        return "nnsight loads weights on first use: call model.dispatch(), or build the wrapper with dispatch=True."
    return "Load the checkpoint (from_pretrained does), or model.to_empty(device=…) and load_state_dict."


def training_notice(adapter: Adapter) -> str | None:
    """What to tell the user whose model is in training mode and would behave otherwise in evaluation; None if nothing."""
    affected = sorted(
        {type(m).__name__ for m in adapter.module.modules() if m.training and _depends_on_mode(type(m).__name__)}
    )
    if not affected:
        return None
    return (
        f"The model is in training mode, in which {', '.join(affected)} act otherwise. It is run in evaluation mode "
        "throughout, and put back."
    )


def _depends_on_mode(name: str) -> bool:
    return "BatchNorm" in name or "Dropout" in name or "DropPath" in name
