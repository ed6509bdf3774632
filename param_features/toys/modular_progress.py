"""Progress measures of modular addition in Fourier terms: what the key frequencies do, and what is left without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from param_features.development import change_points, gini
from param_features.errors import SettingError
from param_features.machine import own_modes, public
from param_features.toys.modular_model import TRAINED, modular_logits, sums
from param_features.toys.modular_runs import ModularTraining
from param_features.toys.modular_toy import all_pairs

_CURVES = ("restricted", "excluded", "gini_embedding", "gini_logits", "square_norm")


@dataclass(frozen=True, eq=False)
class FourierProgress:
    """Measures at each checkpoint of a training; losses are mean cross-entropies in nats.

    Attributes:
        steps: The checkpoints' steps.
        frequencies: The key frequencies.
        restricted: Loss on all pairs of logits that keep their mean and their cos and sin of w(a + b) for key w alone.
        excluded: Loss on the pairs trained on of logits that keep everything but these waves.
        gini_embedding: Gini coefficient of the norms of the embedding's Fourier components over residues.
        gini_logits: The same for the map from neurons to logits, over the answers.
        square_norm: Sum of all squared weights.
    """

    steps: tuple[int, ...]
    frequencies: tuple[int, ...]
    restricted: Float[Tensor, " checkpoint"]
    excluded: Float[Tensor, " checkpoint"]
    gini_embedding: Float[Tensor, " checkpoint"]
    gini_logits: Float[Tensor, " checkpoint"]
    square_norm: Float[Tensor, " checkpoint"]

    def __repr__(self) -> str:
        """First and last."""
        ends = ", ".join(f"{name} {getattr(self, name)[0]:.3g} → {getattr(self, name)[-1]:.3g}" for name in _CURVES)
        return f"FourierProgress of frequencies {self.frequencies}, steps {self.steps[0]} → {self.steps[-1]}: {ends}"

    @public
    def change_points(self, of: str = "square_norm") -> tuple[int, ...]:
        """Steps at which a curve begins a new phase, by the rule of `pf.track`. The weight norm's tell the three phases.

        Raises:
            SettingError: There is no such curve.
            MissingExtraError: ruptures is not installed.
        """
        if of not in _CURVES:
            raise SettingError(f"of={of!r} is unknown. Accepted: {', '.join(map(repr, _CURVES))}.")
        return tuple(self.steps[place] for place in change_points(getattr(self, of)))


@public
@own_modes()
@torch.no_grad()
def fourier_progress(training: ModularTraining, *, frequencies: Sequence[int] | None = None) -> FourierProgress:
    """Restricted and excluded loss, Gini coefficients and weight norm at every checkpoint.

    While a model memorises, both excluded loss and loss fall; while the circuit forms, the restricted loss falls and the
    excluded one rises, as what was memorised is given up for the key frequencies; clean-up takes the rest away, and the loss
    on pairs held out falls last.

    Cost: a forward pass of all p² pairs and a Fourier transform of their logits for each checkpoint.

    Args:
        training: What `modular_training` returned.
        frequencies: Key frequencies; those of the last checkpoint by default.

    Raises:
        SettingError: There is no key frequency, or one lies outside 1 to (p − 1) / 2.

    Source: Nanda et al. 2023 (2301.05217), section 5.1.
    """
    p = training.toy.p
    keys = tuple(training.toy.frequencies if frequencies is None else frequencies)
    if not keys or not all(1 <= w <= p // 2 for w in keys):
        raise SettingError(
            f"frequencies={keys} must be one or more of 1 to {p // 2}. A model that has not grokked has none of its own: "
            "train for more steps, or give some."
        )
    rows = [_at_checkpoint(weights, p, keys, training.train) for weights in training.states]
    return FourierProgress(training.steps, keys, *torch.tensor(rows, dtype=torch.float64).T)


def _at_checkpoint(weights: Mapping[str, Tensor], p: int, keys: Sequence[int], train: Tensor) -> tuple[float, ...]:
    pairs = all_pairs(p)
    logits = modular_logits(weights, pairs).double()
    waves = key_waves(logits.reshape(p, p, -1), keys).reshape(p * p, -1)
    at = train[:, 0] * p + train[:, 1]
    to_logits = weights["blocks.0.mlp.W_out"] @ weights["unembed.W_U"]
    return (
        float(cross_entropy(waves + logits.mean(0), sums(pairs))),
        float(cross_entropy((logits - waves)[at], sums(train))),
        float(gini(fourier_norms(weights["embed.W_E"][:p]))),
        float(gini(fourier_norms(to_logits.T))),
        float(sum(weights[name].double().square().sum() for name in TRAINED)),
    )


def key_waves(logits: Float[Tensor, "p p answer"], frequencies: Sequence[int]) -> Float[Tensor, "p p answer"]:
    """The part of each answer's logits, a function of (a, b), that is cos and sin of w(a + b) for the frequencies given."""
    p = len(logits)
    is_key = torch.zeros(p, p, 1, dtype=logits.dtype)
    places = torch.tensor([sign * w % p for w in frequencies for sign in (1, -1)])
    is_key[places, places] = 1
    return torch.fft.ifft2(torch.fft.fft2(logits, dim=(0, 1)) * is_key, dim=(0, 1)).real


def fourier_norms(matrix: Float[Tensor, "residue d"]) -> Float[Tensor, " residue"]:
    """Norms of the components along the constant and each frequency's cos and sin, all of norm 1 over the residues."""
    p = len(matrix)
    waves = torch.fft.rfft(matrix.double(), dim=0, norm="ortho")
    both = torch.stack([waves[1:].real, waves[1:].imag], 1).flatten(0, 1) * 2**0.5
    assert len(both) == p - 1, "p is odd"
    return torch.cat([waves[:1].real, both]).norm(dim=1)
