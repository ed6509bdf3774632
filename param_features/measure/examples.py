"""The samples on which a feature is most active."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.machine import typed

Ranking = Literal["share", "activation"]


@dataclass(frozen=True, repr=False)
class Example:
    """One sample, with its surroundings.

    Attributes:
        activation: Signed, in divergence units per unit step; of components an importance.
        row: Which sequence or input.
        position: Which position of it; 0 when a sample is an input.
        tokens: The sequence as strings; empty where no tokens stand at the samples' positions.
        activations: The feature's activation at every position, aligned with `tokens`; one where a sample is an input.
        next_token: The token that follows, whose prediction the feature changes; None at the end.
    """

    activation: float
    row: int
    position: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    next_token: str | None

    @property
    def place(self) -> str:
        """Which sample it is, in words."""
        return f"input {self.row}" + (f", position {self.position}" if len(self.activations) > 1 else "")

    def __str__(self) -> str:
        """A window of text with the activating token in «guillemets» and the token that really followed after an arrow."""
        if not self.tokens:
            return f"{self.activation:+.4f}  {self.place}"
        before = "".join(self.tokens[max(0, self.position - 16) : self.position])
        window = f"{before}«{self.tokens[self.position]}»".replace("\n", "⏎")
        return f"{self.activation:+.4f}  {window} → {self.next_token!r}"

    def __repr__(self) -> str:
        """Show the example as text, so that a list of examples in a notebook can be read."""
        return str(self)


@typed
def top_examples(
    acts: Float[Tensor, "batch pos feature"],
    feature: int,
    tokens: list[list[int]] | None,
    to_strings: Callable[[Sequence[int]], list[str]],
    *,
    n: int,
    by: str = "share",
    strengths: Float[Tensor, "batch pos feature"] | None = None,
) -> list[Example]:
    """The n samples that a feature matters most for, one from each row, first the strongest; equal texts count once.

    Samples whose gradient is large move every feature, so ranking by |activation| fills every list with the same hard
    samples. `"share"` ranks by |c_k| / (‖c‖ + its mean), the part of the sample's own activations that is this feature's;
    the mean keeps samples out whose gradient is nearly zero.

    Args:
        acts: Activations of all features; pos is 1 when a sample is an input.
        feature: Which one.
        tokens: Each row's ids without padding, None without tokens.
        to_strings: The adapter's.
        n: How many.
        by: `"share"` or `"activation"`.
        strengths: Instead, by what samples are ranked.

    Returns:
        At most n examples; fewer where fewer texts differ.

    Raises:
        SettingError: `by` is neither.
    """
    if by not in ("share", "activation"):
        raise SettingError(f"by={by!r} is unknown. Accepted: 'share', 'activation'.")
    if strengths is None:
        strengths = acts.abs() if by == "activation" else shares(acts)
    strength = strengths[..., feature]
    best, position = strength.max(1)
    places = [(row, int(position[row])) for row in best.argsort(descending=True, stable=True).tolist()]
    chosen = places[:n] if tokens is None else _distinct(places, tokens, n)
    return [_example(row, pos, acts[..., feature], tokens, to_strings) for row, pos in chosen]


def shares(acts: Float[Tensor, "*sample feature"]) -> Float[Tensor, "*sample feature"]:
    """|c_k| / (‖c‖ + its mean over samples), the part of each sample's activations that is each feature's; 0 to 1."""
    norm = acts.norm(dim=-1, keepdim=True)
    return acts.abs() / (norm + norm.mean()).clamp(min=1e-30)


def _distinct(places: list[tuple[int, int]], tokens: list[list[int]], n: int) -> list[tuple[int, int]]:
    """The first n places whose text up to and including the place differs from all before."""
    distinct: dict[tuple[int, ...], tuple[int, int]] = {}
    for row, position in places:
        distinct.setdefault(tuple(tokens[row][: position + 1]), (row, position))
        if len(distinct) == n:
            break
    return list(distinct.values())


def _example(row: int, position: int, acts: Tensor, tokens: list[list[int]] | None, to_strings: Callable) -> Example:
    strings = tuple(to_strings(tokens[row])) if tokens is not None else ()
    following = strings[position + 1] if position + 1 < len(strings) else None
    values = acts[row, : len(strings)] if strings else acts[row]
    return Example(float(acts[row, position]), row, position, strings, tuple(values.tolist()), following)
