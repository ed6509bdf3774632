"""How an attention layer makes its scores: heads, scale and rotation, read by an adapter or given by hand."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of a head's coordinates turn by an angle that grows with the position.

    Coordinates beyond the pairs are left as they are.

    Attributes:
        frequencies: Of each pair, radians per position.
        is_adjacent: Whether pairs are (0, 1), (2, 3), …, as in GPT-J; otherwise i goes with i + n_pairs, as in Llama and
            GPT-NeoX.
        gain: What the model multiplies sines and cosines by: 1, but for YaRN and LongRoPE.

    Source: Su et al., "RoFormer", arXiv 2104.09864.
    """

    frequencies: tuple[float, ...]
    is_adjacent: bool = False
    gain: float = 1.0

    @classmethod
    def of_base(cls, rotary_dim: int, base: float = 10000.0, *, is_adjacent: bool = False) -> "Rotary":
        """Frequencies that fall from 1 as base^(-2i / rotary_dim), for the first `rotary_dim` coordinates of each head.

        Raises:
            SettingError: `rotary_dim` is not a positive even number.
        """
        if rotary_dim < 2 or rotary_dim % 2:
            raise SettingError(f"rotary_dim={rotary_dim}. Pairs of coordinates turn: give an even number, d_head or less.")
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
        return cls(tuple((base**-exponents).tolist()), is_adjacent)

    def matrix(self, distance: int, d_head: int) -> Float[Tensor, "d_head d_head"]:
        """What stands between query and key in a score when the query is `distance` positions later: q · R k; float64.

        Raises:
            SettingError: The pairs do not fit into a head.
        """
        n_pairs = len(self.frequencies)
        if 2 * n_pairs > d_head:
            raise SettingError(f"{n_pairs} frequencies turn {2 * n_pairs} coordinates, and a head has {d_head}.")
        pairs = torch.arange(n_pairs)
        first, second = (2 * pairs, 2 * pairs + 1) if self.is_adjacent else (pairs, pairs + n_pairs)
        angle = distance * torch.tensor(self.frequencies, dtype=torch.float64)
        cosine, sine = self.gain**2 * angle.cos(), self.gain**2 * angle.sin()
        rotation = torch.eye(d_head, dtype=torch.float64)
        rotation[first, first], rotation[second, second] = cosine, cosine
        rotation[first, second], rotation[second, first] = sine, -sine
        return rotation


@dataclass(frozen=True)
class Attention:
    """How the scores of one attention layer arise from its query and key matrices: q · R(distance) k / scale in each head.

    Attributes:
        query: Name of the query matrix, whose outputs are the heads side by side.
        key: Name of the key matrix, likewise.
        n_heads: Query heads.
        scale: What scores are divided by, mostly √d_head.
        n_key_heads: Key heads where fewer, each shared by as many consecutive query heads; None for `n_heads`.
        rotary: How positions turn queries and keys; None where they do not.
    """

    query: str
    key: str
    n_heads: int
    scale: float
    n_key_heads: int | None = None
    rotary: Rotary | None = None

    @property
    def n_sharing(self) -> int:
        """How many query heads share a key head.

        Raises:
            SettingError: The query heads cannot be shared out evenly.
        """
        n_key_heads = self.n_key_heads or self.n_heads
        if self.n_heads < 1 or self.n_heads % n_key_heads:
            raise SettingError(
                f"n_heads={self.n_heads} and n_key_heads={n_key_heads}. Every key head serves the same number of query "
                "heads: give a multiple of n_key_heads."
            )
        return self.n_heads // n_key_heads
