"""Toys whose matrices are sums of known rank-1 parts: superposition, with an identity inside too, and residual MLPs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.toys.component_scores import Parts
from param_features.errors import SettingError
from param_features.toys import superposition
from param_features.toys.cache import cached_weights
from param_features.toys.training import sparse_uniform, trained

_PROBE = 0.75
_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ComponentToy:
    """A trained model whose matrices are known to be sums of rank-1 parts, one for each feature of its inputs.

    Attributes:
        name: What it is.
        model: In evaluation mode; every decomposed matrix is the weight of an `nn.Linear` of its own.
        params: Names of the decomposed parameters.
        inputs: Drawn as the training data were.
        probes: Inputs with one feature each, of size 0.75.
        truth: The true parts of a matrix by its name. A matrix without an entry has parts in no one basis.
        directions: For a matrix whose inputs are sums of embeddings, those: parts are compared as they act on them.
    """

    name: str
    model: nn.Module
    params: tuple[str, ...]
    inputs: Float[Tensor, "input feature"]
    probes: Float[Tensor, "feature feature"]
    truth: Mapping[str, Parts]
    directions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def matrices(self) -> dict[str, Float[Tensor, "d_out d_in"]]:
        """The decomposed weights by name."""
        weights = dict(self.model.named_parameters())
        return {name: weights[name].detach() for name in self.params}


class Layers(nn.Module):
    """y = ReLU(W_out W_inside W_in x + b), or without W_inside."""

    def __init__(self, W: Float[Tensor, "d_hidden feature"], bias: Float[Tensor, " feature"], *, has_identity: bool) -> None:
        """W_in = W, W_out = Wᵀ, W_inside the identity; each is a matrix of its own."""
        super().__init__()
        d_hidden, n_features = W.shape
        self.encode = nn.Linear(n_features, d_hidden, bias=False)
        self.inside = nn.Linear(d_hidden, d_hidden, bias=False) if has_identity else nn.Identity()
        self.decode = nn.Linear(d_hidden, n_features)
        with torch.no_grad():
            self.encode.weight.copy_(W)
            self.decode.weight.copy_(W.T)
            self.decode.bias.copy_(bias)
            if has_identity:
                nn.init.eye_(self.inside.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct the input."""
        return torch.relu(self.decode(self.inside(self.encode(x))))


@lru_cache(maxsize=64)
def superposition_layers(
    n_features: int = 5,
    d_hidden: int = 2,
    *,
    has_identity: bool = False,
    probability: float = 0.05,
    n_inputs: int = 50_000,
    n_steps: int = 2000,
    seed: int = 0,
) -> ComponentToy:
    """The tied model of superposition, x̂ = ReLU(Wᵀ W x + b), its two uses of W as two matrices.

    Part i of the first matrix is column i of W at input i, W_i ⊗ e_i, and of the second its transpose. The identity inside
    changes no output, and any two vectors and their duals sum to it: it has as many parts as hidden units, in no one basis.
    Cost: two or three CPU seconds, once on a machine.

    Args:
        n_features: Sparse features.
        d_hidden: Hidden units.
        has_identity: Whether a matrix that is the identity stands between the two.
        probability: Of each feature in an input; its size is uniform in [0, 1].
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 2,048 inputs.
        seed: Of initial weights and data.

    Source: SPD (arXiv 2506.20790), sections 3.1 and 3.2, TMS and TMS with an identity.
    """

    def train() -> dict[str, Tensor]:
        toy = superposition(n_features, d_hidden, is_tied=True, n_inputs=1, **training)
        return dict(toy.model.named_parameters())

    training = {"probability": probability, "n_steps": n_steps, "seed": seed}
    arguments = {"n_features": n_features, "d_hidden": d_hidden, **training}
    weights = cached_weights("superposition_layers", arguments, train, version=_VERSION)
    W, units = weights["weight"], torch.eye(n_features)
    generator = torch.Generator().manual_seed(seed)
    inside = ("inside.weight",) if has_identity else ()
    return ComponentToy(
        name=f"superposition of {n_features} in {d_hidden}{', an identity inside' if has_identity else ''}",
        model=Layers(W, weights["bias"], has_identity=has_identity).eval(),
        params=("encode.weight", *inside, "decode.weight"),
        inputs=sparse_uniform(n_inputs, n_features, probability, generator),
        probes=_PROBE * units,
        truth={"encode.weight": (W.T.contiguous(), units), "decode.weight": (units, W.T.contiguous())},
    )


