"""Adapter for any plain `nn.Module`."""

from dataclasses import replace

from torch import nn

from param_features.params import Adapter, Attention, ParamView, Site, Tap, default_fold, has_rows_in, rows_of_part

from .attention import attention_of
from .experts import expert_taps, expert_views
from .fused import splits

_LOGIT_LAYERS = ("lm_head", "unembed", "logits", "classifier")


class ModuleAdapter(Adapter):
    """Any module whose forward returns a tensor, or an object with `.logits`."""

    def fold(self, owner: nn.Module, attribute: str, n_dims: int) -> str:
        """First axis out, the others in; layers that multiply from the left, and tables, have their rows as inputs."""
        return layer_fold(owner, n_dims)

    def taps(self, view: ParamView) -> tuple[Tap, ...]:
        """The input and output of every module that holds the parameter."""
        return expert_taps(view) if view.is_member else layer_taps(view)

    def parts(self) -> dict[str, ParamView]:
        """Queries, keys and values of fused matrices, gates of RNNs: `"<name>[q]"`; experts of a stack: `"<name>[3]"`."""
        views = self.views()
        parts = {part.name: part for view in views.values() for part in expert_views(view)}
        for name, split in splits(self.module):
            if name not in views:
                continue
            view = views[name]
            out_axis = 1 if view.stored.dim() == 2 and has_rows_in(view.owner) else 0
            for part, layout in split.layouts(view.stored.dim(), out_axis).items():
                part_view = ParamView(f"{name}[{part}]", view.owner, view.attribute, view.fold, view.also_at, layout)
                parts[part_view.name] = part_view
        return parts

    def attentions(self) -> dict[str, Attention]:
        """How the attention layers of known classes make their scores."""
        attentions = {}
        for prefix, layer in self.module.named_modules():
            known = attention_of(layer, self.module)
            if known is not None:
                path = f"{prefix}." if prefix else ""
                attentions[prefix] = replace(known, query=path + known.query, key=path + known.key)
        return attentions

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
        layers = (getattr(self.module, name, None) for name in _LOGIT_LAYERS[:2])
        return next((layer for layer in layers if isinstance(layer, nn.Linear)), None)


def layer_fold(owner: nn.Module, n_dims: int) -> str:
    """The einops pattern from what the layer stores to `[d_out, d_in]`."""
    return "i o -> o i" if n_dims == 2 and has_rows_in(owner) else default_fold(n_dims)


def layer_taps(view: ParamView) -> tuple[Tap, ...]:
    """Taps at the input and output of every layer that holds the parameter."""
    rows = None if view.layout.part is None else rows_of_part(view)
    return tuple(
        Tap(layer_rule(owner), owner, key, Site(owner, 0), Site(owner, "output"), rows) for owner, key in view.places
    )


def layer_rule(owner: nn.Module) -> type | str:
    """The key of the layer's rule: its class, or `"rms_norm"` for any library's class of that name."""
    is_foreign_rms = type(owner).__name__.endswith("RMSNorm") and not isinstance(owner, nn.RMSNorm)
    return "rms_norm" if is_foreign_rms else type(owner)
