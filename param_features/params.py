"""Named parameters as matrices: choosing them, replacing them for a while, editing and fingerprinting them."""

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import EmptySelectionError, NoGradientError, NonFiniteError, UnknownParameterError, nearest

ParamSpec = str | re.Pattern | Sequence["str | re.Pattern"]


def default_fold(n_dims: int) -> str:
    """The einops pattern that views a tensor with `n_dims` axes as a matrix: first axis out, the others in."""
    axes = ["o", *(f"i{axis}" for axis in range(1, n_dims))][:n_dims]
    d_out, d_in = "".join(axes[:1]) or "1", " ".join(axes[1:]) or "1"
    return f"{' '.join(axes)} -> {d_out} {f'({d_in})' if len(axes) > 2 else d_in}"


def unfold_matrix(matrix: Float[Tensor, "*batch d_out d_in"], fold: str, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
    """A parameter's tensor, with any leading axes, from its matrix view."""
    left, right = fold.split("->")
    return rearrange(matrix, f"... {right} -> ... {left}", **dict(zip(left.split(), shape, strict=True)))


@dataclass(frozen=True)
class ParamView:
    """One parameter of a model, seen as a matrix.

    Attributes:
        name: The library's own name.
        owner: The module that holds the parameter.
        attribute: Its key in `owner._parameters`.
        fold: einops pattern from the tensor to `[d_out, d_in]`, such as `"head i o -> (head o) i"` for W_K.
        also_at: Further places that hold the same tensor (tied weights).
    """

    name: str
    owner: nn.Module
    attribute: str
    fold: str
    also_at: tuple[tuple[nn.Module, str], ...] = ()

    @property
    def tensor(self) -> Tensor:
        """The parameter itself, not a copy."""
        return cast(Tensor, self.owner._parameters[self.attribute])

    @property
    def places(self) -> tuple[tuple[nn.Module, str], ...]:
        """Every (module, attribute) that holds the parameter."""
        return ((self.owner, self.attribute), *self.also_at)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.tensor.shape

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix view."""
        d_out, d_in = rearrange(torch.empty(self.shape, device="meta"), self.fold).shape
        return d_out, d_in

    def to_matrix(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*batch d_out d_in"]:
        """View a tensor of the parameter's shape, with any leading axes, as matrices."""
        left, right = self.fold.split("->")
        return rearrange(tensor, f"... {left} -> ... {right}")

    def from_matrix(self, matrix: Float[Tensor, "*batch d_out d_in"]) -> Float[Tensor, "*shape"]:
        """Inverse of `to_matrix`."""
        return unfold_matrix(matrix, self.fold, self.shape)


class ParamInfo(NamedTuple):
    """A row of `pf.list_params`."""

    name: str
    shape: tuple[int, ...]
    n_params: int


@dataclass(frozen=True)
class ParamSubset:
    """The named tensors that are decomposed, in one order; everything else is frozen."""

    views: tuple[ParamView, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The library's names, in the subset's order."""
        return tuple(view.name for view in self.views)

    @property
    def n_params(self) -> int:
        """Number of scalars in the subset, |W|."""
        return sum(view.tensor.numel() for view in self.views)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The current parameters, not copies."""
        return {view.name: view.tensor for view in self.views}

    def __getitem__(self, name: str) -> ParamView:
        """The view of that name."""
        return self.views[self.names.index(name)]

    def check_finite(self) -> None:
        """Refuse weights that hold NaN or infinity, and those that can have no gradients.

        Raises:
            NonFiniteError: Names the first such parameter and how many of its entries are not finite.
            NoGradientError: Names the first parameter that is quantised, or was made under `torch.inference_mode()`.
        """
        for view in self.views:
            if not view.tensor.is_floating_point():
                raise NoGradientError(
                    f"{view.name!r} is {view.tensor.dtype}, and only floating-point weights have gradients. Load the model "
                    "without quantisation, or leave this parameter out."
                )
            if view.tensor.is_inference():
                raise NoGradientError(
                    f"{view.name!r} was made under torch.inference_mode(), and such tensors have no gradients. Load the "
                    "model outside that block."
                )
            n_bad = int((~torch.isfinite(view.tensor)).sum())
            if n_bad:
                raise NonFiniteError(
                    f"{view.name!r} holds {n_bad} values that are NaN or infinite. Gradients at such weights mean "
                    "nothing. Load a checkpoint whose weights are finite."
                )

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Run the model with other tensors in place of the parameters; differentiable, and exact on exit.

        The model's own Parameter objects are put back, whatever happens inside. Tensors may be functorch or dual tensors.
        """
        saved = [(owner, key, owner._parameters[key]) for view in self.views for owner, key in view.places]
        try:
            for view in self.views:
                for owner, key in view.places:
                    owner._parameters[key] = cast(nn.Parameter, tensors.get(view.name, view.tensor))
            yield
        finally:
            for owner, key, parameter in saved:
                owner._parameters[key] = parameter
            for owner in {owner for owner, _, _ in saved if isinstance(owner, nn.RNNBase)}:
                owner._init_flat_weights()  # its own list of weights, which running it filled with the stand-ins

    @contextmanager
    def edited(self, deltas: Mapping[str, Tensor]) -> Iterator[None]:
        """Add `deltas` to the parameters in place, and restore the old values bit for bit on exit."""
        old = {name: self[name].tensor.detach().clone() for name in deltas}
        try:
            with torch.no_grad():
                for name, delta in deltas.items():
                    self[name].tensor.add_(delta)
            yield
        finally:
            with torch.no_grad():
                for name, values in old.items():
                    self[name].tensor.copy_(values)

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of each parameter's dtype, shape and bytes, by name. Cost: one copy of the subset to the CPU."""
        return {view.name: _digest(view.tensor) for view in self.views}


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    header = f"{data.dtype} {tuple(data.shape)}".encode()
    return hashlib.sha256(header + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def select(views: Mapping[str, ParamView], spec: ParamSpec, aliases: Mapping[str, str] | None = None) -> ParamSubset:
    """Choose parameters by name, glob, compiled regex, or a list of these.

    Args:
        views: Every parameter of the model, by the library's names.
        spec: A name, a glob such as `blocks.*.attn.W_[KQ]`, a compiled regex (matched in full), or a list of these.
        aliases: Names that users say, mapped to the library's: `blocks.2.attn.W_K` to `blocks.2.attn._W_K`.

    Returns:
        The chosen parameters, each once, in the model's order.

    Raises:
        EmptySelectionError: `spec` is empty.
        UnknownParameterError: A part of `spec` matches nothing; the message lists the nearest names.
    """
    spoken = {name: name for name in views} | dict(aliases or {})
    parts = [spec] if isinstance(spec, str | re.Pattern) else list(spec)
    if not parts or any(part == "" for part in parts):
        raise EmptySelectionError(
            f"params={spec!r} chooses no parameter. Give a name, a glob, a compiled regex or a list of these; "
            "pf.list_params(model) prints all names."
        )
    chosen = {name for part in parts for name in _matches(part, spoken)}
    return ParamSubset(tuple(view for name, view in views.items() if name in chosen))


def _matches(part: str | re.Pattern, spoken: Mapping[str, str]) -> set[str]:
    if isinstance(part, re.Pattern):
        found = {real for name, real in spoken.items() if part.fullmatch(name)}
    elif part in spoken:
        found = {spoken[part]}
    else:
        found = {real for name, real in spoken.items() if fnmatch.fnmatchcase(name, part)}
    if not found:
        pattern = part.pattern if isinstance(part, re.Pattern) else part
        raise UnknownParameterError(
            f"No parameter matches {pattern!r}. The model has {len(set(spoken.values()))} parameters; nearest: "
            f"{nearest(pattern, spoken)}. pf.list_params(model) prints all."
        )
    return found


@dataclass(frozen=True)
class Site:
    """A tensor inside the forward pass: a module's output, or one of its inputs.

    Attributes:
        module: The module whose call passes the tensor.
        which: `"output"`, or the position (int) or keyword (str) of an input.
    """

    module: nn.Module
    which: str | int = "output"


@dataclass(frozen=True)
class Tap:
    """Where one use of a parameter shows its input and its output gradient.

    Attributes:
        rule: Key of the layer rule: the class of the layer (looked up along its MRO) or a rule's name.
        layer: The module that the rule may ask for settings such as a stride.
        attribute: The parameter's name within the layer.
        input: The tensor that the parameter is applied to.
        output: The tensor that the parameter produces; its gradient is δ.
    """

    rule: type | str
    layer: nn.Module
    attribute: str
    input: Site
    output: Site
