"""The metrics of a fit by name, never without their controls."""

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


ALWAYS = (
    "reconstruction_error", "training_error", "l0", "l0_at_threshold", "density", "dead", "n_features", "n_samples",
    "n_held_out", "control_pca", "control_random", "control_svd_w",
)  # fmt: skip
"""What `held_out_metrics` measures of every fit."""


def is_counted(name: str) -> bool:
    """Whether a metric is a whole number of something."""
    return name.startswith("n_") or name == "dead"


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
    def standings(self) -> dict[str, Standing]:
        """How the fit's error lies beside each control's: the rule of every verdict about it."""
        if "reconstruction_error" not in self:
            return {}
        return {
            name: lower(self["reconstruction_error"], self[name], spread=self.get(spread_name(name), 0.0))
            for name in self
            if name.startswith("control_") and isinstance(self[name], int | float)
        }

    @property
    def matched_by(self) -> list[str]:
        """Controls that the fit's error is not below by 5 % and two standard errors: beside these it has shown nothing."""
        return [name for name, standing in self.standings.items() if not standing.is_better]

    def __repr__(self) -> str:
        """Print each metric with what it means, and each control with how the fit compares."""
        return "\n".join(f"{name:<21} {self._number(name):>7}  {self.remark(name)}".rstrip() for name in self.listed)

    @property
    def listed(self) -> list[str]:
        """The names that tables list: a control's spread stands in its own line."""
        return [name for name in self if not name.startswith("spread_")]

    def _number(self, name: str) -> str:
        value = self[name]
        return str(int(value)) if is_counted(name) else f"{value:.3f}"

    def remark(self, name: str) -> str:
        """What a metric means; of a control, how the fit compares with it."""
        meaning = _MEANINGS.get(name, "")
        if not name.startswith("control_"):
            return meaning
        standing = self.standings.get(name)
        if standing is None or not self[name]:
            return meaning
        way = f"{standing.share} {'higher' if standing.gain < 0 else 'lower'}"
        if standing.side == "better":
            return f"{meaning}: the fit is {way}"
        verb = "IS BETTER THAN" if standing.side == "worse" else "MATCHES"
        return f"{meaning}: {verb} THE FIT, which has shown nothing beyond it ({way})"
