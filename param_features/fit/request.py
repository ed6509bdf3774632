"""What is asked of a fit: which directions it is to find, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from param_features.fit.encoder import Encoder
from param_features.fit.formats.low_rank import Directions, LowRank
from param_features.fit.pursuit import rounds_for
from param_features.fit.settings import FitSettings, HessianSettings
from param_features.params import Modes

Method = TypeVar("Method", FitSettings, HessianSettings)


@dataclass(frozen=True)
class FitRequest(Generic[Method]):
    """The directions that a fit is to find, and how it is to learn them.

    Attributes:
        n_features: Number of directions.
        rank: Of each direction and parameter, as the format counts it.
        l0: Mean number of features kept per sample.
        settings: How the directions are learned.
        format: How directions are held while they are learned; a fit returns them in the matrix format.
        modes: Axes of each parameter, for the formats that heed them; those of its matrix by default.
    """

    n_features: int
    rank: int
    l0: float
    settings: Method
    format: type[Directions] = LowRank
    modes: Mapping[str, Modes] | None = None

    @property
    def encoder(self) -> Encoder:
        """How codes follow from overlaps: by pursuit, unless the settings select otherwise."""
        is_pursued = getattr(self.settings, "selection", "pursuit") == "pursuit"
        return Encoder(rounds_for(self.l0, self.n_features) if is_pursued else None)
