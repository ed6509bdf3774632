"""Settings of what a decomposition keeps for measuring later."""

from dataclasses import dataclass

from param_features.errors import SettingError


@dataclass(frozen=True)
class MeasureSettings:
    """What is kept for measuring later.

    Attributes:
        n_references: Outputs drawn from the data, over which activations average.
        n_examples: Held-out sequences (inputs) kept for `top_examples` and saved with the features.
    """

    n_references: int = 16
    n_examples: int = 256

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in ("n_references", "n_examples"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")
