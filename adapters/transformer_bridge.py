"""Adapter for TransformerLens' `TransformerBridge`, versions 3 and 4, raw or in compatibility mode.

A bridge wraps another library's modules. Its parameters bear TransformerLens' names, shapes and orientation here, each a
view of the Parameter that the wrapped layer holds.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from param_features.params import Attention, Layout, ParamView, Site, Tap, adapter_for, has_rows_in

from .attention import attention_of
from .experts import expert_taps, expert_views
from .lens import LensAdapter
from .module import layer_fold, layer_taps

_WRAPPED = "_original_component"
# Kind of slot: patterns from what a linear layer stores, and from what transformers' Conv1D does, to TransformerLens'
# shape; then TransformerLens' shape to [d_out, d_in].
_PATTERNS = {
    "heads out": ("(head o) i -> head i o", "i (head o) -> head i o", "head i o -> (head o) i"),
    "heads in": ("o (head i) -> head i o", "(head i) o -> head i o", "head i o -> o (head i)"),
    "matrix": ("o i -> i o", "", "i o -> o i"),
    "head bias": ("(head o) -> head o", "(head o) -> head o", "head o -> (head o) 1"),
    "vector": ("", "", "o -> o 1"),
}
_ATTENTION = {"q": "Q", "k": "K", "v": "V", "o": "O"}
_MLP = ("in", "gate", "out")
_NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")


class Slot(NamedTuple):
    """A parameter of a wrapped layer, as TransformerLens calls and shapes it."""

    name: str
    kind: str


class TransformerBridgeAdapter(LensAdapter):
    """A `TransformerBridge`, whatever it wraps; parameters without a TransformerLens name keep their own."""

    def fold(self, owner: nn.Module, attribute: str, n_dims: int) -> str:
        """The pattern of a parameter that has no TransformerLens name: that of its layer."""
        return layer_fold(owner, n_dims)

    def peft_names(self) -> dict[nn.Module, str]:
        """Names in the Hugging Face model that the bridge was booted from, of the layers that lie there unchanged."""
        bridge: Any = self.module
        is_raw = adapter_for(bridge.original_model).is_wrapped_by_peft and not bridge.compatibility_mode
        return _names_on_disk(bridge.original_model) if is_raw else {}

    def taps(self, view: ParamView) -> tuple[Tap, ...]:
        """The input and output of the wrapped layers, or the bridge's own hook points where it computes a layer itself."""
        owner, attribute = view.owner, view.attribute
        for parent in self.module.modules():
            if parent._modules.get(_WRAPPED) is owner and "hook_normalized" in parent._modules:
                rule = "gain" if attribute == "weight" else "bias"
                return (Tap(rule, owner, attribute, _hook(parent, "hook_normalized"), _hook(parent, "hook_out")),)
            child = next((name for name in _MLP if _wrapped(parent, name) is owner), None)
            if child is not None and getattr(parent, "_use_processed_weights", False):
                source = _hook(parent, f"{child}.hook_in" if child == "out" else "hook_in")
                rule = "matrix" if attribute == "weight" else "bias"
                return (Tap(rule, owner, attribute, source, _hook(parent, f"{child}.hook_out")),)
        return expert_taps(view) if view.is_member else layer_taps(view)

    def parts(self) -> dict[str, ParamView]:
        """Experts of a stack: `"<name>[3]"`."""
        return {part.name: part for view in self.views().values() for part in expert_views(view)}

    def views(self) -> dict[str, ParamView]:
        """Every parameter but the dead originals of fused matrices, which booting splits in three."""
        slots, dead = self._slots(), self._dead()
        living = (view for view in super().views().values() if id(view.owner) not in dead)
        named = [self._named(view, slots.get((id(view.owner), view.attribute))) for view in living]
        return {view.name: view for view in named}

    def aliases(self) -> dict[str, str]:
        """`attn.W_K` for grouped-query `attn._W_K`; names of tied slots, of `named_parameters()` and of `state_dict()`."""
        views = self.views()
        names = self._slot_names(views)
        names |= {name.replace("attn._", "attn."): real for name, real in names.items()}
        of_stored = {id(view.stored): view.name for view in views.values()}
        library_names = {name: of_stored.get(id(parameter)) for name, parameter in self.model.named_parameters()}
        library_names |= {name.replace(f"{_WRAPPED}.", ""): real for name, real in library_names.items()}
        library_names |= {name: of_stored.get(id(tensor)) for name, tensor in self.model.state_dict(keep_vars=True).items()}
        names |= {name: real for name, real in library_names.items() if real is not None}
        return {name: real for name, real in names.items() if name not in views}

    def ties(self) -> dict[str, str]:
        """Other names of shared weights, TransformerLens' own names alone."""
        return {name: real for name, real in self._slot_names(self.views()).items() if name != real}

    def attentions(self) -> dict[str, Attention]:
        """The attention of layers of a known class: the bridge's own configuration leaves scale and rotation open."""
        views, attentions = self.views(), {}
        for number, block in enumerate(getattr(self.model, "blocks", ())):
            layer, name = _wrapped(block, "attn"), f"blocks.{number}.attn"
            known = None if layer is None else attention_of(layer, self.model.original_model)
            key = next((key for key in (f"{name}.W_K", f"{name}._W_K") if key in views), None)
            if known is not None and key is not None and f"{name}.W_Q" in views:
                attentions[name] = replace(known, query=f"{name}.W_Q", key=key)
        return attentions

    @property
    def processing(self) -> str:
        """Whether compatibility mode is on, and whether LayerNorm is folded into the weights that follow it."""
        norms = [view.tensor for name, view in self.views().items() if name.endswith((".ln1.w", ".ln2.w"))]
        folded = bool(norms) and all(bool((weight == 1).all()) for weight in norms)
        mode = "compatibility mode" if self.model.compatibility_mode else "raw"
        return f"{mode}; {self.model.cfg.normalization_type} {'weights are all 1 (folded)' if folded else 'not folded'}"

    def head(self) -> nn.Module | None:
        """The unembedding's layer, unless a soft cap follows it."""
        layer = _wrapped(self.model, "unembed")
        return layer if isinstance(layer, nn.Linear) and not self.is_soft_capped else None

    def _named(self, view: ParamView, slot: Slot | None) -> ParamView:
        """The view under TransformerLens' name, shape and orientation."""
        if slot is None:
            return ParamView(view.name.replace(f"{_WRAPPED}.", ""), view.owner, view.attribute, view.fold, view.also_at)
        linear, rows_in, fold = _PATTERNS[slot.kind]
        pattern = rows_in if has_rows_in(view.owner) else linear
        sizes = (("o" if slot.kind != "heads in" else "i", self.model.cfg.d_head),) if "head" in pattern else ()
        return ParamView(slot.name, view.owner, view.attribute, fold, view.also_at, Layout(pattern, sizes))

    def _slot_names(self, views: dict[str, ParamView]) -> dict[str, str]:
        """TransformerLens' names, mapped to those of the views that hold the slots."""
        of_place = {(id(owner), key): view.name for view in views.values() for owner, key in view.places}
        return {slot.name: of_place[place] for place, slot in self._slots().items() if place in of_place}

    def _slots(self) -> dict[tuple[int, str], Slot]:
        """(id of the wrapped layer, attribute) to its slot, for every slot that this model has."""
        slots: dict[tuple[int, str], Slot] = {}
        for layer, attribute, slot in self._places():
            stored = None if layer is None else layer._parameters.get(attribute)
            if layer is None or stored is None or stored.dim() != _n_dims(slot):
                continue
            d_heads = stored.shape[-1 if has_rows_in(layer) != (slot.kind == "heads in") else 0]
            if "head" not in slot.kind or d_heads % self.model.cfg.d_head == 0:
                slots.setdefault((id(layer), attribute), self._spelled(slot, d_heads))
        return slots

    def _spelled(self, slot: Slot, d_heads: int) -> Slot:
        """Add the underscore that TransformerLens gives keys and values of which there are fewer than queries."""
        path, _, name = slot.name.rpartition(".")
        is_grouped = d_heads < self.model.cfg.n_heads * self.model.cfg.d_head
        return Slot(f"{path}._{name}", slot.kind) if is_grouped and name in ("W_K", "W_V", "b_K", "b_V") else slot

    def _places(self) -> Iterator[tuple[nn.Module | None, str, Slot]]:
        """List the places where TransformerLens' names may lie."""
        yield _wrapped(self.model, "embed"), "weight", Slot("embed.W_E", "matrix")
        yield _wrapped(self.model, "pos_embed"), "weight", Slot("pos_embed.W_pos", "matrix")
        yield from _norm(_wrapped(self.model, "ln_final"), "ln_final")
        yield _wrapped(self.model, "unembed"), "weight", Slot("unembed.W_U", "matrix")
        yield _wrapped(self.model, "unembed"), "bias", Slot("unembed.b_U", "vector")
        for number, block in enumerate(getattr(self.model, "blocks", ())):
            yield from _block_places(block, f"blocks.{number}")

    def _dead(self) -> set[int]:
        """Fused layers whose weights booting copied into separate ones; nothing reads them any more."""
        dead = set()
        for component in self.module.modules():
            if {"q", "k", "v", "qkv"} <= set(component._modules):
                dead.add(id(_wrapped(component, "qkv")))
            if {"gate", "in", _WRAPPED} <= set(component._modules):
                dead.add(id(component.get_submodule(_WRAPPED)._modules.get("gate_up_proj")))
        return dead


