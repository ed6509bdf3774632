"""What a fit finds, as every analysis asks it; and the maps from gradients to features and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.fit.encoder import LINEAR, Encoder
from param_features.fit.formats.low_rank import LowRank
from param_features.fit.reading import Route, activations
from param_features.fit.reconstruction import reconstruction_error, square_errors
from param_features.gradients import GradientEngine, SampleGradients
from param_features.problem import Divergence, ModelInputs, Question

MOST_OVERLAPS = 2**26
"""How many overlaps of samples with features exist at a time: 256 MiB in float32."""


def most_samples(n_features: int) -> int:
    """How many samples are ranked and measured together: as many as have `MOST_OVERLAPS` overlaps with the features."""
    return MOST_OVERLAPS // n_features


@dataclass(frozen=True, eq=False)
class Readings:
    """Activations and codes of samples, as a dictionary reads them.

    Attributes:
        activations: V_in ∇, signed, in divergence units per unit step; of components importances, 0 to 1. 0 where there is
            no sample.
        overlaps: ⟨∇, v⟩ with the directions that the encoder reads: the codes are made from these. Of components inner
            activations Vᵀx.
        codes: The few coordinates that rebuild each gradient, zero for features that are not kept; of components
            importances.
        is_real: True for samples, False at padding and other positions that are none.
    """

    activations: Float[Tensor, "*sample feature"]
    overlaps: Float[Tensor, "*sample feature"]
    codes: Float[Tensor, "*sample feature"]
    is_real: Bool[Tensor, "*sample"]

    def real(self) -> "Readings":
        """What was read from the real samples alone, one row each."""
        is_real = self.is_real
        return Readings(self.activations[is_real], self.overlaps[is_real], self.codes[is_real], is_real[is_real])


@dataclass(frozen=True, eq=False)
class Part:
    """One rank-1 part U ⊗ V of a matrix.

    Attributes:
        site: The matrix's name.
        number: Which of the parts of that matrix.
        U: What it writes.
        V: What it reads.
    """

    site: str
    number: int
    U: Float[Tensor, " d_out"]
    V: Float[Tensor, " d_in"]


class Dictionary(ABC):
    """What a fit finds, as analyses ask it: directions in the weights, and how inputs read them.

    Attributes:
        v_out: Unit-norm directions: what a step of the weights goes along.
        v_in: Maps gradients to what a step along each feature does to the divergence.
        threshold: |code| from which a feature is kept.
        kind: What its parts are called: `"features"`, directions that are read from gradients, or `"components"`, which sum
            to the weights.
    """

    v_out: LowRank
    v_in: LowRank
    threshold: float
    kind: ClassVar[Literal["features", "components"]]

    @property
    @abstractmethod
    def n_features(self) -> int:
        """How many there are."""

    @abstractmethod
    def unit(self, divergence: Divergence) -> str:
        """What activations are measured in, in words."""

    def measured(self, divergence: Divergence) -> str:
        """What an activation is, with its unit, in words."""
        return f"activation in {self.unit(divergence)}"

    @abstractmethod
    def read(self, engine: GradientEngine, question: Question, inputs: ModelInputs) -> Readings:
        """Activations and codes of every sample, in one pass."""

    @abstractmethod
    def activations(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs, *, route: Route = "auto"
    ) -> Float[Tensor, "*sample feature"]:
        """Activations of every sample, 0 where there is none; on the CPU."""

    @abstractmethod
    def sample_codes(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs
    ) -> Float[Tensor, "*sample feature"]:
        """Codes of every sample."""

    @abstractmethod
    def activation_parts(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs
    ) -> Float[Tensor, "*sample param feature"]:
        """What each parameter adds to each activation; the parts sum to the activation."""

    def strengths(self, readings: Readings) -> Float[Tensor, "*sample feature"] | None:
        """By what samples are ranked for each feature, at least 0; None for its share of a sample's activations."""
        return None

    @property
    def sizes(self) -> Float[Tensor, " feature"] | None:
        """How far the weights lie along each direction by construction; None where they hold what a projection says."""
        return None

    def with_random(self, generator: torch.Generator) -> "Dictionary":
        """The same with random parts of the same sizes, where there are sizes."""
        return self

    def part_of(self, feature: int) -> "Part | None":
        """The one matrix that a feature lies in, and what it writes and reads there; None where it may lie in several."""
        return None

    @abstractmethod
    def placed(self, names: Mapping[str, str], devices: Mapping[str, torch.device]) -> "Dictionary":
        """The same for parameters of other names, each parameter's tensors on its device.

        Args:
            names: The new names by the old ones.
            devices: By new name.
        """

    @abstractmethod
    def of_gradients(self, what: str, instead: str) -> "GradientDictionary":
        """The same, for what only features that are read from gradients have.

        Args:
            what: What asks, with its verb: `"errors_by_l0() counts"`.
            instead: What to do with components, a sentence.

        Raises:
            SettingError: These are no such features.
        """


