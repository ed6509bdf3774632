"""A few samples' gradients that stand for many: reading them costs the time of the many and the memory of the few."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients import Gradients, SampleGradients


class Tiled(SampleGradients):
    """Gradients of a few samples over and over, as if they were many."""

    def __init__(self, few: SampleGradients, n_samples: int) -> None:
        """Take the samples, and how many they are to stand for."""
        self._few, self.n_samples = few, n_samples

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes, as one of the few does."""
        return self._few.sample_bytes

    def rows(self, index: Int[Tensor, " sample"] | slice) -> Gradients:
        """The gradients of some samples, always copies."""
        places = torch.arange(self.n_samples)[index if isinstance(index, slice) else index.cpu()]
        return self._few.rows(places % self._few.n_samples)

    @staticmethod
    def norms_of(few: SampleGradients, n_samples: int) -> None:
        """Compute as many norms as so many samples have, of the few again and again."""
        for _ in range(-(-n_samples // few.n_samples)):
            few.square_norm()

    def square_norm(self) -> Float[Tensor, " sample"]:
        """‖∇‖² of each sample; computed of the few alone."""
        few = self._few.square_norm()
        return few.repeat(-(-self.n_samples // len(few)))[: self.n_samples]