def _block_places(block: nn.Module, prefix: str) -> Iterator[tuple[nn.Module | None, str, Slot]]:
    for norm in _NORMS:
        yield from _norm(_wrapped(block, norm), f"{prefix}.{norm}")
    attention, mlp = block._modules.get("attn"), block._modules.get("mlp")
    if attention is not None:
        for child, letter in _ATTENTION.items():
            layer, is_out = _wrapped(attention, child), letter == "O"
            yield layer, "weight", Slot(f"{prefix}.attn.W_{letter}", "heads in" if is_out else "heads out")
            yield layer, "bias", Slot(f"{prefix}.attn.b_{letter}", "vector" if is_out else "head bias")
        for norm in ("q_norm", "k_norm"):
            yield from _norm(_wrapped(attention, norm), f"{prefix}.attn.{norm}")
    if mlp is not None:
        for child in _MLP:
            layer = _wrapped(mlp, child)
            yield layer, "weight", Slot(f"{prefix}.mlp.W_{child}", "matrix")
            yield layer, "bias", Slot(f"{prefix}.mlp.b_{child}", "vector")


def _norm(layer: nn.Module | None, path: str) -> Iterator[tuple[nn.Module | None, str, Slot]]:
    yield layer, "weight", Slot(f"{path}.w", "vector")
    yield layer, "bias", Slot(f"{path}.b", "vector")


def _hook(parent: nn.Module, path: str) -> Site:
    """What passes a hook point below `parent`."""
    return Site(parent.get_submodule(path))


def _wrapped(parent: nn.Module, child: str) -> nn.Module | None:
    """The layer that a component of a bridge wraps, None where there is no such component."""
    component = parent._modules.get(child)
    return None if component is None else component._modules.get(_WRAPPED)


def _n_dims(slot: Slot) -> int:
    """How many axes the stored parameter of a slot has."""
    return 1 if slot.kind in ("vector", "head bias") else 2


def _names_on_disk(original: nn.Module) -> dict[nn.Module, str]:
    """Names in a model as transformers builds it, of those layers of a bridge's that lie there unchanged."""
    with torch.device("meta"):
        plain = dict(type(original)(original.config).named_modules())  # pyright: ignore[reportCallIssue]
    named = ((name.replace("._original_component", ""), owner) for name, owner in original.named_modules())
    return {owner: name for name, owner in named if name in plain and type(plain[name]) is type(owner)}
