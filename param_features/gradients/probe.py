"""What two rows of a data set tell of all its samples: how their gradients are stored, and how wide their outputs are."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from param_features.gradients.engine import GradientEngine
from param_features.gradients.store import storable
from param_features.gradients.types import Gradients
from param_features.problem import ModelInputs


@dataclass(frozen=True)
class SampleProbe:
    """The first two rows of a data set, whose gradients have the formats and shapes of every sample's.

    The engine runs once, when something is first read here; whatever shares a probe shares what it found.

    Attributes:
        engine: Takes the gradients.
        inputs: The data.
    """

    engine: GradientEngine
    inputs: ModelInputs

    @property
    def like(self) -> Gradients:
        """The two rows' gradients, in the form in which gradients are stored.

        Raises:
            NonFiniteError: They hold NaN or infinity.
        """
        return self._taken[0]

    @property
    def d_output(self) -> int:
        """Numbers of one sample's output."""
        return self._taken[1]

    @cached_property
    def _taken(self) -> tuple[Gradients, int]:
        rows = self.inputs.rows(slice(0, 2))
        gradients: Gradients = {}
        widths: list[int] = []

        def ones(output: Tensor, *_: Tensor) -> Tensor:
            widths.append(output.shape[1])
            return torch.ones_like(output)

        first_positions = torch.zeros(len(rows), 1, dtype=torch.long)
        self.engine.each_slot(rows, first_positions, ones, lambda _, slot_gradients: gradients.update(slot_gradients))
        return storable(gradients), widths[0]
