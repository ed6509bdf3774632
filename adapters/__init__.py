"""How foreign models are read: one file per library, one registry, one interface.

`adapter_for(model)` finds the adapter by the class names in the model's MRO, so no foreign library is imported here.
"""

from param_features.adapters.base import Adapter
from param_features.adapters.hooked_transformer import HookedTransformerAdapter
from param_features.adapters.module import ModuleAdapter
from param_features.adapters.registry import adapter_for, register_adapter

register_adapter("transformer_lens.HookedTransformer", HookedTransformerAdapter)
register_adapter("torch.Module", ModuleAdapter)

__all__ = ["Adapter", "HookedTransformerAdapter", "ModuleAdapter", "adapter_for", "register_adapter"]
