"""The query × key table: what features of W_Q and of W_K add to attention scores together, from the weights alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from param_features.circuits.layer import shared_layer
from param_features.circuits.singular import Components, singular_components, turned_at_random
from param_features.errors import SettingError, UnknownParameterError
from param_features.fitted import Fitted
from param_features.machine import own_modes, public
from param_features.params import Attention

_DISTANCES = (0, 1, 2, 4, 8, 16, 32)


class QueryKeyPair(NamedTuple):
    """A query feature and a key feature, where they add most to a score.

    Attributes:
        query: Number of the query feature.
        key: Number of the key feature.
        head: Query head.
        distance: Positions by which the query comes after the key.
        score: That of their leading components, signed.
        norm: That of all components.
    """

    query: int
    key: int
    head: int
    distance: int
    score: float
    norm: float


@dataclass(frozen=True, eq=False)
class QueryKey:
    """What each query feature and each key feature of one attention layer add to its scores together.

    With v_i a direction in W_Q and v_j one in W_K, a unit step along both adds xᵀ B y to the score in head h of a query at x
    and a key at y (inputs of the matrices), with B = v_iʰᵀ R(distance) v_jʰ / scale, besides what either adds with the
    other's matrix as it is. Scores are meant before any cap; a bias by position, as ALiBi's, does not depend on features.

    `score` is of leading components: σ_i σ_j a_iʰ · R a_jʰ / scale, for v = Σ_r σ_r a_r b_rᵀ. It is what the pair adds where
    x reads 1 along the query feature's `query_readings` and y reads 1 along the key feature's. Its sign goes with those
    readings', whose largest entry is positive. `norm` is ‖B‖_F, the root mean square of what the pair adds for x and y of
    independent unit-variance entries: |score| where features have rank 1.

    Attributes:
        layer: The attention layer.
        attention: Its heads, scale and rotation.
        distances: Positions by which the query comes after the key; `(0,)`, which stands for all, where nothing rotates.
        score: Attention logits per unit step along both features and per unit of both readings.
        norm: The same of all components, without a sign.
        query_heads: Share of each query feature's squared norm in each head of W_Q; the rest is in other parameters.
        key_heads: The same in W_K, by key head.
        query_readings: Unit vectors that the leading components read from the layer's input.
        key_readings: The same for keys.
        query_leading: Share of each feature's squared norm in W_Q that its leading component holds; 1 for rank 1.
        key_leading: The same in W_K.
        control: The same table for random directions: each feature turned at random within every head, so that rank, norm,
            singular values and shares of heads stay. None for the control itself.
    """

    layer: str
    attention: Attention
    distances: tuple[int, ...]
    score: Float[Tensor, "query_feature key_feature head distance"]
    norm: Float[Tensor, "query_feature key_feature head distance"]
    query_heads: Float[Tensor, "query_feature head"]
    key_heads: Float[Tensor, "key_feature key_head"]
    query_readings: Float[Tensor, "query_feature d_model"]
    key_readings: Float[Tensor, "key_feature d_model"]
    query_leading: Float[Tensor, " query_feature"]
    key_leading: Float[Tensor, " key_feature"]
    control: "QueryKey | None" = None

    @public
    def top(self, n: int = 10, *, head: int | None = None, distance: int | None = None) -> list[QueryKeyPair]:
        """Find the pairs that add most, by `norm`, each once: at the head and distance where it is strongest.

        Args:
            n: How many.
            head: This query head alone.
            distance: This distance alone.

        Raises:
            SettingError: There is no such head, or the distance was not asked for.
        """
        heads = list(range(self.attention.n_heads)) if head is None else [self.head_place(head)]
        places = list(range(len(self.distances))) if distance is None else [self.distance_place(distance)]
        strongest, where = self.norm[:, :, heads][..., places].flatten(2).max(2)
        best = strongest.flatten().topk(min(n, strongest.numel())).indices.tolist()
        pairs = []
        for query, key in (divmod(index, strongest.shape[1]) for index in best):
            at_head, at_place = divmod(int(where[query, key]), len(places))
            cell = (query, key, heads[at_head], places[at_place])
            values = float(self.score[cell]), float(self.norm[cell])
            pairs.append(QueryKeyPair(query, key, heads[at_head], self.distances[places[at_place]], *values))
        return pairs

    def head_place(self, head: int) -> int:
        """Check a head's number and return it.

        Raises:
            SettingError: There is no such query head.
        """
        if head not in range(self.attention.n_heads):
            raise SettingError(f"There is no head {head!r}. Query heads are numbered 0 to {self.attention.n_heads - 1}.")
        return head

    def distance_place(self, distance: int) -> int:
        """Find where a distance stands on the last axis; any distance is the only one where nothing rotates.

        Raises:
            SettingError: The distance was not asked for.
        """
        if self.attention.rotary is None:
            return 0
        if distance not in self.distances:
            known = ", ".join(map(str, self.distances))
            raise SettingError(f"distance={distance!r} is not in the table. It holds {known}; ask for others by distances=.")
        return self.distances.index(distance)

    def __repr__(self) -> str:
        """Print sizes beside the control's, and the strongest pairs."""
        n_queries, n_keys, n_heads, _ = self.score.shape
        n_key_heads = self.key_heads.shape[1]
        heads = f"{n_heads} heads" + (f" on {n_key_heads} key heads" if n_key_heads != n_heads else "")
        rotates = self.attention.rotary is not None
        places = "distances " + " ".join(map(str, self.distances)) if rotates else "the same at every distance"
        lines = [
            f"QueryKey: {n_queries} query × {n_keys} key features of {self.layer}, {heads}, {places}",
            f"{'norm':>12}{'rms':>11}{'99 %':>11}{'largest':>11}",
            _sizes("features", self.norm),
        ]
        if self.control is not None:
            lines.append(_sizes("random", self.control.norm))
        lines.append(f"{'query':>6}{'key':>6}{'head':>6}{'distance':>10}{'score':>11}{'norm':>11}")
        for pair in self.top(5):
            distance = pair.distance if rotates else "any"
            lines.append(f"{pair.query:>6}{pair.key:>6}{pair.head:>6}{distance:>10}{pair.score:>+11.3g}{pair.norm:>11.3g}")
        return "\n".join(lines)


