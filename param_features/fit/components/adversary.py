"""An adversary whose sources live across steps and climb the divergence: VPD's, for training."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Sources = Mapping[str, Float[Tensor, "row pos component_and_remainder"]]

_BETAS = (0.5, 0.99)
_EPS = 1e-8


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
        self.lr = lr
        self.sources = {
            name: torch.rand(rows, pos, n + 1, generator=generator).to(like) for name, (rows, pos, n) in shapes.items()
        }
        self.moments = {name: (torch.zeros_like(source), torch.zeros_like(source)) for name, source in self.sources.items()}
        self.n_ascents = torch.zeros((), dtype=torch.long)

    def leaves(self, n_rows: int) -> dict[str, Tensor]:
        """The sources of the first rows, as leaves to differentiate at."""
        return {name: source[:n_rows].detach().clone().requires_grad_() for name, source in self.sources.items()}

    @torch.no_grad()
    def climb(self, gradients: Mapping[str, Tensor | None]) -> None:
        """One step of Adam up the divergence's gradient at the sources of the first rows, clamped to [0, 1]."""
        self.n_ascents += 1
        n = int(self.n_ascents)
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            first, second = (moment[: len(gradient)] for moment in self.moments[name])
            first.lerp_(gradient, 1 - _BETAS[0])
            second.lerp_(gradient.square(), 1 - _BETAS[1])
            step = (first / (1 - _BETAS[0] ** n)) / ((second / (1 - _BETAS[1] ** n)).sqrt() + _EPS)
            self.sources[name][: len(gradient)].add_(step, alpha=self.lr).clamp_(0, 1)

    def ascend(self, n_rows: int, divergence_at: Callable[[Sources], Tensor]) -> None:
        """Climb once, with everything else held: one forward and one backward pass."""
        leaves = self.leaves(n_rows)
        gradients = torch.autograd.grad(divergence_at(leaves), list(leaves.values()), allow_unused=True)
        self.climb(dict(zip(leaves, gradients, strict=True)))

    @property
    def counters(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        held = {"adversary/n": self.n_ascents}
        for name, source in self.sources.items():
            first, second = self.moments[name]
            held |= {f"adversary/{name}": source, f"adversary/{name}/first": first, f"adversary/{name}/second": second}
        return held
