"""What is checked about a model before anything is run on it."""

from param_features.adapters import Adapter
from param_features.errors import ModelStateError
from param_features.params import all_parameters


def check_ready(adapter: Adapter) -> None:
    """Refuse a model whose weights are not all there, on one device.

    Raises:
        ModelStateError: Names a parameter without values and how to load them, or the devices.
    """
    empty = next((view.name for view in adapter.views().values() if view.stored.is_meta), None)
    if empty is not None:
        raise ModelStateError(
            f"{empty!r} is on the meta device: it has a shape but no values. {_how_to_load(adapter)} Weights that "
            "device_map= offloaded to the disk or the CPU look the same: load the model without it."
        )
    devices = sorted({str(parameter.device) for parameter in all_parameters(adapter.module)})
    mapped = getattr(adapter.module, "hf_device_map", None) or {}
    places = devices if len(devices) > 1 else sorted({str(place) for place in mapped.values()})
    if len(places) > 1:
        raise ModelStateError(
            f"The model is spread over {', '.join(places)}. Gradients are taken on one device: load it without device_map=, "
            'or with device_map={"": 0} to put all of it on the first GPU.'
        )


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