@public
@own_modes()
def query_key(
    features_q: Fitted,
    features_k: Fitted | None = None,
    *,
    distances: Sequence[int] = _DISTANCES,
    layer: int | str | None = None,
    attention: Attention | None = None,
    seed: int = 0,
) -> QueryKey:
    """Compute what query and key features of one attention layer add to its scores together, from the weights alone.

    Sizes mean something beside the control's. They may lie below it: in each head, gradients of W_K point where queries lie,
    and those of W_Q where keys differ.

    Cost: n_query · n_key · n_heads · d_head · rank² multiplications for each distance, twice with the control; memory four
    tensors of the table's shape, and rank² times one distance's.

    Args:
        features_q: Features whose parameters include a query matrix.
        features_k: Features whose parameters include the same layer's key matrix; `features_q` by default.
        distances: Positions by which the query comes after the key; of no account where the model does not rotate.
        layer: Which layer where the sets share several: its number or its name.
        attention: How the layer makes its scores, where the model's adapter does not know, or there is no model.
        seed: Of the control.

    Returns:
        The table, on the features' device, with the control beside it.

    Raises:
        AdapterError: It is not known how the model makes its scores.
        UnknownParameterError: No layer has its query matrix in the one set and its key matrix in the other.
        SettingError: Several layers do, and `layer` names none of them; `distances` holds none, or no whole numbers; or
            heads or rotation do not fit the matrices.
        FeatureMismatchError: The sets are of different models.
    """
    features_k = features_q if features_k is None else features_k
    distances = _checked_distances(distances)
    name, attention = (attention.query, attention) if attention is not None else shared_layer(features_q, features_k, layer)
    _refuse_missing(features_q, attention.query)
    _refuse_missing(features_k, attention.key)
    queries = _components(features_q, attention.query, attention.n_heads)
    keys = _components(features_k, attention.key, attention.n_heads // attention.n_sharing)
    generator = torch.Generator().manual_seed(seed)
    random = [turned_at_random(side, generator) for side in (queries, keys)]
    control = _table(name, attention, distances, *random, control=None)
    return _table(name, attention, distances, queries, keys, control=control)


def _table(
    layer: str,
    attention: Attention,
    distances: tuple[int, ...],
    queries: Components,
    keys: Components,
    *,
    control: QueryKey | None,
) -> QueryKey:
    distances = distances if attention.rotary is not None else (0,)
    parts = [_at_distance(attention, queries.writes, keys.writes, distance) for distance in distances]
    score, norm = (torch.stack(part, -1) for part in zip(*parts, strict=True))
    return QueryKey(
        layer=layer,
        attention=attention,
        distances=distances,
        score=score,
        norm=norm,
        query_heads=queries.by_head,
        key_heads=keys.by_head,
        query_readings=queries.readings[..., 0],
        key_readings=keys.readings[..., 0],
        query_leading=queries.leading,
        key_leading=keys.leading,
        control=control,
    )


def _at_distance(
    attention: Attention,
    queries: Float[Tensor, "query_feature head d_head rank"],
    keys: Float[Tensor, "key_feature key_head d_head key_rank"],
    distance: int,
) -> tuple[Float[Tensor, "query_feature key_feature head"], Float[Tensor, "query_feature key_feature head"]]:
    """Compute the scores of leading components, and the norms over all components."""
    keys = keys.repeat_interleave(attention.n_sharing, 1)
    if attention.rotary is not None:
        turn = attention.rotary.matrix(distance, keys.shape[2]).to(keys)
        keys = einsum(turn, keys, "d e, k head e s -> k head d s")
    scores = einsum(queries, keys, "q head d r, k head d s -> q k head r s") / attention.scale
    return scores[..., 0, 0].clone(), scores.flatten(3).norm(dim=-1)


def _components(features: Fitted, name: str, n_heads: int) -> Components:
    left, right = features.v_out.factors[name]
    if left.shape[1] % n_heads:
        raise SettingError(f"{name!r} has {left.shape[1]} outputs, which {n_heads} heads do not divide. Check n_heads.")
    readings, writes = singular_components(left, right)
    by_head = rearrange(writes, "feature (head d) rank -> feature head d rank", head=n_heads)
    return Components(by_head, readings)


def _refuse_missing(features: Fitted, name: str) -> None:
    if name not in features.params:
        raise UnknownParameterError(f"{name!r} was not decomposed. Parameters here: {', '.join(features.params)}.")


def _checked_distances(distances: Sequence[int]) -> tuple[int, ...]:
    whole_numbers = tuple(distances)
    if not whole_numbers or not all(
        isinstance(distance, int) and not isinstance(distance, bool) for distance in whole_numbers
    ):
        raise SettingError(
            f"distances={whole_numbers!r}. Give whole numbers, such as (0, 1, 2, 4): query position less key position."
        )
    return tuple(dict.fromkeys(whole_numbers))


def _sizes(name: str, norm: Tensor) -> str:
    values = norm.flatten().float()
    at_99 = float(values.kthvalue(max(1, round(0.99 * len(values)))).values)
    return f"{name:>12}{float(values.square().mean().sqrt()):>11.3g}{at_99:>11.3g}{float(values.max()):>11.3g}"
