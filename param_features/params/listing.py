"""`pf.list_params`: the parameters of a model by name."""

from typing import Any

from param_features.machine import public
from param_features.params.registry import adapter_for
from param_features.params.views import ParamInfo


@public
def list_params(model: Any) -> list[ParamInfo]:
    """Every parameter's name, shape, number of entries and parts, by the library's own names; tied weights once."""
    adapter = adapter_for(model)
    parts = [name[:-1].rpartition("[") for name in adapter.parts()]
    return [
        ParamInfo(
            view.name, tuple(view.shape), view.shape.numel(), tuple(part for whole, _, part in parts if whole == view.name)
        )
        for view in adapter.views().values()
    ]
