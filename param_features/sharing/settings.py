"""Settings of the card."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from param_features.errors import SettingError
from param_features.files.hub import is_hub_name
from param_features.machine import public

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@public
@dataclass(frozen=True)
class CardSettings:
    """What the card says that the features do not know, and how much it shows.

    Attributes:
        base_model: Hub name of the decomposed model; found by itself where a Hugging Face model says its own.
        datasets: Hub names of the data.
        data: The data in words.
        license: As the hub abbreviates it, such as "mit"; the card names none by default.
        tags: Further tags, beside the usual ones.
        n_features: How many features have their top examples in the card, the first ones.
        n_examples: How many examples of each.
        is_illustrated: Whether `features.png` goes with it, where matplotlib is installed.
    """

    base_model: str | None = None
    datasets: Sequence[str] = ()
    data: str | None = None
    license: str | None = None
    tags: Sequence[str] = ()
    n_features: int = 10
    n_examples: int = 3
    is_illustrated: bool = True

    def __post_init__(self) -> None:
        """Refuse what the hub would refuse, and what cannot be shown."""
        for field in ("datasets", "tags"):
            if isinstance(getattr(self, field), str):
                raise SettingError(f"{field}={getattr(self, field)!r} is one string. Give a list of them.")
        names = [("base_model", self.base_model), *(("datasets", name) for name in self.datasets)]
        for field, name in names:
            if name is not None and not (isinstance(name, str) and is_hub_name(name)):
                raise SettingError(f"{field} has {name!r}, which is no name on the hub. Give 'owner/name', or leave it out.")
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise SettingError(
                f"license={self.license!r} is no abbreviation of a license. Give one of those that the hub lists, such as "
                "'mit', 'apache-2.0' or 'other'."
            )
        if self.n_features < 0 or self.n_examples < 1:
            raise SettingError(
                f"n_features={self.n_features} and n_examples={self.n_examples}. Give 0 or more and 1 or more."
            )


USUAL = CardSettings()
"""The settings of a card for which the user gives none."""
