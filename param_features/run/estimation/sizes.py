"""What each stage of a decomposition holds in memory, from shapes alone; nothing is run."""

from dataclasses import dataclass, replace
from functools import cached_property

from param_features.fit import FitRequest, FitSettings, fit_bytes, ranking_bytes, start_bytes
from param_features.fit.formats import direction_bytes, n_numbers, number_bytes
from param_features.gradients import Gradients, bytes_per_sample, compact
from param_features.measure import control_bytes


@dataclass(frozen=True)
class Sizes:
    """How large a decomposition is.

    Attributes:
        like: Gradients of a few samples, in the form in which they are stored.
        n_train: Samples for fitting.
        n_held_out: Samples for measuring.
        n_features: Directions.
        rank: Factors per direction and parameter.
        l0: Mean number of features kept per sample.
        fit: Settings of the fit.
        batch_bytes: What harvesting a batch takes beside the gradients kept; 0 where that is not known.
        is_stored: Whether the gradients lie on disk.
    """

    like: Gradients
    n_train: int
    n_held_out: int
    n_features: int
    rank: int
    l0: float
    fit: FitSettings
    batch_bytes: int = 0
    is_stored: bool = False
    settings_name = "FitSettings"

    @property
    def disk_meaning(self) -> str:
        """What would take so much of a disk."""
        return f"of a store of these {self.n_samples:,} gradients"

    @classmethod
    def of(
        cls,
        gradients: Gradients,
        n_train: int,
        n_held_out: int,
        request: FitRequest[FitSettings],
        *,
        is_stored: bool = False,
    ) -> "Sizes":
        """Derive the sizes from gradients of a few samples as they are taken, and what is asked of the fit."""
        like = {name: compact(gradient) for name, gradient in gradients.items()}
        n_features, rank, l0 = request.n_features, request.rank, request.l0
        return cls(like, n_train, n_held_out, n_features, rank, l0, request.settings, is_stored=is_stored)

    @property
    def n_samples(self) -> int:
        """Training samples and those held out together."""
        return self.n_train + self.n_held_out

    @property
    def sample_bytes(self) -> int:
        """Bytes that a stored sample takes."""
        return bytes_per_sample(self.like)

    @property
    def gradient_bytes(self) -> int:
        """Bytes that all gradients take in memory."""
        return self.n_samples * self.sample_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of a store of these gradients; each sample's row and position beside it."""
        return self.gradient_bytes + 16 * self.n_samples

    @cached_property
    def stages(self) -> dict[str, int]:
        """Bytes at the peak of each stage: the gradients, the directions, and what the stage makes."""
        stored, request = 0 if self.is_stored else self.gradient_bytes, self.request
        return {
            "harvest": stored + self.batch_bytes,
            "start": stored + start_bytes(self.like, request),
            "fit": stored + fit_bytes(self.like, request, self.n_train),
            "ranking": stored + ranking_bytes(self.like, request, self.n_train),
            "controls": stored + self._control_bytes,
        }

    @property
    def peak_bytes(self) -> int:
        """Bytes at the peak of the largest stage."""
        return max(self.stages.values())

    @property
    def largest(self) -> str:
        """The stage that takes the most memory."""
        return max(self.stages, key=self.stages.__getitem__)

    def within(self, n_bytes: int) -> dict[str, int]:
        """For each setting the largest value with which the run takes so many bytes, all others as they are.

        Settings that do not help by themselves are left out; `"store"` is there where gradients on disk would, with their
        size. Nothing is there where the run fits as it is.
        """
        if self.peak_bytes <= n_bytes:
            return {}
        share = self.n_train / self.n_samples
        tries = {
            "n_samples": (self.n_samples, lambda n: self._with_samples(n, share)),
            "n_features": (self.n_features, self._with_features),
            "batch_size": (self.fit.batch_size, lambda n: replace(self, fit=replace(self.fit, batch_size=n))),
        }
        largest_values = {
            name: _largest(most, lambda n, to=to: to(n).peak_bytes <= n_bytes) for name, (most, to) in tries.items()
        }
        on_disk = replace(self, is_stored=True).peak_bytes <= n_bytes
        return {name: n for name, n in largest_values.items() if n} | ({"store": self.disk_bytes} if on_disk else {})

    def _with_samples(self, n: int, share: float) -> "Sizes":
        return replace(self, n_train=round(n * share), n_held_out=n - round(n * share))

    def _with_features(self, n: int) -> "Sizes":
        return replace(self, n_features=n, l0=max(1.0, self.l0 * n / self.n_features))

    @property
    def request(self) -> FitRequest[FitSettings]:
        """What is asked of the fit, in the matrix format."""
        return FitRequest(self.n_features, self.rank, self.l0, self.fit)

    @property
    def n_params(self) -> int:
        """How many numbers the parameters hold."""
        return n_numbers(self.like)

    @property
    def _control_bytes(self) -> int:
        """The fit's directions, and finding and scoring the controls."""
        finding = control_bytes(
            {name: gradient.matrix_shape for name, gradient in self.like.items()},
            n_features=self.n_features,
            n_samples=self.n_train,
            n_held_out=self.n_held_out,
            is_pursued=self.request.encoder.n_rounds is not None,
        )
        return 4 * direction_bytes(self.like, self.n_features, self.rank) + finding * number_bytes(self.like) // 4


def _largest(most: int, fits) -> int:
    """The largest number below `most` that fits, to two figures; 0 where not even 1 does."""
    low, high = 0, most
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
