"""The metrics of a fit by name, never without their controls."""

import re
from collections.abc import Iterator, Mapping

from param_features.fitted.standing import Standing, lower

_MEANINGS = {
    "reconstruction_error": "held out; 0 is perfect, 1 predicts nothing",
    "training_error": "the same on training samples",
    "training_lost": "share of the training gradients that the store's compression lost: beyond training_error's reach",
    "l0": "features kept per sample, here and in the controls",
    "l0_at_threshold": "features kept by the stored threshold",
    "density": "share of held-out samples that keep a feature, median over features",
    "dead": "features that no held-out sample keeps",
    "control_pca": "principal directions of the gradients",
    "control_random": "random directions of the same rank",
    "control_svd_w": "singular directions of W",
    "off_target": "effect on the background over that on the target, of the target's features",
    "off_target_alone": "the same of a fit without background",
    "off_target_random": "the same of random directions",
    "background_error": "reconstruction error on held-out samples of the background",
    "background_alone": "the same of a fit without background",
    "background_random": "the same of random directions",
    "error_alone": "reconstruction error on the target of a fit without background",
}

_OF_COMPONENTS = {
    "unmasked": "D with all components on and Δ off",
    "stochastic": "D with every mask drawn between importance and 1",
    "importance_as_mask": "D with importances as masks, Δ off",
    "rounded": "D with components of importance above 0 on, all else off",
    "all_zero": "D with nothing of the matrices left",
    "l0": "components of importance above 0 per position, here and in the controls",
    "l0_above_0.1": "the same above 0.1",
    "alive": "components whose mean importance is above 1e-6",
    "faithfulness": "‖Δ‖ / ‖W‖",
    "loss_clean": "cross-entropy of the next token, nats",
    "loss_unrecovered": "what rounded masks cost of it, as a share of what all-zero masks cost",
    "control_svd_w": "singular directions of W that contribute most",
    "control_neurons": "rows or columns of W that contribute most",
    "control_rotated": "needed components, rotated at random among each other",
    "control_shuffled": "the components with another position's importances",
}


ALWAYS = (
    "reconstruction_error", "training_error", "l0", "l0_at_threshold", "density", "dead", "n_features", "n_samples",
    "n_held_out", "control_pca", "control_random", "control_svd_w",
)  # fmt: skip
"""What `held_out_metrics` measures of every fit."""

ALWAYS_OF_COMPONENTS = (
    "unmasked", "stochastic", "importance_as_mask", "rounded", "all_zero", "l0", "l0_above_0.1", "alive", "faithfulness",
    "control_svd_w", "control_neurons", "control_rotated", "control_shuffled", "n_features", "n_held_out",
)  # fmt: skip
"""What `component_metrics` measures of all components."""

_CONTROLS_LOSS = re.compile("loss_.*control_")

_RESOLUTION = 1e-4
"""Of what switching the matrices off costs: smaller differences of D under masks tell nothing."""


def is_counted(name: str) -> bool:
    """Whether a metric is a whole number of something."""
    return name.startswith(("n_", "alive")) or name == "dead"


def spread_name(control: str) -> str:
    """The metric that holds the standard error of the share by which the fit's error is below a control's."""
    return control.replace("control_", "spread_", 1)


class Metrics(Mapping[str, float]):
    """Numbers by name; printed as a table that says how each control compares."""

    def __init__(self, values: Mapping[str, float]) -> None:
        """Hold `values`."""
        self._values = dict(values)

    def __getitem__(self, name: str) -> float:
        """The metric of that name."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names in order."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many metrics there are."""
        return len(self._values)

    @property
    def score(self) -> str:
        """The error that verdicts compare with the controls': `rounded` of components, else `reconstruction_error`."""
        return "rounded" if "rounded" in self else "reconstruction_error"

    @property
    def standings(self) -> dict[str, Standing]:
        """How the fit's score lies beside each control's: the rule of every verdict about it."""
        return {name: standing for name in self if name.startswith("control_") and (standing := self._standing(name))}

    def _standing(self, control: str) -> Standing | None:
        """How the fit lies beside a control: its score, or what the control's name says."""
        compared = control.partition("control_")[0].removesuffix("_") or self.score
        value, rival = self.get(compared), self[control]
        if value is None or not isinstance(rival, int | float):
            return None
        floor = max(1e-12, _RESOLUTION * self.get("all_zero", 0.0))
        return lower(value, rival, spread=self.get(spread_name(control), 0.0), floor=floor)

    @property
    def matched_by(self) -> list[str]:
        """Controls that the fit's score is not below by 5 % and two standard errors: beside these it has shown nothing."""
        return [name for name, standing in self.standings.items() if not standing.is_better]

    def __repr__(self) -> str:
        """Print each metric with what it means, and each control with how the fit compares."""
        width = max([21, *map(len, self.listed)])
        return "\n".join(f"{name:<{width}} {self._number(name):>7}  {self.remark(name)}".rstrip() for name in self.listed)

    @property
    def listed(self) -> list[str]:
        """The names that tables list: a control's spread stands in its own line, single matrices' numbers in none."""
        return [name for name in self if "spread_" not in name and "/" not in name and not _CONTROLS_LOSS.match(name)]

    def _number(self, name: str) -> str:
        value = self[name]
        if is_counted(name):
            return str(int(value))
        is_small = self.score == "rounded" and 0 < abs(value) < 0.001
        return f"{value:.1e}" if is_small else f"{value:.3f}"

    def remark(self, name: str) -> str:
        """What a metric means; of a control, how the fit compares with it."""
        meaning = self._meaning(name)
        if "control_" not in name:
            return meaning
        standing = self._standing(name)
        if standing is None or (not self[name] and self.score == "reconstruction_error"):
            return meaning
        way = f"{standing.share} {'higher' if standing.gain < 0 else 'lower'}"
        if standing.side == "better":
            return f"{meaning}: the fit is {way}"
        verb = "IS BETTER THAN" if standing.side == "worse" else "MATCHES"
        return f"{meaning}: {verb} THE FIT, which has shown nothing beyond it ({way})"

    def _meaning(self, name: str) -> str:
        if self.score == "reconstruction_error":
            return _MEANINGS.get(name, "")
        if name.startswith("adversarial_"):
            steps, _, control = name.removeprefix("adversarial_").partition("_")
            found = f"largest D that {steps} steps of an adversary find"
            return f"{found}, of {_OF_COMPONENTS.get(control, control)}" if control else found
        meaning = _OF_COMPONENTS.get(name.removeprefix("stochastic_"), "")
        return f"{meaning}, under stochastic masks" if name.startswith("stochastic_control_") else meaning