class ResidualMLP(nn.Module):
    """y = E r, where r = Eᵀ x and each layer adds W_out ReLU(W_in r) to r; rows of E [feature d_embed] have unit norm."""

    def __init__(self, embedding: Float[Tensor, "feature d_embed"], n_layers: int, n_neurons: int) -> None:
        """The layers are drawn by torch's own rule; the embedding is fixed."""
        super().__init__()
        d_embed = embedding.shape[1]
        self.register_buffer("embedding", embedding)
        self.W_in = nn.ModuleList(nn.Linear(d_embed, n_neurons, bias=False) for _ in range(n_layers))
        self.W_out = nn.ModuleList(nn.Linear(n_neurons, d_embed, bias=False) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream, read through the embedding."""
        residual = x @ self.embedding
        for W_in, W_out in zip(self.W_in, self.W_out, strict=True):
            residual = residual + W_out(torch.relu(W_in(residual)))
        return residual @ self.embedding.T


class _Folded(nn.Module):
    """The same function, trained in the coordinates that inputs and outputs have: A = W_in Eᵀ, and W_out = Eᵀ B."""

    def __init__(self, overlaps: Float[Tensor, "feature feature"], n_layers: int, n_neurons: int) -> None:
        super().__init__()
        n_features = len(overlaps)
        self.register_buffer("overlaps", overlaps)
        self.A = nn.ParameterList(torch.randn(n_neurons, n_features) * n_features**-0.5 for _ in range(n_layers))
        self.B = nn.ParameterList(torch.randn(n_features, n_neurons) * n_neurons**-0.5 for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Layers read A inverse(E Eᵀ) E r, and r = Eᵀ z, so that what they see is A z."""
        z = x
        for A, B in zip(self.A, self.B, strict=True):
            z = z + torch.relu(z @ A.T) @ B.T
        return z @ self.overlaps


@lru_cache(maxsize=16)
def residual_mlp(
    n_layers: int = 1,
    *,
    n_features: int = 100,
    d_embed: int = 1000,
    n_neurons: int = 50,
    probability: float = 0.01,
    n_inputs: int = 50_000,
    n_steps: int = 2000,
    seed: int = 0,
) -> ComponentToy:
    """A residual MLP that has learned x ↦ x + ReLU(x) with fewer neurons than features.

    Part i of an input matrix is W_in E_i ⊗ e_i, where e_i is the amount of embedding E_i in the residual stream: parts are
    compared as they act on the embeddings, U_c ⊗ (E V_c) with column i of W_in Eᵀ. What a part does off the span of the
    embeddings, where no input lies, is not compared. No truth is known of W_out.
    The matrices have nothing off that span: the model is trained in the features' own coordinates, which is quick.
    Cost: about twenty CPU seconds, once on a machine.

    Args:
        n_layers: Of the MLP; the neurons are shared out evenly.
        n_features: Inputs and outputs.
        d_embed: Width of the residual stream; the embeddings are random unit vectors in it.
        n_neurons: Over all layers.
        probability: Of each feature in an input; its size is uniform in [-1, 1].
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 2,048 inputs.
        seed: Of the embedding, the initial weights and the data.

    Raises:
        SettingError: The layers do not share out the neurons evenly, or the embeddings would not be independent.

    Source: SPD (arXiv 2506.20790), section 3.3; APD (2501.14926), "compressed computation".
    """
    if n_neurons % n_layers or n_features > d_embed:
        raise SettingError(
            f"n_neurons={n_neurons} must be a multiple of n_layers={n_layers}, and n_features={n_features} at most "
            f"d_embed={d_embed}."
        )
    generator = torch.Generator().manual_seed(seed)
    embedding = nn.functional.normalize(torch.randn(n_features, d_embed, generator=generator), dim=1)
    sizes = {"n_layers": n_layers, "n_features": n_features, "d_embed": d_embed, "n_neurons": n_neurons}
    arguments = {**sizes, "probability": probability, "n_steps": n_steps, "seed": seed}

    def draw(source: torch.Generator) -> tuple[Tensor, Tensor]:
        x = _signed(2048, n_features, probability, source)
        return x, x + torch.relu(x)

    def train() -> dict[str, Tensor]:
        overlaps = embedding @ embedding.T
        model = trained(lambda: _Folded(overlaps, n_layers, n_neurons // n_layers), draw, generator, n_steps=n_steps)
        return dict(model.named_parameters())

    weights = cached_weights("residual_mlp", arguments, train, version=_VERSION)
    model = ResidualMLP(embedding, n_layers, n_neurons // n_layers)
    dual = torch.linalg.pinv(embedding).T
    with torch.no_grad():
        for layer in range(n_layers):
            model.W_in[layer].weight.copy_(weights[f"A.{layer}"] @ dual)
            model.W_out[layer].weight.copy_(embedding.T @ weights[f"B.{layer}"])
    units, read = torch.eye(n_features), [f"W_in.{layer}.weight" for layer in range(n_layers)]
    return ComponentToy(
        name=f"residual MLP of {n_layers} layer{'s' if n_layers > 1 else ''}",
        model=model.eval(),
        params=tuple(f"{side}.{layer}.weight" for layer in range(n_layers) for side in ("W_in", "W_out")),
        inputs=_signed(n_inputs, n_features, probability, torch.Generator().manual_seed(seed + 1)),
        probes=_PROBE * units,
        truth={name: (weights[f"A.{layer}"].T.contiguous(), units) for layer, name in enumerate(read)},
        directions=dict.fromkeys(read, embedding),
    )


def _signed(n: int, n_features: int, probability: float, generator: torch.Generator) -> Float[Tensor, "input feature"]:
    """Inputs that have each feature with a probability, its size uniform in [-1, 1]."""
    sizes = 2 * torch.rand(n, n_features, generator=generator) - 1
    return sizes * (torch.rand(n, n_features, generator=generator) < probability)
