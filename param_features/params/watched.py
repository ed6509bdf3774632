"""What the decomposed parameters were when they were read: in which modules, with which values. Told again at each use."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from param_features.params.edits import own_values
from param_features.params.subset import ParamSubset

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Places = dict[tuple[nn.Module, str], nn.Module | Tensor]


@dataclass(frozen=True, eq=False)
class Watched:
    """A subset's parameters and the modules around their uses, as they were at one moment.

    What the library itself adds to weights for a while, as steering does, is no change.

    Attributes:
        module: The model.
        subset: The parameters.
        used: Modules that hold them or whose inputs and outputs are read.
        places: Each of these modules and each parameter by the module that holds it and its key there.
        kinds: Dtype and device of each parameter.
        sums: Of each parameter's bits, by row and by column.
    """

    module: nn.Module
    subset: ParamSubset
    used: frozenset[nn.Module]
    places: Places
    kinds: tuple[tuple[torch.dtype, torch.device], ...]
    sums: tuple[tuple[Int[Tensor, " row"], Int[Tensor, " column"]], ...]

    @classmethod
    def of(cls, module: nn.Module, subset: ParamSubset, used: Iterable[nn.Module]) -> "Watched":
        """Note what there is now. Cost: two sums over the parameters, and a walk through the model's modules."""
        used = frozenset((*used, *(owner for view in subset.views for owner, _ in view.places)))
        return cls(module, subset, used, _places(module, subset, used), _kinds(subset), _sums(subset))

    @property
    def is_in_place(self) -> bool:
        """Whether the same modules hold the same Parameters in the same places, none converted or moved. Cost: the walk."""
        if any(key not in owner._parameters for view in self.subset.views for owner, key in view.places):
            return False
        return self.kinds == _kinds(self.subset) and _are_same(self.places, _places(self.module, self.subset, self.used))

    def has_modules_of(self, other: "Watched") -> bool:
        """Whether the parameters lie in the same modules, whichever Parameters these hold."""
        return self.places.keys() == other.places.keys() and all(
            isinstance(held, Tensor) or held is other.places[place] for place, held in self.places.items()
        )

    def other_values(self, subset: ParamSubset) -> list[str]:
        """Names of the parameters that have other values than those noted, read in a subset of the same names."""
        before, now = (
            zip(kinds, sums, strict=True) for kinds, sums in ((self.kinds, self.sums), (_kinds(subset), _sums(subset)))
        )
        pairs = zip(subset.names, before, now, strict=True)
        return [name for name, was, has in pairs if was[0] != has[0] or not all(map(torch.equal, was[1], has[1]))]


def _kinds(subset: ParamSubset) -> tuple[tuple[torch.dtype, torch.device], ...]:
    return tuple((view.stored.dtype, view.stored.device) for view in subset.views)


def _places(module: nn.Module, subset: ParamSubset, used: frozenset[nn.Module]) -> Places:
    stored = {id(view.stored) for view in subset.views}
    places: Places = {}
    for parent in module.modules():
        places |= {(parent, key): child for key, child in parent._modules.items() if child is not None and child in used}
        places |= {
            (parent, key): held for key, held in parent._parameters.items() if held is not None and id(held) in stored
        }
    return places


def _are_same(places: Places, others: Places) -> bool:
    return places.keys() == others.keys() and all(held is others[place] for place, held in places.items())


@torch.no_grad()
def _sums(subset: ParamSubset) -> tuple[tuple[Tensor, Tensor], ...]:
    """Sums over rows and columns of the bits as integers: exact, and other ones after any change but a contrived one."""
    sums = []
    for view in subset.views:
        values = view.layout.read(own_values(view.stored)).detach()
        bits = values.contiguous().view(_INTEGERS[values.element_size()]).reshape(values.shape[0] if values.dim() else 1, -1)
        sums.append((bits.sum(1), bits.sum(0)))
    return tuple(sums)
