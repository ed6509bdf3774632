"""What TransformerLens' HookedTransformer and TransformerBridge have in common: configuration, tokens and padding."""

from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from param_features.params import Adapter, is_padded_on_the_right, marked_once


class LensAdapter(Adapter):
    """A model with TransformerLens' `cfg`, `tokenizer` and `to_tokens`."""

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, or else the one that the user gave."""
        return self.model.tokenizer if self.model.tokenizer is not None else self.given_tokenizer

    @property
    def d_vocab(self) -> int:
        """Number of token ids."""
        return self.model.cfg.d_vocab

    @property
    def n_ctx(self) -> int:
        """The context length."""
        return self.model.cfg.n_ctx

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.model.cfg.n_layers

    @property
    def predicts_tokens(self) -> bool:
        """Always: the output is logits over the vocabulary."""
        return True

    @property
    def is_soft_capped(self) -> bool:
        """Whether a soft cap follows the unembedding."""
        return (getattr(self.model.cfg, "output_logits_soft_cap", None) or -1.0) > 0

    def hook_points(self) -> dict[str, nn.Module]:
        """Modules, and TransformerLens' hook points by all of their names."""
        return super().hook_points() | self.model.hook_dict

    def padding(self, mask: Bool[Tensor, "batch pos"]) -> dict[str, Tensor]:
        """Its `attention_mask`, from which TransformerLens takes the positions too, where padding comes first."""
        return {} if is_padded_on_the_right(mask) else {"attention_mask": mask.long()}

    def to_ids(self, text: str) -> list[int]:
        """Ids by the model's tokenizer, with the beginning-of-sequence token if the model prepends it by default."""
        return super().to_ids(text) if self.model.tokenizer is None else self._ids_by_model(text)

    def _ids_by_model(self, text: str) -> list[int]:
        """Ids as TransformerLens makes them, however long, without a second mark where the text has its own."""
        return marked_once(self.model.tokenizer, text, self.model.to_tokens(text, truncate=False)[0].tolist())
