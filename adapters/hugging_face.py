"""Adapter for Hugging Face transformers' models."""

import inspect
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from param_features.errors import AdapterError
from param_features.params import is_padded_on_the_right

from .module import ModuleAdapter


class HuggingFaceAdapter(ModuleAdapter):
    """A `PreTrainedModel`: parameters by their own names, fused matrices in part, padding by `attention_mask`."""

    @property
    def is_wrapped_by_peft(self) -> bool:
        """True: peft wraps models of this class."""
        return True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, without the cache for generation.

        Raises:
            AdapterError: An encoder-decoder model wants tokens for its decoder.
            ValueError: The model's own.
        """
        settings = {"use_cache": False, "return_dict": True}
        try:
            return self.model(*args, **{key: value for key, value in settings.items() if self._takes(key)} | kwargs)
        except ValueError as error:
            if not getattr(self.model.config, "is_encoder_decoder", False) or "decoder_input_ids" in kwargs:
                raise
            raise AdapterError(
                f"{type(self.model).__name__} has an encoder and a decoder, and refuses these arguments ({error}). Pass "
                'tokens for both: inputs={"input_ids": …, "decoder_input_ids": …}.'
            ) from error

    def peft_names(self) -> dict[nn.Module, str]:
        """Every layer's name before peft wrapped any, so that files suit the model as it is loaded."""
        return {owner: name.removesuffix(".base_layer") for owner, name in super().peft_names().items()}

    def aliases(self) -> dict[str, str]:
        """Names as they were before peft wrapped layers, without `base_layer`, beside the others."""
        unwrapped = {name.replace(".base_layer.", "."): name for name in self.views() if ".base_layer." in name}
        return super().aliases() | unwrapped

    @property
    def d_vocab(self) -> int | None:
        """How many token ids the model knows: the rows of its input embedding."""
        try:
            embedding = self.model.get_input_embeddings()
        except NotImplementedError:  # models of images and of sound have none
            return None
        return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None

    @property
    def n_ctx(self) -> int | None:
        """Positions that the model was made for; None where it has no limit, which XLNet writes as -1."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None or limit < 1 else limit

    @property
    def configured_padding(self) -> int | None:
        """The configuration's `pad_token_id`."""
        return getattr(self.model.config.get_text_config(), "pad_token_id", None)

    @property
    def n_layers(self) -> int | None:
        """Number of blocks."""
        return getattr(self.model.config.get_text_config(), "num_hidden_layers", None)

    @property
    def predicts_tokens(self) -> bool:
        """Whether the model has a layer of logits over its vocabulary."""
        return self.model.get_output_embeddings() is not None

    def head(self) -> nn.Module | None:
        """The layer of logits over the vocabulary; None where it is no linear layer."""
        head = self.model.get_output_embeddings()
        return head if isinstance(head, nn.Linear) else None

    def padding(self, mask: Bool[Tensor, "batch pos"]) -> dict[str, Tensor]:
        """`attention_mask`, and `position_ids` that count real positions where padding comes first."""
        arguments = {"attention_mask": mask.long()}
        if not is_padded_on_the_right(mask) and self._takes("position_ids"):
            arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        return arguments

    def output_mask(self, attention_mask: Tensor, n_pos: int) -> Bool[Tensor, "batch pos"] | None:
        """Which frames of a model of sound are real, by its own arithmetic; None for other models."""
        of_frames = getattr(self.model, "_get_feature_vector_attention_mask", None)
        return None if of_frames is None else of_frames(n_pos, attention_mask).bool()

    def _takes(self, keyword: str) -> bool:
        return keyword in inspect.signature(type(self.model).forward).parameters
