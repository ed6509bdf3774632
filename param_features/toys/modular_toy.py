"""Modular addition in a one-layer transformer: the few frequencies that it computes with are the truth."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from param_features.errors import SettingError, ToyError
from param_features.features import ParamFeatures
from param_features.fit import FitSettings
from param_features.machine import public
from param_features.problem import read_inputs
from param_features.toys.cache import Weights, cached_weights
from param_features.toys.hooked import build_hooked
from param_features.toys.rival_directions import read_all, rivals
from param_features.toys.toy import Toy

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

VERSION = 2
_ATTEMPTS = 10
_ACCURATE = 0.99
_CHECK_EVERY, _SETTLE = 50, 200
_LR, _WEIGHT_DECAY, _TRAIN_SHARE = 3e-3, 2.0, 0.7
_KEY_SHARE = 0.1
_READINGS = ("fit", "random", "sampled", "principal")


@dataclass(frozen=True)
class FourierScores:
    """How far each feature keeps to one frequency: the part of its activations' power that lies at a single one.

    Attributes:
        purity: Median over features of the share of power at the feature's best key frequency, 0 to 1.
        controls: The same for `random`, `sampled` and `principal` directions (see `rivals`), and for the fit with the
            residues renamed at random (`shuffled`).
        key_share: Share of the fit's features whose best frequency of all is a key frequency.
        chance: That share if frequencies were drawn blindly.
        n_key: Key frequencies of the model.
        error: Held-out reconstruction error of the fit.
    """

    purity: float
    controls: dict[str, float]
    key_share: float
    chance: float
    n_key: int
    error: float

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, the controls' as `purity_random` and so on."""
        numbers = {"purity": self.purity, "key_share": self.key_share, "key_chance": self.chance, "keys": float(self.n_key)}
        return numbers | {f"purity_{name}": value for name, value in self.controls.items()} | {"error": self.error}

    def __repr__(self) -> str:
        """One line."""
        controls = ", ".join(f"{name} {value:.2f}" for name, value in self.controls.items())
        return (
            f"median share of power at one of {self.n_key} key frequencies {self.purity:.2f} ({controls}); best frequency "
            f"is a key one for {self.key_share:.0%} of the features (chance {self.chance:.0%}); error {self.error:.3f}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ModularToy(Toy):
    """A model of a + b mod p, and the frequencies it uses. Its inputs are all p² rows [a, b, =], a slowest.

    Attributes:
        p: The modulus.
        frequencies: Key frequencies, each in 1 to (p − 1) / 2, ascending.
    """

    p: int
    frequencies: tuple[int, ...]

    @public
    def score(self, features: ParamFeatures, *, seed: int = 0) -> FourierScores:
        """How far features keep to single key frequencies, beside controls scored in the same way.

        A feature's activations on all p² inputs are a function on the torus of (a, b). A feature that belongs to frequency
        w depends on a and b through w alone: its 2-D Fourier transform lives on multiples of w up to 2 (a product of two
        waves, bent once, has no more). Directions that only inherit the model's frequencies mix all of them. A gradient
        joins every frequency that is read with every one that is written, so purity falls with the number of keys.

        Args:
            features: A fit of the toy's model.
            seed: Of the rivals and of the renaming.

        Raises:
            NotBoundError: The features were loaded without a model.
        """
        inputs = read_inputs(features.bound_engine("score").adapter, self.inputs, None)
        readings = rivals(features, inputs, n_slots=1, seed=seed)
        acts = read_all(features, inputs, {name: readings[name] for name in _READINGS})
        grids = {name: each.reshape(self.p, self.p, -1) for name, each in acts.items()}
        order = torch.randperm(self.p, generator=torch.Generator().manual_seed(seed))
        grids["shuffled"] = grids["fit"][order][:, order]
        keys = torch.tensor(self.frequencies) - 1
        shares = {name: frequency_shares(grid) for name, grid in grids.items()}
        purity = {name: float(share[:, keys].max(1).values.median()) for name, share in shares.items()}
        purity_of_fit = purity.pop("fit")
        return FourierScores(
            purity=purity_of_fit,
            controls=purity,
            key_share=float(torch.isin(shares["fit"].argmax(1), keys).double().mean()),
            chance=len(keys) / (self.p // 2),
            n_key=len(keys),
            error=features.metrics["reconstruction_error"],
        )


def last_position(logits: Tensor) -> Tensor:
    """The logits after "=", the only ones that are trained."""
    return logits[:, -1, :]


def frequency_shares(grid: Float[Tensor, "p p feature"]) -> Float[Tensor, "feature frequency"]:
    """Share of each function's power, its mean left out, at 0, ±w, ±2w of either argument, for w from 1 to (p − 1) / 2."""
    p = len(grid)
    power = torch.fft.fft2(grid.double(), dim=(0, 1)).abs().square()
    power[0, 0] = 0
    total = power.sum((0, 1)).clamp(min=1e-30)
    multiples = torch.tensor([0, 1, 2, -1, -2])
    at = [(w * multiples) % p for w in range(1, p // 2 + 1)]
    return torch.stack([power[places][:, places].sum((0, 1)) / total for places in at], 1)


@lru_cache(maxsize=16)
def modular_addition(p: int = 31, *, d_model: int = 64, d_mlp: int = 256, n_steps: int = 1000, seed: int = 0) -> ModularToy:
    """A one-layer transformer that has grokked a + b mod p, and the frequencies it does it with.

    It is trained on 70 % of all pairs, in full batches by AdamW with weight decay 2, until it is right on 99 % of the
    others, and 200 steps more; from another start where it is not by then. Its key frequencies are those with a tenth or
    more of the embedding's power over the residues. Weights are kept on disk (see `cache_folder`); toys are cached within
    the process.

    The MLP's input matrix is decomposed, against the uniform distribution: then a sample's gradient is its own, where
    another sample as reference would add that one's frequencies.
    Cost: about 15 CPU seconds of training for each start.

    Args:
        p: The modulus, a prime from 7 up.
        d_model: Width of the residual stream; four heads share it.
        d_mlp: Neurons.
        n_steps: Most training steps of an attempt.
        seed: Of weights and of the pairs trained on.

    Raises:
        SettingError: `p` is no prime from 7 up, or sizes do not fit.
        MissingExtraError: HookedTransformer cannot be imported.
        ToyError: No start led to a model that generalises.

    Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability".
    """
    check_sizes(p, d_model, d_mlp, n_steps)
    sizes = {"p": p, "d_model": d_model, "d_mlp": d_mlp, "n_steps": n_steps}
    architecture = architecture_of(p, d_model, d_mlp)
    model = build_hooked(architecture, seed=seed)
    weights = cached_weights(
        "modular_addition", {**sizes, "seed": seed}, lambda: _find(architecture, p, n_steps, seed), version=VERSION
    )
    model.load_state_dict(model.state_dict() | weights)
    return toy_of(p, model)


def check_sizes(p: int, d_model: int, d_mlp: int, n_steps: int) -> None:
    """Refuse a modulus with divisors, and sizes that do not fit.

    Raises:
        SettingError: Says which.
    """
    if p < 7 or any(p % factor == 0 for factor in range(2, int(p**0.5) + 1)):
        raise SettingError(f"p={p} must be a prime from 7 up: then no frequency divides another. 31 is usual here.")
    if min(d_model, d_mlp, n_steps) < 1 or d_model % 4:
        raise SettingError(f"d_model={d_model} must be a multiple of 4, d_mlp={d_mlp} and n_steps={n_steps} positive.")


def toy_of(p: int, model: "HookedTransformer") -> ModularToy:
    """The toy of a trained model, which is put into evaluation mode."""
    return ModularToy(
        name=f"addition modulo {p}",
        model=model.eval(),
        params=("blocks.0.mlp.W_in",),
        inputs=all_pairs(p),
        n_features=24,
        l0=6,
        divergence="kl",
        settings={"reference": "uniform", "output": last_position, "fit": FitSettings(selection="top_k"), "steps": 600},
        p=p,
        frequencies=key_frequencies(model.embed.W_E[:p].detach()),
    )


def all_pairs(p: int) -> Int[Tensor, "input three"]:
    """[a, b, =] for all a and b, a slowest; "=" is token p."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    return torch.cat([pairs, torch.full((p * p, 1), p)], 1)


def key_frequencies(embedding: Float[Tensor, "residue d_model"]) -> tuple[int, ...]:
    """Frequencies with at least a tenth of the embedding's power over the residues, its mean left out; ascending."""
    power = torch.fft.rfft(embedding.double(), dim=0).abs().square().sum(1)[1:]
    return tuple((torch.nonzero(power >= _KEY_SHARE * power.sum())[:, 0] + 1).tolist())


def architecture_of(p: int, d_model: int, d_mlp: int) -> dict[str, Any]:
    """What `build_hooked` takes: one layer, four heads, no normalisation."""
    return {
        "n_layers": 1,
        "d_model": d_model,
        "n_heads": 4,
        "d_head": d_model // 4,
        "d_mlp": d_mlp,
        "d_vocab": p + 1,
        "d_vocab_out": p,
        "n_ctx": 3,
        "act_fn": "relu",
        "normalization_type": None,
    }


def _find(architecture: dict[str, Any], p: int, n_steps: int, seed: int) -> Weights:
    generator, highest = torch.Generator().manual_seed(seed), 0.0
    for _ in range(_ATTEMPTS):
        model = build_hooked(architecture, seed=int(torch.randint(2**31, (), generator=generator)))
        order = torch.randperm(p * p, generator=generator)
        accuracy = _train(model, p, n_steps, order)
        if accuracy > _ACCURATE and key_frequencies(model.embed.W_E[:p].detach()):
            return dict(model.named_parameters())
        highest = max(highest, accuracy)
    raise ToyError(
        f"After {_ATTEMPTS} starts the best model is right on {highest:.1%} of the pairs held out; more than "
        f"{_ACCURATE:.0%} is wanted, and a frequency that stands out. Ask for more steps or a larger model."
    )


@torch.enable_grad()
def _train(model: "HookedTransformer", p: int, n_steps: int, order: Tensor) -> float:
    """Train without biases until the held-out pairs are right and a little longer; returns the accuracy on them."""
    tokens = all_pairs(p)
    sums = (tokens[:, 0] + tokens[:, 1]) % p
    train, test = order[: round(_TRAIN_SHARE * p * p)], order[round(_TRAIN_SHARE * p * p) :]
    weights = [tensor for name, tensor in model.named_parameters() if ".b_" not in name]
    optimizer = torch.optim.AdamW(weights, lr=_LR, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    first_right = n_steps
    for step in range(n_steps):
        loss = cross_entropy(last_position(model(tokens[train])), sums[train])
        model.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
        if step % _CHECK_EVERY == 0 and _accuracy(model, tokens[test], sums[test]) > _ACCURATE:
            first_right = min(first_right, step)
            if step >= first_right + _SETTLE:
                break
    return _accuracy(model, tokens[test], sums[test])


@torch.no_grad()
def _accuracy(model: "HookedTransformer", tokens: Tensor, sums: Tensor) -> float:
    return float((last_position(model(tokens)).argmax(1) == sums).double().mean())
