"""Effects of features on two sets of samples, by hand."""

import torch

from param_features.fit.formats import LowRank
from param_features.gradients import Dense, GradientStore
from param_features.measure import off_target, on_target


def store_of(matrices: torch.Tensor) -> GradientStore:
    store = GradientStore(len(matrices), {"w": Dense(matrices[:1])})
    store.add({"w": Dense(matrices)})
    return store


def along_axes() -> LowRank:
    """Feature k is entry [k, 0] of a matrix."""
    return LowRank({"w": (torch.eye(3)[:, :, None], torch.tensor([1.0, 0.0]).expand(3, 2)[:, :, None].clone())})


def test_shares_and_the_ratio_of_sums():
    target, background = torch.zeros(4, 3, 2), torch.zeros(2, 3, 2)
    target[:, 0, 0] = torch.tensor([1.0, -1.0, 3.0, -3.0])  # mean effect 2
    target[:, 1, 0] = 1.0
    background[:, 1, 0] = torch.tensor([3.0, -3.0])
    background[:, :, 1] = 9.0  # no feature is moved by it
    stores = store_of(target), store_of(background)
    torch.testing.assert_close(on_target(along_axes(), *stores), torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64))
    assert off_target(along_axes(), *stores) == 1.0
    assert off_target(along_axes().rows([0]), *stores) == 0.0
