"""The chosen parameters: replacing them for a while, editing them in place, and checking their values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from param_features.errors import NoGradientError, NonFiniteError
from param_features.params.edits import Addition, added, is_edited, stand_ins
from param_features.params.fingerprints import fingerprint
from param_features.params.views import ParamView


def has_plain_values(stored: Tensor) -> bool:
    """Whether a tensor keeps its values as they are: no class of its own makes it quantised, sharded or sparse."""
    return getattr(type(stored), "__torch_dispatch__", None) is getattr(Tensor, "__torch_dispatch__", None)


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
        """Return the view of that name."""
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
                    "without quantisation and decompose that, or leave this parameter out."
                )
            if not has_plain_values(view.stored):
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
            with stand_ins():
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
