"""TransformerLens' `HookedEncoder` (BERT) and `HookedEncoderDecoder` (T5), made of HookedTransformer's components."""

from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor, nn

from param_features.errors import AdapterError
from param_features.params import Attention

from .hooked_transformer import HookedTransformerAdapter


class HookedEncoderAdapter(HookedTransformerAdapter):
    """A `HookedEncoder`: logits of its masked-language head; every position sees every other, so padding is masked."""

    _ATTENTION_INPUTS: ClassVar[dict[str, str | int]] = {"Q": 0, "K": 1, "V": 2}

    def fold(self, owner: nn.Module, attribute: str, n_dims: int) -> str:
        """As HookedTransformer's; the heads' and the token types' matrices are [in, out] too."""
        return "i o -> o i" if attribute in ("W", "W_token_type") else super().fold(owner, attribute, n_dims)

    def padding(self, mask: Bool[Tensor, "batch pos"]) -> dict[str, Tensor]:
        """Its `one_zero_attention_mask`."""
        return {"one_zero_attention_mask": mask.long()}

    def to_ids(self, text: str) -> list[int]:
        """Ids by the model's tokenizer, its special tokens among them."""
        return super().to_ids(text) if self.model.tokenizer is None else self.model.to_tokens(text)[0][0].tolist()


class HookedEncoderDecoderAdapter(HookedEncoderAdapter):
    """A `HookedEncoderDecoder`: logits of its decoder."""

    _ATTENTION_INPUTS: ClassVar[dict[str, str | int]] = HookedTransformerAdapter._ATTENTION_INPUTS

    def attentions(self) -> dict[str, Attention]:
        """None: a relative bias is added to its scores."""
        return {}

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns.

        Raises:
            AdapterError: There are no tokens for its decoder.
        """
        if len(args) < 2 and kwargs.get("decoder_input") is None:
            raise AdapterError(
                f"{type(self.model).__name__} has an encoder and a decoder. Pass tokens for both: "
                'inputs={"input": …, "decoder_input": …}.'
            )
        return super().call(*args, **kwargs)
