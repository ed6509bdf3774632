"""Named parameters as matrices: choosing them, replacing them for a while, editing and fingerprinting them."""

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from param_features.errors import (
    EmptySelectionError,
    NoGradientError,
    NonFiniteError,
    SettingError,
    UnknownParameterError,
    nearest,
)
from param_features.params.edits import Addition, added, is_edited
from param_features.params.layout import WHOLE, Layout

_SIDE = re.compile(r"\([^)]*\)|\S+")
_AXIS = re.compile(r"[a-z][a-z0-9]{0,15}")
"""One side of a matrix in a fold: an axis, or several in brackets."""

ParamSpec = str | re.Pattern | Sequence["str | re.Pattern"]


def default_fold(n_dims: int) -> str:
    """The einops pattern that views a tensor with `n_dims` axes as a matrix: first axis out, the others in."""
    axes = ["o", *(f"i{axis}" for axis in range(1, n_dims))][:n_dims]
    d_out, d_in = "".join(axes[:1]) or "1", " ".join(axes[1:]) or "1"
    return f"{' '.join(axes)} -> {d_out} {f'({d_in})' if len(axes) > 2 else d_in}"


def is_fold(fold: str, n_dims: int) -> bool:
    """Whether a pattern views a tensor with `n_dims` axes as a matrix: every axis once on either side, d_out and d_in right.

    The patterns of every adapter are of that form; einops itself accepts others.
    """
    left, arrow, right = fold.partition(" -> ")
    sides = _SIDE.findall(right)
    axes = [axis for side in sides for axis in side.strip("()").split() if side != "1"]
    is_spelt = right == " ".join(sides) and all(map(_AXIS.fullmatch, axes)) and len(sides) == 2
    is_whole = sorted(axes) == sorted(left.split()) and len(set(axes)) == len(axes) == n_dims
    return bool(arrow) and is_spelt and is_whole and left == " ".join(left.split()) and "()" not in sides


