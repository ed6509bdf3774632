"""What a decomposition will take in time, memory and disk, printed as a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from param_features.machine import public
from param_features.run.estimation.component_sizes import ComponentSizes
from param_features.run.estimation.room import advice
from param_features.run.estimation.sizes import Sizes

_GIB = 2**30


@dataclass(frozen=True, eq=False)
class Estimate:
    """Time, memory and disk of a decomposition that has not been run.

    Attributes:
        seconds: Of each stage, `setup`, `harvest`, `fit` and `measure`, on this machine as busy as it is now.
        sizes: The shapes that memory and disk follow from.
        base_bytes: What the process holds before the run, and keeps.
        touched_bytes: What libraries take once they are used.
        free_bytes: What the process may still take.
    """

    seconds: Mapping[str, float]
    sizes: Sizes | ComponentSizes
    base_bytes: int
    touched_bytes: int
    free_bytes: int

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())

    @property
    def memory(self) -> dict[str, int]:
        """Bytes at each stage's peak, above what the process holds now."""
        return {name: n + self.touched_bytes for name, n in self.sizes.stages.items()}

    @property
    def peak_bytes(self) -> int:
        """Bytes at the run's peak, above what the process holds now."""
        return max(self.memory.values())

    @property
    def total_peak_bytes(self) -> int:
        """Bytes at the run's peak in all: what `ru_maxrss` would say at its end."""
        return self.base_bytes + self.peak_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of a store of these gradients; of components, of the checkpoints that are kept."""
        return self.sizes.disk_bytes

    @property
    def n_samples(self) -> int:
        """Training samples and those held out together."""
        return self.sizes.n_samples

    @public
    def fits(self, memory_gib: float | None = None) -> dict[str, int]:
        """Settings with which the run stays within so much memory above what the process holds now; what is free by default.

        Returns:
            For each setting of those that help by themselves (`n_samples`, `n_features`, the fit's `batch_size`) its largest
            value, and the bytes on disk under `store` where keeping the gradients there helps. Empty where the run fits.
        """
        budget = self.free_bytes if memory_gib is None else int(memory_gib * _GIB)
        return self.sizes.within(budget - self.touched_bytes)

    @property
    def _advice(self) -> str:
        return advice(self.fits(), self.sizes.settings_name) or "fewer features and fewer samples"

    def __repr__(self) -> str:
        """Print the table."""
        slowest, fullest = max(self.seconds, key=self.seconds.__getitem__), self.sizes.largest
        share = self.seconds[slowest] / max(self.total_seconds, 1e-9)
        stages = "  ".join(f"{name} {_time(value)}" for name, value in self.seconds.items())
        rows = [
            ("time", _time(self.total_seconds), stages),
            (
                "memory",
                _size(self.peak_bytes),
                f"above the {_size(self.base_bytes)} held now; {_size(self.free_bytes)} free",
            ),
            ("disk", _size(self.disk_bytes), self.sizes.disk_meaning),
            ("bound by", slowest, f"{share:.0%} of the time; memory: {fullest}"),
        ]
        if self.peak_bytes > self.free_bytes:
            rows.append(("does not fit", "", f"try {self._advice}"))
        return "\n".join(f"{name:<13}{value:>10}  {remark}".rstrip() for name, value, remark in rows)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.2f} GiB" if n_bytes >= _GIB else f"{n_bytes / 2**20:.0f} MiB"
