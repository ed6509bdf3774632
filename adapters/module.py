"""Adapter for any plain `nn.Module`."""

from param_features.adapters.base import Adapter
from torch import nn

from param_features.params import ParamView, Site, Tap, default_fold

_LOGIT_LAYERS = ("lm_head", "unembed", "logits", "classifier")


class ModuleAdapter(Adapter):
    """Any module whose forward returns a tensor, or an object with `.logits`."""

    def fold(self, owner: nn.Module, attribute: str, n_dims: int) -> str:
        """First axis out, the others in; an embedding's table maps a one-hot id to a row, so its rows are inputs."""
        return "i o -> o i" if isinstance(owner, nn.Embedding) else default_fold(n_dims)

    def taps(self, view: ParamView) -> tuple[Tap, ...]:
        """The input and output of every module that holds the parameter."""
        return tuple(
            Tap(type(owner), owner, attribute, Site(owner, 0), Site(owner, "output")) for owner, attribute in view.places
        )

    @property
    def d_vocab(self) -> int | None:
        """Rows of the first embedding, None without one."""
        embedding = next((m for m in self.module.modules() if isinstance(m, nn.Embedding)), None)
        return embedding.num_embeddings if embedding is not None else None

    @property
    def predicts_tokens(self) -> bool:
        """Whether the last child bears the usual name of a layer of logits."""
        return any(name in _LOGIT_LAYERS for name, _ in self.module.named_children())

    def head(self) -> nn.Module | None:
        """A linear layer under the name `lm_head` or `unembed`."""
        found = (getattr(self.module, name, None) for name in _LOGIT_LAYERS[:2])
        return next((layer for layer in found if isinstance(layer, nn.Linear)), None)
