"""Features whose effect their gradient does not show: outputs that are full already, of which every number is known."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.toys.given_features import given_features
from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank

FEATURES = ("alone", "one of two", "other of two", "weak")
"""The planted features, in order."""

_OUTPUT_OF_FEATURE = (0, 1, 1, 2)
_N_OUTPUTS = 3
_WEIGHT = "encode.weight"


class Saturating(nn.Module):
    """y = tanh(R W x), with R held fixed."""

    read: Tensor

    def __init__(self, weight: Float[Tensor, "hidden d_in"], read: Float[Tensor, "output hidden"]) -> None:
        """Hold copies of given weights."""
        super().__init__()
        self.encode = nn.Linear(weight.shape[1], len(weight), bias=False)
        self.register_buffer("read", read.clone())
        with torch.no_grad():
            self.encode.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """[batch d_in] to [batch output]."""
        return torch.tanh(self.encode(x) @ self.read.T)


@dataclass(frozen=True, kw_only=True, eq=False)
class SaturatedToy:
    """Four features of one weight, and in closed form what they do to the metric, each input on its own.

    The metric is tanh(z_0) + tanh(z_1 + z_2) + tanh(z_3), with z_k = strength_k · size_k, what k adds before the tanh.

    Attributes:
        name: What it is.
        model: In evaluation mode.
        params: The decomposed parameter.
        inputs: Data; every input has every feature.
        planted: Unit-norm directions: the weight is Σ strength · direction.
        strengths: Of each feature.
        markers: Orthonormal input patterns, one for each feature.
    """

    name: str
    model: Saturating
    params: tuple[str, ...] = (_WEIGHT,)
    inputs: Float[Tensor, "sample d_in"]
    planted: LowRank
    strengths: Float[Tensor, " feature"]
    markers: Float[Tensor, "feature d_in"]

    @property
    def references(self) -> Float[Tensor, "1 output"]:
        """The outputs of no input."""
        return torch.zeros(1, _N_OUTPUTS)

    def planted_features(self) -> ParamFeatures:
        """The planted directions as features, without metrics: nothing was fitted."""
        return given_features(self.model, _WEIGHT, self.planted, inputs=self.inputs, reference=self.references)

    def metric(self) -> Callable[[Float[Tensor, "batch output"]], Float[Tensor, " batch"]]:
        """The sum of the outputs."""
        return lambda outputs: outputs.sum(-1)

    def effect(self, removed: Iterable[int], inputs: Tensor) -> Float[Tensor, " batch"]:
        """What is lost from the metric when these features are taken out together: exact, by the formula.

        Without feature 0 that is tanh(z_0), nearly 1; without feature 1 or 2 tanh(z_1 + z_2) less tanh of the other's,
        nearly 0, and without both nearly 1; without feature 3 tanh(z_3), about one half.

        Raises:
            SettingError: There is no such feature.
        """
        added, kept = self._added(inputs), torch.ones(len(FEATURES), dtype=torch.bool)
        for feature in removed:
            if not 0 <= feature < len(FEATURES):
                raise SettingError(f"There is no feature {feature!r}. Features are numbered 0 to {len(FEATURES) - 1}.")
            kept[feature] = False
        return (_sums(added).tanh() - _sums(added * kept).tanh()).sum(1)

    def attribution(self, inputs: Tensor) -> Float[Tensor, "batch feature"]:
        """∇metric · (strength v_k): z_k (1 − tanh²), below 0.006 for features 0 to 2 of strength 4: it puts feature 3 first.

        Integrated over the way from feature k's removal to the whole model, it is `effect([k])` instead.
        """
        added = self._added(inputs)
        return added * (1 - _sums(added).tanh().square())[:, list(_OUTPUT_OF_FEATURE)]

    def integrated(self, inputs: Tensor) -> Float[Tensor, "batch feature"]:
        """Gradients integrated over the way from no feature to all, at equal pace: z_k / z · tanh(z), z of k's output.

        They add up to the effect of all features together, and give half of an output to either of the two that share it.
        """
        added = self._added(inputs)
        total = _sums(added)
        return added * (total.tanh() / total)[:, list(_OUTPUT_OF_FEATURE)]

    def _added(self, inputs: Tensor) -> Float[Tensor, "batch feature"]:
        """z: what each feature adds to its output before the tanh."""
        return self.strengths.to(inputs) * (inputs @ self.markers.to(inputs).T)


def _sums(added: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch output"]:
    into = nn.functional.one_hot(torch.tensor(_OUTPUT_OF_FEATURE), _N_OUTPUTS)
    return added @ into.to(added)


@lru_cache(maxsize=64)
def saturated(
    *, strength: float = 4.0, weak: float = 0.5, d_in: int = 8, n_inputs: int = 500, seed: int = 0
) -> SaturatedToy:
    """A module whose gradient misleads about what its features do; nothing is trained.

    y = tanh(R W x), W = Σ strength_k a_k ⊗ marker_k: orthonormal patterns on either side, at an angle to the axes. Output 0
    reads feature 0 alone, output 1 reads features 1 and 2, either of which fills it, and output 2 reads feature 3, which is
    weak. Every input has every feature, at a size uniform in [1, 1.5]. Where an output is full its gradient is nearly zero,
    though taking feature 0 out, or 1 and 2 together, empties it.

    Args:
        strength: Of features 0 to 2.
        weak: Of feature 3.
        d_in: Size of inputs and of the hidden layer.
        n_inputs: Inputs.
        seed: Of patterns and inputs.

    Raises:
        SettingError: A setting is out of range.
    """
    if not 0 < weak < strength or d_in < len(FEATURES) or n_inputs < 1:
        raise SettingError(
            f"weak={weak} must lie between 0 and strength={strength}, d_in={d_in} be at least {len(FEATURES)} and "
            f"n_inputs={n_inputs} positive."
        )
    generator = torch.Generator().manual_seed(seed)
    markers, hidden = (torch.linalg.qr(torch.randn(d_in, len(FEATURES), generator=generator)).Q.T for _ in range(2))
    strengths = torch.tensor([strength, strength, strength, weak])
    read = torch.zeros(_N_OUTPUTS, d_in).index_add_(0, torch.tensor(_OUTPUT_OF_FEATURE), hidden)
    sizes = 1 + torch.rand(n_inputs, len(FEATURES), generator=generator) / 2
    return SaturatedToy(
        name="four features of outputs that saturate",
        model=Saturating(hidden.T @ (strengths[:, None] * markers), read).eval(),
        inputs=sizes @ markers,
        planted=LowRank({_WEIGHT: (hidden[:, :, None], markers[:, :, None])}),
        strengths=strengths,
        markers=markers,
    )
