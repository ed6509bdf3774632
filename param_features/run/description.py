"""`pf.describe`: what was recognised in a model, before anything is decomposed."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from param_features.gradients import plan_engine
from param_features.gradients.rules import rule_for
from param_features.machine import own_modes, public
from param_features.params import Adapter, ParamSubset, adapter_for, why_never_chosen
from param_features.problem import check_model, read_problem


@dataclass(frozen=True)
class ModelDescription:
    """What `pf.describe` found; `print` it.

    Attributes:
        library: The library's package and version, and the model's class.
        adapter: The class that reads the model.
        n_layers: Number of blocks, None when not known.
        n_params: Number of scalars, tied weights once.
        dtypes: How many tensors have each dtype.
        devices: How many tensors lie on each device.
        processing: What the library did to the weights after training; empty when nothing is known.
        tokens: Vocabulary, context and tokenizer.
        factored: Parameters with a factored rule.
        dense: Parameters that take the dense route, or can have no gradients, and why.
        parts: Parts of fused matrices that can be chosen alone.
        tied: Further names of tied weights, to the name that is used.
        is_checked: Whether the rules were compared with autograd on given data, or go by the layers' classes.
    """

    library: str
    adapter: str
    n_layers: int | None
    n_params: int
    dtypes: dict[str, int]
    devices: dict[str, int]
    processing: str
    tokens: str
    factored: tuple[str, ...]
    dense: dict[str, str]
    parts: tuple[str, ...]
    tied: dict[str, str]
    is_checked: bool

    def __str__(self) -> str:
        """A few lines; layers that differ only in their number share a name with `*`."""
        n_tensors = sum(self.dtypes.values())
        kinds = f"{' and '.join(self.dtypes)} on {' and '.join(self.devices)}"
        by_reason: dict[str, list[str]] = {}
        for name, why in self.dense.items():
            by_reason.setdefault(why, []).append(name)
        lines = {
            "model": f"{self.library}, read by {self.adapter}",
            "layers": "" if self.n_layers is None else str(self.n_layers),
            "parameters": f"{self.n_params:,} in {n_tensors} tensors, {kinds}",
            "weights": self.processing,
            "tokens": self.tokens,
            "factored": _starred(self.factored),
            "dense": "; ".join(f"{_starred(names)} ({why})" for why, names in by_reason.items()),
            "parts": _starred(self.parts),
            "tied": ", ".join(f"{name} = {real}" for name, real in self.tied.items()),
            "routes": "compared with autograd on the given data" if self.is_checked else _UNCHECKED,
        }
        return "\n".join(f"{title:<11} {text}" for title, text in lines.items() if text)

    def __repr__(self) -> str:
        """Show what `print` shows."""
        return str(self)


_UNCHECKED = (
    "by the layers' classes; pf.describe(model, tokens) runs the model as pf.decompose does, and may find more factored"
)


@public
@own_modes()
def describe(model: Any, tokens: Any = None, *, inputs: Any = None) -> ModelDescription:
    """Say how a model is read: library, adapter, parameters and their routes, weight processing, dtype and device.

    Cost: nothing is run without data; with data, a few passes over two rows.

    Args:
        model: As for `pf.decompose`.
        tokens: Where given, every rule is compared with autograd on two rows of it.
        inputs: Instead of tokens, for models that take none.

    Raises:
        AdapterError: Nothing reads such a model.
        ModelStateError: Data are given and the model cannot be run.
        NonFiniteError: Data are given, and weights or outputs hold NaN or infinity.
        NoGradientError: Data are given, and the model was made under `torch.inference_mode()`.
        InputError: Tokens or inputs that the model cannot take.
    """
    adapter = adapter_for(model)
    views = adapter.views()
    is_checked = tokens is not None or inputs is not None
    dense = _checked(adapter, tokens, inputs) if is_checked else _unruled(adapter)
    return ModelDescription(
        library=_library(adapter),
        adapter=type(adapter).__name__,
        n_layers=adapter.n_layers,
        n_params=sum(view.shape.numel() for view in views.values()),
        dtypes=dict(Counter(str(view.stored.dtype).removeprefix("torch.") for view in views.values())),
        devices=dict(Counter(str(view.stored.device) for view in views.values())),
        processing=adapter.processing,
        tokens=_tokens(adapter),
        factored=tuple(name for name in views if name not in dense),
        dense=dense,
        parts=tuple(adapter.parts()),
        tied=adapter.ties(),
        is_checked=is_checked,
    )


def _unruled(adapter: Adapter) -> dict[str, str]:
    """Parameters whose layers have no rule."""
    taps = {name: adapter.taps(view) for name, view in adapter.views().items()}
    ruled = {name for name, found in taps.items() if found and all(rule_for(tap.rule, tap.attribute) for tap in found)}
    return {name: "no layer rule" for name in taps if name not in ruled}


def _checked(adapter: Adapter, tokens: Any, inputs: Any) -> dict[str, str]:
    """Parameters that take the dense route on this data or none at all, and why."""
    views = tuple(adapter.views().values())
    never = {view.name: why for view in views if (why := why_never_chosen(view)) is not None}
    subset = ParamSubset(tuple(view for view in views if view.name not in never) or views)
    problem = read_problem(check_model(adapter, subset), tokens, inputs, divergence="auto", reference="sample")
    return plan_engine(problem).routes.why_dense | never


def _library(adapter: Adapter) -> str:
    package, _, rest = adapter.description.partition(" ")
    try:
        return f"{package} {version(package)} {rest}"
    except PackageNotFoundError:
        return rest


def _tokens(adapter: Adapter) -> str:
    if adapter.d_vocab is None:
        return ""
    context = "" if adapter.n_ctx is None else f", context {adapter.n_ctx}"
    return f"vocabulary {adapter.d_vocab}{context}, {'no tokenizer' if adapter.tokenizer is None else 'tokenizer'}"


def _starred(names: Iterable[str]) -> str:
    """Names with layer numbers as `*`; attributes of one layer, and parts of one matrix, in brackets, each once."""
    whole: dict[str, dict[str, None]] = {}
    for name in names:
        stem, bracket, part = re.sub(r"\.\d+\.", ".*.", name).removesuffix("]").partition("[")
        whole.setdefault(stem, {}).update({part: None} if bracket else {})
    layers: dict[str, list[str]] = {}
    for stem, parts in whole.items():
        layer, _, attribute = stem.rpartition(".")
        layers.setdefault(layer, []).append(f"{attribute}[{'|'.join(parts)}]" if parts else attribute)
    return ", ".join(_joined(layer, attributes) for layer, attributes in layers.items())


def _joined(layer: str, attributes: list[str]) -> str:
    inside = attributes[0] if len(attributes) == 1 else f"{{{', '.join(attributes)}}}"
    return f"{layer}.{inside}" if layer else inside
