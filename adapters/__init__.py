"""How foreign models are read: one file per library, each an `Adapter` of `param_features.params`.

`adapter_for(model)` finds the adapter by the class names in the model's MRO, so no foreign library is imported here.
"""

from param_features.params import Adapter, adapter_for, register_adapter

from .autoencoder import SparseAutoencoder
from .hooked_encoder import HookedEncoderAdapter, HookedEncoderDecoderAdapter
from .hooked_transformer import HookedTransformerAdapter
from .hugging_face import HuggingFaceAdapter
from .module import ModuleAdapter
from .sae_lens import sae_lens_library
from .saes import read_sae
from .transformer_bridge import TransformerBridgeAdapter
from .wrappers import compiled_adapter, nnsight_adapter, parallel_adapter, peft_adapter

register_adapter("transformer_lens.HookedTransformer", HookedTransformerAdapter)
register_adapter("transformer_lens.HookedEncoder", HookedEncoderAdapter)
register_adapter("transformer_lens.HookedEncoderDecoder", HookedEncoderDecoderAdapter)
register_adapter("transformer_lens.TransformerBridge", TransformerBridgeAdapter)
register_adapter("transformers.PreTrainedModel", HuggingFaceAdapter)
register_adapter("peft.PeftModel", peft_adapter)
register_adapter("peft.PeftMixedModel", peft_adapter)
register_adapter("nnsight.Envoy", nnsight_adapter)
register_adapter("torch.OptimizedModule", compiled_adapter)
register_adapter("torch.DataParallel", parallel_adapter)
register_adapter("torch.DistributedDataParallel", parallel_adapter)
register_adapter("torch.Module", ModuleAdapter)

__all__ = [
    "Adapter",
    "HookedEncoderAdapter",
    "HookedEncoderDecoderAdapter",
    "HookedTransformerAdapter",
    "HuggingFaceAdapter",
    "ModuleAdapter",
    "SparseAutoencoder",
    "TransformerBridgeAdapter",
    "adapter_for",
    "read_sae",
    "register_adapter",
    "sae_lens_library",
]