@dataclass(frozen=True, eq=False)
class GradientDictionary(Dictionary):
    """A set of directions, and how gradients are read and rebuilt by them: what L3D and the Hessian method find.

    Attributes:
        v_in: Maps gradients to activations.
        v_out: Unit-norm directions; `v_in` itself in a tied fit.
        threshold: |coordinate| from which a feature is kept.
        encoder: How codes follow from overlaps.
    """

    v_in: LowRank
    v_out: LowRank
    threshold: float
    encoder: Encoder = LINEAR
    kind = "features"

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.v_out.n_features

    @property
    def rank(self) -> int:
        """The largest rank of a feature's direction in any parameter."""
        return max(left.shape[2] for left, _ in self.v_out.factors.values())

    @property
    def is_tied(self) -> bool:
        """Whether activations are overlaps with the directions themselves."""
        return self.v_in is self.v_out

    @property
    def code_directions(self) -> LowRank:
        """The directions whose overlaps with a gradient its code is made from."""
        return self.encoder.reads(self.v_in, self.v_out)

    def codes(self, overlaps: Float[Tensor, "*sample feature"]) -> Float[Tensor, "*sample feature"]:
        """The coordinates that the stored threshold keeps, zero for the others.

        Args:
            overlaps: Of the gradients with `code_directions`.
        """
        return self.encoder.codes(overlaps, self.v_out.gram().to(overlaps.device), self.threshold)

    def unit(self, divergence: Divergence) -> str:
        """Divergence units per unit step."""
        return f"{divergence.unit} per unit step"

    def activations(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs, *, route: Route = "auto"
    ) -> Float[Tensor, "*sample feature"]:
        """V_in ∇; see `param_features.fit.activations`."""
        return activations(engine, self.v_in, question, inputs, route=route)

    def sample_codes(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs
    ) -> Float[Tensor, "*sample feature"]:
        """The coordinates that rebuild each sample's gradient. Cost: that of `activations`."""
        return self.codes(activations(engine, self.code_directions, question, inputs))

    def activation_parts(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs
    ) -> Float[Tensor, "*sample param feature"]:
        """V_in,k · ∇_W D with V_in restricted to one parameter after another. Cost: `activations` for each parameter."""
        only = [activations(engine, _only(self.v_in, name), question, inputs) for name in self.v_in.factors]
        return torch.stack(only, -2)

    def of_gradients(self, what: str, instead: str) -> "GradientDictionary":
        """Itself."""
        return self

    def read(self, engine: GradientEngine, question: Question, inputs: ModelInputs, *, route: Route = "auto") -> Readings:
        """Read activations and codes of every sample in one pass. Cost: that of `activations`.

        Errors are those of `activations`.
        """
        directions = self.code_directions
        if directions is self.v_in:
            acts = overlaps = activations(engine, self.v_in, question, inputs, route=route)
        else:
            joined = activations(engine, self.v_in.joined(directions), question, inputs, route=route)
            acts, overlaps = joined.chunk(2, dim=-1)
        is_real = torch.ones(acts.shape[:-1], dtype=torch.bool)
        if engine.per_position and inputs.sample_mask is not None:
            is_real = inputs.sample_mask.cpu()
        return Readings(acts, overlaps, self.codes(overlaps), is_real)

    @torch.no_grad()
    def error(self, samples: SampleGradients, l0: float) -> float:
        """Reconstruction error with l0 coordinates per sample kept on average over all of the samples.

        Of many samples as many as have 2²⁶ overlaps, spread evenly: 67,000 with 1,000 features.
        """
        return reconstruction_error(*self.square_errors(samples, l0))

    @torch.no_grad()
    def square_errors(
        self, samples: SampleGradients, l0: float
    ) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]:
        """Each sample's ‖∇ − reconstruction‖² and ‖∇‖², of the samples that `error` takes."""
        samples = samples.spread(most_samples(self.n_features))
        overlaps, square_norm, gram = overlaps_of(self.v_out, samples), samples.square_norm(), self.v_out.gram()
        directions = self.code_directions
        code_overlaps = overlaps if directions is self.v_out else overlaps_of(directions, samples)
        coords, _ = self.encoder.kept(code_overlaps, gram, l0)
        return square_errors(coords, overlaps, gram, square_norm), square_norm

    def placed(self, names: Mapping[str, str], devices: Mapping[str, torch.device]) -> "GradientDictionary":
        """See `Dictionary`; V_in stays V_out where the two are one."""

        def moved(directions: LowRank) -> LowRank:
            factors = directions.renamed(names).factors
            return LowRank(
                {name: (left.to(devices[name]), right.to(devices[name])) for name, (left, right) in factors.items()}
            )

        v_out = moved(self.v_out)
        return replace(self, v_in=v_out if self.is_tied else moved(self.v_in), v_out=v_out)


def overlaps_of(directions: LowRank, samples: SampleGradients) -> Float[Tensor, "sample direction"]:
    """⟨∇, v⟩ of every sample, a chunk at a time."""
    return torch.cat([directions.overlaps(chunk) for chunk in samples.chunks()])


def _only(directions: LowRank, kept: str) -> LowRank:
    """The same directions, zero in every parameter but one."""
    return LowRank(
        {
            name: (left if name == kept else torch.zeros_like(left), right)
            for name, (left, right) in directions.factors.items()
        }
    )
