"""An adversary whose sources live across steps and climb the divergence: VPD's, for training."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.machine import Share

Sources = Mapping[str, Float[Tensor, "row _pos _component_and_remainder"]]

_BETAS = (0.5, 0.99)


class Adversary:
    """Sources r in [0, 1] for every row of a batch, position and component, the last of each site for Δ; Adam climbs.

    Source: VPD (Goodfire, 2026), persistent adversarial sources.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int, int]], lr: float, generator: torch.Generator, like: Tensor
    ) -> None:
        """Start anywhere.

        Args:
            shapes: Rows, positions and components of each site.
            lr: Adam's learning rate.
            generator: Draws the start.
            like: Gives dtype and device.
        """
        self.sources = {
            name: torch.rand(rows, pos, n + 1, generator=generator, dtype=torch.float32).to(like).requires_grad_()
            for name, (rows, pos, n) in shapes.items()
        }
        self._optimizer = torch.optim.Adam(self.sources.values(), lr=lr, betas=_BETAS, maximize=True, fused=True)

    def climb(self, share: Share) -> None:
        """One step of Adam up the gradient that a backward pass has left at the sources, clamped to [0, 1].

        Processes that share the batch add their rows' gradients up, and all take the same step.
        """
        share.sum_([source.grad for source in self.sources.values() if source.grad is not None])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for source in self.sources.values():
                source.clamp_(0, 1)

    def ascend(self, share: Share, divergence_at: Callable[[Sources], Tensor]) -> None:
        """Climb once, with everything else held: one forward and one backward pass."""
        divergence_at(self.sources).backward()
        self.climb(share)

    @property
    def counters(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        held = {}
        for name, source in self.sources.items():
            state = self._optimizer.state[source]
            if not state:  # before its first step
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(source), exp_avg_sq=torch.zeros_like(source))
            held |= {f"adversary/{name}/{key}": value for key, value in {"source": source, **state}.items()}
        return held
