"""Sparse autoencoders and transcoders of any library: what they read, their features, and what they make of activations."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import AdapterError, FeatureMismatchError

_CHUNK_NUMBERS = 2**24


class SaeReading(NamedTuple):
    """What an SAE makes of activations, with gradients to these.

    Attributes:
        codes: Activations of all features.
        rebuilt: What the features write, and the decoder's bias.
        skipped: What a transcoder's skip connection writes beside them; None without one.
    """

    codes: Float[Tensor, "... feature"]
    rebuilt: Float[Tensor, "... d_out"]
    skipped: Float[Tensor, "... d_out"] | None


@dataclass(frozen=True)
class SparseAutoencoder(ABC):
    """An SAE or a transcoder that reads samples [sample, d_in], whatever its library and architecture.

    An SAE rebuilds what it reads. A transcoder reads at one place and writes at another what the model's layers between
    them would have written.

    Attributes:
        sae: The library's object.
    """

    sae: Any

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Number of features."""

    @property
    @abstractmethod
    def d_in(self) -> int:
        """How many numbers of each sample it reads."""

    @property
    def d_out(self) -> int:
        """How many numbers of each sample it writes."""
        return self.d_in

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes at another place than it reads."""
        return False

    @property
    @abstractmethod
    def hook_name(self) -> str | None:
        """Where in the model it reads; None where its record does not say."""

    @property
    def hook_name_out(self) -> str | None:
        """Where in the model it writes; None where its record does not say."""
        return self.hook_name

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The library's name of its kind."""

    @property
    def description(self) -> str:
        """Its architecture and places, for messages."""
        place = self.hook_name or "an unnamed place"
        if self.is_transcoder:
            return f"{self.architecture} from {place} to {self.hook_name_out or 'an unnamed place'}"
        return f"{self.architecture} SAE at {place}"

    def url(self, feature: int) -> str | None:
        """The feature's page on Neuronpedia; None where none is known."""
        return None

    @property
    @abstractmethod
    def decoder(self) -> Float[Tensor, "feature d_out"]:
        """What one unit of each feature adds to what is written."""

    @property
    @abstractmethod
    def bias(self) -> Float[Tensor, " d_out"]:
        """What is written where no feature is active."""

    @abstractmethod
    def codes(self, acts: Float[Tensor, "sample d_in"]) -> Float[Tensor, "sample feature"]:
        """The library's own activations of all features; dense, with gradients to `acts`."""

    @abstractmethod
    def decoded(self, codes: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample d_out"]:
        """What the library's own decoder makes of codes that `codes` gave last."""

    def skipped(self, acts: Float[Tensor, "*sample d_in"]) -> Float[Tensor, "*sample d_out"] | None:
        """What a skip connection writes beside the features; None without one."""
        return None

    def encode(self, acts: Float[Tensor, "sample ..."]) -> Iterator[Float[Tensor, "sample feature"]]:
        """Activations of all features, in chunks of samples that stay below 64 MiB; on the device of `acts`.

        Args:
            acts: The model's activations; all axes but the first together are what the SAE reads.

        Raises:
            FeatureMismatchError: The SAE reads samples of another length.
        """
        for chunk in self._chunks(acts):
            with torch.no_grad():
                codes = self.codes(chunk)
            yield codes.to(acts.device, torch.float64 if codes.dtype == torch.float64 else torch.float32)

    @torch.no_grad()
    def reconstruct(self, acts: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample ..."]:
        """What the SAE makes of the activations, in their shape; of a transcoder [sample, d_out].

        Raises:
            FeatureMismatchError: The SAE reads samples of another length.
        """
        rebuilt = torch.cat([self._rebuilt(chunk) for chunk in self._chunks(acts)])
        return (rebuilt if self.is_transcoder else rebuilt.reshape(acts.shape)).to(acts)

    def read(self, acts: Float[Tensor, "sample ... d"]) -> SaeReading:
        """Activations of all features and what the SAE makes of them, with gradients to `acts`; heads are joined.

        Raises:
            FeatureMismatchError: The SAE reads samples of another length.
            AdapterError: What it makes of them is not codes · decoder + bias, as where it rescales its input.
        """
        flat = acts if acts.shape[-1] == self.d_in else acts.flatten(-2)
        self.check_read(flat.shape[-1:])
        codes = self.codes(flat.flatten(0, -2))
        rebuilt = codes @ self.decoder.to(codes) + self.bias.to(codes)
        with torch.no_grad():
            decoded = self.decoded(codes.detach())
        if not torch.allclose(decoded, rebuilt.detach().to(decoded), rtol=1e-3, atol=1e-4 * float(decoded.abs().max())):
            raise AdapterError(
                f"The {self.description} does not rebuild activations as codes · W_dec + b_dec (it rescales them, say), so "
                "its features are no parts that add up. Fold the scaling into its weights, or leave it out."
            )
        shape = flat.shape[:-1]
        return SaeReading(codes.unflatten(0, shape), rebuilt.unflatten(0, shape), self.skipped(flat))

    def check_read(self, shape: torch.Size) -> None:
        """Refuse samples of another length than it reads.

        Raises:
            FeatureMismatchError: The shape of a sample's activation holds more or fewer numbers.
        """
        if prod(shape) != self.d_in:
            raise FeatureMismatchError(
                f"The {self.description} reads {self.d_in} numbers, and a sample's activation has shape {tuple(shape)}. Say "
                "hook_name= where the SAE was trained, of this model."
            )

    def check_written(self, samples: torch.Size, written: torch.Size) -> None:
        """Refuse a place that does not have what is written, for each sample that is read.

        Args:
            samples: Shape of what is read, less its numbers.
            written: Shape of the activations where it writes.

        Raises:
            FeatureMismatchError: It has other samples, or other numbers of each.
        """
        n = len(samples)
        if written[:n] != samples or prod(written[n:]) != self.d_out:
            raise FeatureMismatchError(
                f"The {self.description} reads samples {tuple(samples)} and writes {self.d_out} numbers of each, and the "
                f"activations there have shape {tuple(written)}. Say where this model has what it reads, and what it writes."
            )

    def _rebuilt(self, acts: Float[Tensor, "sample d_in"]) -> Float[Tensor, "sample d_out"]:
        rebuilt, skipped = self.decoded(self.codes(acts)), self.skipped(acts)
        return rebuilt if skipped is None else rebuilt + skipped

    def _chunks(self, acts: Tensor) -> tuple[Tensor, ...]:
        self.check_read(acts.shape[1:])
        return acts.flatten(1).to(self.decoder.device).split(max(1, _CHUNK_NUMBERS // self.n_features))
