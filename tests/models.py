"""Small models that the tests share."""

import warnings

import pytest
import torch
from torch import nn


def randomised(model: nn.Module, *, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Add noise to every parameter, so that no gain is 1 and no bias 0; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model.eval()


def hooked_classes() -> tuple[type, type]:
    """HookedTransformer and its configuration; skips the test without them."""
    library = pytest.importorskip("transformer_lens")
    try:
        return library.HookedTransformer, library.HookedTransformerConfig
    except ImportError:
        pytest.skip("TransformerLens 4 has no HookedTransformer")


def hooked_transformer(*, dtype: torch.dtype = torch.float64, **changes):
    """A random HookedTransformer with two layers; skips the test where TransformerLens is missing or has none."""
    HookedTransformer, HookedTransformerConfig = hooked_classes()
    settings = {
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 20, "n_ctx": 12,
        "act_fn": "gelu", "normalization_type": "LN", "seed": 0, "device": "cpu",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        return randomised(HookedTransformer(HookedTransformerConfig(**settings | changes, dtype=dtype)))


class Classifier(nn.Module):
    """Images of nothing in particular to four logits: convolution, norm and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.LayerNorm(48)
        self.classifier = nn.Linear(48, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, images):
        return self.classifier(self.norm(torch.relu(self.conv(images)).flatten(1)))


class Recurrent(nn.Module):
    """Sequences [batch pos 4] to two numbers, by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def integers(high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(6))


class Between(nn.Module):
    """One layer with a bend before and after it, so that its input and output gradients are no constants."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        x = x if not x.is_floating_point() else x + 0.3 * x.square()
        y = self.layer(x)
        return torch.tanh(y).flatten(1).cumsum(1)


def built(module: nn.Module) -> nn.Module:
    return randomised(module.double())


def superposed():
    """Five features in two dimensions, at the corners of a pentagon: what superposition trains to."""
    corners = torch.arange(5) * 2 * torch.pi / 5
    W = torch.stack([corners.cos(), corners.sin()])
    model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 5), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(W)
        model[1].weight.copy_(W.T)
        model[1].bias.fill_(-0.31)
    return model