def unfold_matrix(matrix: Float[Tensor, "*batch d_out d_in"], fold: str, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
    """A parameter's tensor, with any leading axes, from its matrix view."""
    left, right = fold.split("->")
    return rearrange(matrix, f"... {right} -> ... {left}", **dict(zip(left.split(), shape, strict=True)))


class Modes(NamedTuple):
    """The axes that a matrix view folds together, by their lengths; `(1,)` where a side has none.

    Attributes:
        out: Those of d_out: (head, d_head) of W_K.
        into: Those of d_in: (channel, height, width) of a convolution.
    """

    out: tuple[int, ...]
    into: tuple[int, ...]

    def __str__(self) -> str:
        """`4·8×64`: four heads of eight, by 64."""
        return "×".join("·".join(map(str, side)) for side in self)


def modes_of(fold: str, shape: Sequence[int]) -> Modes:
    """The axes that a pattern folds into either side, by their lengths in a tensor of that shape."""
    left, right = fold.split("->")
    lengths = dict(zip(left.split(), shape, strict=True)) | {"1": 1}
    out, into = (tuple(lengths[axis] for axis in side.strip("()").split()) for side in _SIDE.findall(right))
    return Modes(out, into)


@dataclass(frozen=True)
class ParamView:
    """One parameter of a model, or part of one, seen as a matrix.

    Attributes:
        name: The library's own name.
        owner: The module that holds the parameter.
        attribute: Its key in `owner._parameters`.
        fold: einops pattern from the tensor to `[d_out, d_in]`, such as `"head i o -> (head o) i"` for W_K.
        also_at: Further places that hold the same stored tensor (tied weights).
        layout: How the tensor of that name lies inside the stored one.
    """

    name: str
    owner: nn.Module
    attribute: str
    fold: str
    also_at: tuple[tuple[nn.Module, str], ...] = ()
    layout: Layout = WHOLE

    @property
    def stored(self) -> Tensor:
        """The model's own Parameter."""
        return cast(Tensor, self.owner._parameters[self.attribute])

    @property
    def tensor(self) -> Tensor:
        """The tensor of that name and shape: the Parameter itself, or read out of it; not for editing."""
        return self.layout.read(self.stored)

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

    @property
    def modes(self) -> Modes:
        """The axes of the tensor that make up d_out and d_in, in the order in which the fold runs through them."""
        return modes_of(self.fold, self.shape)

    def to_matrix(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*batch d_out d_in"]:
        """View a tensor of the parameter's shape, with any leading axes, as matrices."""
        left, right = self.fold.split("->")
        return rearrange(tensor, f"... {left} -> ... {right}")

    def from_matrix(self, matrix: Float[Tensor, "*batch d_out d_in"]) -> Float[Tensor, "*shape"]:
        """Inverse of `to_matrix`."""
        return unfold_matrix(matrix, self.fold, self.shape)


def all_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Every Parameter that a submodule holds, each once; some libraries' own `parameters()` leaves some out."""
    held = (parameter for child in module.modules() for parameter in child._parameters.values() if parameter is not None)
    return list(dict.fromkeys(held))


class ParamInfo(NamedTuple):
    """A row of `pf.list_params`.

    Attributes:
        name: The library's own name.
        shape: Shape of the tensor.
        n_params: Number of its entries.
        parts: Names of its parts where it is a fused matrix: `"q"` is chosen by `"<name>[q]"`.
    """

    name: str
    shape: tuple[int, ...]
    n_params: int
    parts: tuple[str, ...] = ()


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
    def device(self) -> torch.device:
        """Where the first of the parameters lies."""
        return self.views[0].tensor.device

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
            if not view.stored.is_floating_point():
                raise NoGradientError(
                    f"{view.name!r} is {view.stored.dtype}, and only floating-point weights have gradients. Load the model "
                    "without quantisation, or leave this parameter out."
                )
            if getattr(type(view.stored), "__torch_dispatch__", None) is not getattr(Tensor, "__torch_dispatch__", None):
                raise NoGradientError(
                    f"{view.name!r} is a {type(view.stored).__name__}, a tensor that keeps its values in another form "
                    "(quantised, sharded or sparse). Load the model with plain weights, or leave this parameter out."
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
                if view.name not in tensors:
                    continue
                written = view.layout.write(tensors[view.name], view.stored)
                for owner, key in view.places:
                    owner._parameters[key] = cast(nn.Parameter, written)
            yield
        finally:
            for owner, key, parameter in reversed(saved):
                owner._parameters[key] = parameter
            for owner in {owner for owner, _, _ in saved if isinstance(owner, nn.RNNBase)}:
                owner._init_flat_weights()  # its own list of weights, which running it filled with the stand-ins

    @contextmanager
    def edited(self, deltas: Mapping[str, Tensor]) -> Iterator[None]:
        """Add `deltas` to the parameters in place, and restore the old values bit for bit on exit.

        Blocks may be nested, which adds up, and may end in any order; see `edits.added`.
        """
        with added(Addition(self[name].stored, self[name].layout, delta.detach()) for name, delta in deltas.items()):
            yield

    @property
    def is_edited(self) -> bool:
        """Whether a block of `edited` is running on one of the parameters."""
        return any(is_edited(view.stored) for view in self.views)

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of each parameter's dtype and matrix [d_out, d_in], by name. Cost: one copy of the subset to the CPU.

        Of the matrix, so that one weight has one fingerprint in every library, however that arranges its axes.
        """
        return {view.name: fingerprint(view) for view in self.views}


def fingerprint(view: ParamView) -> str:
    """SHA-256 of the dtype, shape and bytes of the parameter's matrix."""
    data = view.to_matrix(view.tensor.detach()).cpu().contiguous()
    header = f"{data.dtype} {tuple(data.shape)}".encode()
    return hashlib.sha256(header + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def select(
    views: Mapping[str, ParamView],
    spec: ParamSpec,
    aliases: Mapping[str, str] | None = None,
    parts: Mapping[str, ParamView] | None = None,
) -> ParamSubset:
    """Choose parameters by name, glob, compiled regex, or a list of these.

    Args:
        views: Every parameter of the model, by the library's names.
        spec: A name, a glob such as `blocks.*.attn.W_[KQ]`, a compiled regex (matched in full), or a list of these. A part
            of a fused matrix is named by a suffix: `c_attn.weight[k]`; `[q|k]` takes two parts, `[*]` each of them.
        aliases: Names that users say, mapped to the library's: `blocks.2.attn.W_K` to `blocks.2.attn._W_K`.
        parts: Parts of fused matrices by name; matched by a glob or regex only where that names them.

    Returns:
        The chosen parameters, each once, in the model's order, parts last.

    Raises:
        EmptySelectionError: `spec` is empty.
        UnknownParameterError: A part of `spec` matches nothing; the message lists the nearest names.
        SettingError: A matrix is chosen both whole and in part.
    """
    parts, aliases = parts or {}, aliases or {}
    spoken, of_parts = {name: name for name in views} | dict(aliases), _spoken_parts(parts, aliases)
    wanted = [spec] if isinstance(spec, str | re.Pattern) else list(spec)
    if not wanted or any(one == "" for one in wanted):
        raise EmptySelectionError(
            f"params={spec!r} chooses no parameter. Give a name, a glob, a compiled regex or a list of these; "
            "pf.list_params(model) prints all names."
        )
    chosen = {name for one in wanted for name in _matches(one, spoken, of_parts)}
    subset = ParamSubset(tuple(view for name, view in {**views, **parts}.items() if name in chosen))
    _refuse_overlap(subset)
    return subset


def _spoken_parts(parts: Mapping[str, ParamView], aliases: Mapping[str, str]) -> dict[str, str]:
    """Names of parts, also under their whole's aliases, to the library's own."""
    found = {name: name for name in parts}
    for alias, real in aliases.items():
        found |= {alias + name.removeprefix(real): name for name in parts if name.startswith(f"{real}[")}
    return found


def _matches(wanted: str | re.Pattern, spoken: Mapping[str, str], parts: Mapping[str, str]) -> set[str]:
    if isinstance(wanted, re.Pattern):
        found = {real for name, real in spoken.items() if wanted.fullmatch(name)}
        found = found or {real for name, real in parts.items() if wanted.fullmatch(name)}
    elif wanted in spoken or wanted in parts:
        found = {spoken.get(wanted) or parts[wanted]}
    else:
        found = {real for name, real in spoken.items() if fnmatch.fnmatchcase(name, wanted)}
        found |= {real for name, real in parts.items() if _is_part_of(name, wanted)}
    if not found:
        pattern = wanted.pattern if isinstance(wanted, re.Pattern) else wanted
        raise UnknownParameterError(
            f"No parameter matches {pattern!r}. The model has {len(set(spoken.values()))} parameters; nearest: "
            f"{nearest(pattern, [*spoken, *parts])}. pf.list_params(model) prints all."
        )
    return found


def _is_part_of(name: str, wanted: str) -> bool:
    """Whether `c_attn.weight[k]` is meant by `*.c_attn.weight[q|k]`: a glob before the brackets, alternatives inside."""
    whole, _, part = name[:-1].rpartition("[")
    pattern, bracket, choices = wanted.removesuffix("]").rpartition("[")
    is_named = bracket and wanted.endswith("]") and any(fnmatch.fnmatchcase(part, choice) for choice in choices.split("|"))
    return bool(is_named) and fnmatch.fnmatchcase(whole, pattern)


def _refuse_overlap(subset: ParamSubset) -> None:
    whole = {id(view.stored): view.name for view in subset.views if view.layout.part is None}
    for view in subset.views:
        if view.layout.part is not None and id(view.stored) in whole:
            raise SettingError(
                f"params= chooses {whole[id(view.stored)]!r} whole and its part {view.name!r} again. Choose the whole or "
                "its parts."
            )


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
        rows: For a part of a fused matrix, the rows of the rule's matrix that are its own; None for all.
    """

    rule: type | str
    layer: nn.Module
    attribute: str
    input: Site
    output: Site
    rows: Int[Tensor, " d_out"] | None = field(default=None, compare=False)
