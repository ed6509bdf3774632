"""Plain modules, one kind of layer each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.families.family import Family, ids, noisy, normal
from tests.models import Between


class First(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module, *, n_inputs: int = 1) -> None:
        super().__init__()
        self.layer, self.n_inputs = layer, n_inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*(x,) * self.n_inputs)[0]


class Twice(nn.Module):
    """A layer of two inputs, given the same in both."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.tanh())


class Einsum(nn.Module):
    """A Parameter of a module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bpi,hio->bpho", x, self.W)


class Reused(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """Two layers that hold one Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class OwnExperts(nn.Module):
    """Experts in a loop, as people write them: each takes the positions that a router sends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat, weights = x.flatten(0, -2), self.router(x).flatten(0, -2).softmax(-1)
        best, out = weights.argmax(-1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            chosen = (best == number).nonzero()[:, 0]
            out = out.index_add(0, chosen, expert(flat[chosen]) * weights[chosen, number, None])
        return out.unflatten(0, x.shape[:-1])


class Truncated(nn.Module):
    """A recurrence of which the last step alone is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            state = torch.tanh(self.layer(x))
        return self.layer(x + state)


class Converting(nn.Module):
    """A layer that converts itself to what it is already at each call, as routers do, beside a Parameter without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.layer = self.layer.to(x.dtype)
        return self.scale * self.layer(x)


def between(layer: Callable[[], nn.Module]) -> nn.Module:
    """The layer with a bend before and after it."""
    return noisy(Between(layer()))


def _family(
    name: str,
    layer: Callable[[], nn.Module],
    x: Callable[[int], Tensor],
    param: str = "layer.weight",
) -> Family:
    def data(n_rows: int) -> dict[str, Any]:
        return {"inputs": x(n_rows)}

    return Family(name, "Plain modules", partial(between, layer), data, param, common=True)


def _rows(*shape: int) -> Callable[[int], Tensor]:
    return lambda n_rows: normal(n_rows, *shape)


def _indices(n_rows: int) -> Tensor:
    return ids(n_rows, 5, low=0, high=6)


MODULES = [
    _family("Linear", lambda: nn.Linear(4, 3), _rows(4)),
    _family("Linear on sequences", lambda: nn.Linear(4, 3), _rows(5, 4)),
    _family("Conv1d", lambda: nn.Conv1d(2, 4, 3), _rows(2, 9)),
    _family("Conv2d", lambda: nn.Conv2d(2, 4, 3), _rows(2, 6, 6)),
    _family("Conv2d in groups", lambda: nn.Conv2d(4, 6, 3, groups=2), _rows(4, 6, 6)),
    _family("Conv3d", lambda: nn.Conv3d(2, 4, 2), _rows(2, 4, 4, 4)),
    _family("ConvTranspose1d", lambda: nn.ConvTranspose1d(2, 4, 3), _rows(2, 6)),
    _family("ConvTranspose2d", lambda: nn.ConvTranspose2d(2, 4, 3), _rows(2, 4, 4)),
    _family("Embedding", lambda: nn.Embedding(6, 4), _indices),
    _family("EmbeddingBag", lambda: nn.EmbeddingBag(6, 4), _indices),
    _family("LayerNorm", lambda: nn.LayerNorm(4), _rows(5, 4)),
    _family("RMSNorm", lambda: nn.RMSNorm(4), _rows(5, 4)),
    _family("GroupNorm", lambda: nn.GroupNorm(2, 4), _rows(4, 6)),
    _family("InstanceNorm1d", lambda: nn.InstanceNorm1d(4, affine=True), _rows(4, 6)),
    _family("BatchNorm2d in evaluation mode", lambda: nn.BatchNorm2d(4), _rows(4, 3, 3)),
    _family("PReLU", lambda: nn.PReLU(4), _rows(4, 6)),
    _family("Bilinear", Bilinear, _rows(4), "layer.layer.weight"),
    _family("LSTM", lambda: First(nn.LSTM(4, 3, batch_first=True)), _rows(5, 4), "layer.layer.weight_hh_l0"),
    _family("GRU", lambda: First(nn.GRU(4, 3, batch_first=True)), _rows(5, 4), "layer.layer.weight_hh_l0"),
    _family("RNN", lambda: First(nn.RNN(4, 3, batch_first=True)), _rows(5, 4), "layer.layer.weight_hh_l0"),
    _family(
        "LSTM, two ways, two layers",
        lambda: First(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)),
        _rows(5, 4),
        "layer.layer.weight_ih_l1",
    ),
    _family(
        "MultiheadAttention",
        lambda: First(nn.MultiheadAttention(4, 2, batch_first=True), n_inputs=3),
        _rows(5, 4),
        "layer.layer.in_proj_weight",
    ),
    _family(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True),
        _rows(5, 4),
        "layer.linear1.weight",
    ),
    _family(
        "TransformerDecoderLayer",
        lambda: Twice(nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)),
        _rows(5, 4),
        "layer.layer.multihead_attn.in_proj_weight",
    ),
    _family(
        "weight_norm",
        lambda: weight_norm(nn.Linear(4, 3)),
        _rows(5, 4),
        "layer.parametrizations.weight.original1",
    ),
    _family("spectral_norm", lambda: spectral_norm(nn.Linear(4, 3)), _rows(5, 4), "layer.parametrizations.weight.original"),
    _family("A Parameter in an einsum", Einsum, _rows(5, 4), "layer.W"),
    _family("A layer that is called twice", Reused, _rows(4), "layer.layer.weight"),
    _family("Two layers with one weight", Tied, _rows(4), "layer.first.weight"),
    _family("A recurrence trained in its last step", Truncated, _rows(5, 4), "layer.layer.weight"),
    _family("A layer that converts itself", Converting, _rows(5, 4), "layer.scale"),
    _family("A loop over experts", OwnExperts, _rows(5, 4), "layer.experts.0.weight"),
]
