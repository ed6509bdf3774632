"""What draws at random in a run, each stage from a generator of its own."""

from enum import IntEnum

import torch


class Stage(IntEnum):
    """A stage of a run that draws random numbers."""

    PLAN = 0
    REFERENCES = 1
    HARVEST = 2
    FIT = 3
    MEASURE = 4
    BACKGROUND = 5
    BESIDE_BACKGROUND = 6


def stage_generator(seed: int, stage: Stage) -> torch.Generator:
    """A generator for each stage, so that one stage's draws never shift another's."""
    return torch.Generator().manual_seed(seed * 16 + stage)
