"""The records of parameters in saved files."""

import math
from dataclasses import dataclass

from param_features.files import MOST_COUNT, Part
from param_features.params.folds import Modes, is_fold, modes_of
from param_features.params.views import ParamView

_MOST_PLACES = 10_000


@dataclass(frozen=True)
class ParamRecord:
    """A decomposed parameter as saved: enough to read directions without the model.

    Attributes:
        shape: Shape of the tensor.
        fold: einops pattern from the tensor to [d_out, d_in].
        fingerprint: SHA-256 of its dtype and matrix [d_out, d_in].
        n_places: How many modules hold it: 2 where an embedding is tied with the unembedding.
    """

    shape: tuple[int, ...]
    fold: str
    fingerprint: str
    n_places: int = 1

    @classmethod
    def of(cls, view: ParamView, fingerprint: str) -> "ParamRecord":
        """Make the record of a model's parameter."""
        return cls(tuple(view.shape), view.fold, fingerprint, len(view.places))

    @classmethod
    def read(cls, part: Part) -> "ParamRecord":
        """Read a record from a file.

        Raises:
            StoreError: It says anything else than a record does, or what no parameter can be.
        """
        part.check_fields(("shape", "fold", "fingerprint", "n_places"))
        shape, fold = part.counts("shape", least=1), part.text("fold")
        if math.prod(shape) > MOST_COUNT:
            part.refuse("shape", f"lengths whose product is at most {MOST_COUNT}")
        if not is_fold(fold, len(shape)):
            part.refuse("fold", f"a pattern from the {len(shape)} axes of shape to two, such as 'head i o -> (head o) i'")
        return cls(shape, fold, part.sha256("fingerprint"), part.count("n_places", least=1, most=_MOST_PLACES))

    @property
    def modes(self) -> Modes:
        """The axes of the tensor that make up d_out and d_in."""
        return modes_of(self.fold, self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix view."""
        return self.modes.matrix_shape
