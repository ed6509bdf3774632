"""Settings of an audit."""

from dataclasses import dataclass

from param_features.errors import SettingError
from param_features.machine import public


@public
@dataclass(frozen=True)
class AuditSettings:
    """How much an audit looks at, and from when a row passes.

    Attributes:
        n_features: How many features are stepped along, spread evenly over their densities.
        n_rows: Of the inputs, the first so many are used.
        n_top: How many samples are a feature's top inputs.
        steps: ‖δ v‖ as shares of ‖W‖, rising; each is taken with both signs.
        set_size: Features in a set whose joint effect is compared with the sum of single ones.
        n_sets: Sets of each kind.
        n_deleted: Features that are taken out of the weights together.
        n_deletions: Rows of inputs on which that is done, each with its own unused features.
        norm: The adversary's bound on ‖Σ δ v‖, as a share of ‖W‖.
        n_starts: The adversary's random starts.
        n_climbs: Its gradient steps from each.
        seed: Of every random choice.
        least_auroc: Specificity passes from this area under ROC.
        least_ratio: And from this ratio of movement.
        margin: By how much areas and shares must exceed those of the controls.
        factor: How many times over a ratio must.
        least_sign: Share of top inputs moved in the direction that the activation foretells.
        least_correlation: Up to where the first-order prediction counts as holding.
        most_gap: Additivity passes up to this relative gap.
        most_deletion: Deletion passes up to this share of what deleting used features costs.
        most_adversary: And the adversary along unused features up to this share of what it reaches along used ones.
        least_agreement: Stability passes from this mean |cosine|.
    """

    n_features: int = 24
    n_rows: int = 48
    n_top: int = 20
    steps: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    set_size: int = 4
    n_sets: int = 16
    n_deleted: int = 8
    n_deletions: int = 16
    norm: float = 0.1
    n_starts: int = 4
    n_climbs: int = 12
    seed: int = 0
    least_auroc: float = 0.8
    least_ratio: float = 3.0
    margin: float = 0.1
    factor: float = 2.0
    least_sign: float = 0.8
    least_correlation: float = 0.9
    most_gap: float = 0.25
    most_deletion: float = 0.5
    most_adversary: float = 0.5
    least_agreement: float = 0.75

    def __post_init__(self) -> None:
        """Refuse settings with which no audit can be run.

        Raises:
            SettingError: Names the setting.
        """
        counts = ("n_features", "n_rows", "n_top", "set_size", "n_sets", "n_deleted", "n_deletions", "n_starts", "n_climbs")
        for name in counts:
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.set_size < 2:
            raise SettingError(f"set_size={self.set_size} must be at least 2: one feature has nothing to add up.")
        if not self.steps or min(self.steps) <= 0 or list(self.steps) != sorted(set(self.steps)):
            raise SettingError(f"steps={self.steps} must be positive and rising, such as (0.003, 0.01, 0.03).")
        if not self.norm > 0:
            raise SettingError(f"norm={self.norm} must be positive: a share of ‖W‖, such as 0.1.")
