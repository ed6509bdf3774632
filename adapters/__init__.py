"""How foreign models are read: one file per library, one registry, one interface.

`adapter_for(model)` finds the adapter by the class names in the model's MRO, so no foreign library is imported here.
"""

from param_features.adapters.base import Adapter
from param_features.adapters.hooked_transformer import HookedTransformerAdapter
from param_features.adapters.hugging_face import HuggingFaceAdapter
from param_features.adapters.module import ModuleAdapter
from param_features.adapters.registry import adapter_for, register_adapter
from param_features.adapters.transformer_bridge import TransformerBridgeAdapter
from param_features.adapters.wrappers import compiled_adapter, nnsight_adapter, parallel_adapter

register_adapter("transformer_lens.HookedTransformer", HookedTransformerAdapter)
register_adapter("transformer_lens.TransformerBridge", TransformerBridgeAdapter)
register_adapter("transformers.PreTrainedModel", HuggingFaceAdapter)
register_adapter("nnsight.Envoy", nnsight_adapter)
register_adapter("torch.OptimizedModule", compiled_adapter)
register_adapter("torch.DataParallel", parallel_adapter)
register_adapter("torch.DistributedDataParallel", parallel_adapter)
register_adapter("torch.Module", ModuleAdapter)

__all__ = [
    "Adapter",
    "HookedTransformerAdapter",
    "HuggingFaceAdapter",
    "ModuleAdapter",
    "TransformerBridgeAdapter",
    "adapter_for",
    "register_adapter",
]
