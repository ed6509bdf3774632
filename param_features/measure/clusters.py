"""Components that are needed together, as one: groups whose activity takes fewer bits to write down than its members'."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from param_features.errors import SettingError

Rows = np.ndarray
"""Numbers of samples, or counts of them."""


@dataclass(frozen=True)
class Cluster:
    """Components that are needed together.

    Attributes:
        members: Their numbers, in order.
        sites: Their matrices, each once.
        rate: Share of samples in which one of them at least is needed.
        together: Share of those in which all of them are.
        bits_saved: Of the description of all samples, by taking them as one.
    """

    members: tuple[int, ...]
    sites: tuple[str, ...]
    rate: float
    together: float
    bits_saved: float


@dataclass(frozen=True)
class Clusters:
    """The groups of some components, those that save most first; a component in none of them stands alone.

    Attributes:
        groups: Of two components at least.
        n_samples: How many samples were described.
        n_components: How many components are needed in any of them.
        bits_alone: Bits per sample with every component by itself.
        bits: Bits per sample in these groups.
        control_groups: How many groups come out where each component's samples are permuted by themselves.
        control_saved: Bits per sample that those save.
    """

    groups: tuple[Cluster, ...]
    n_samples: int
    n_components: int
    bits_alone: float
    bits: float
    control_groups: int
    control_saved: float

    def __str__(self) -> str:
        """A line for all, and one for each of the first groups."""
        n_joined = sum(len(group.members) for group in self.groups)
        head = (
            f"{len(self.groups)} groups of {n_joined} of {self.n_components} components: {self.bits:.3g} bits per sample "
            f"instead of {self.bits_alone:.3g}; permuted samples give {self.control_groups} groups, "
            f"{self.control_saved:.2g} bits saved."
        )
        rows = [
            f"  {', '.join(map(str, group.members))}: in {group.rate:.2%} of samples, in {group.together:.0%} of those all "
            f"together; {', '.join(group.sites)}"
            for group in self.groups[:_SHOWN]
        ]
        return "\n".join([head, *rows])


_SHOWN = 20


def find_clusters(
    is_needed: Bool[Tensor, "sample component"], sites: Sequence[str], *, rank_cost: float = 1.0, seed: int = 0
) -> Clusters:
    """Join components, two groups at a time, as long as it shortens the description of which components are needed where.

    Of every group the description says for each sample whether it is on, and where it is, which members are needed: n h(u/n)
    and, for each member, u h(s/u) bits, with n samples, u in which the group is on, s in which the member is needed, and h
    the entropy of a coin. A group that is on carries all its members: each of them that is not needed costs `rank_cost`
    bits. A number that is part of the description costs ½ log₂ n bits, and each member of a group its name, log₂ of how many
    components there are. Two independent components never become one, whatever their rates: their entropies add up.

    The description is lossless and this library's own. It takes from APD (arXiv 2501.14926) and from the appendix of VPD
    (Goodfire, 2026) that parts are joined while a minimum description length falls, and that active groups pay for rank.

    Cost: of a group's union with all others, the needed components of the samples in which it is on; once for each
    component and each join. Memory: 16 bytes for each needed component of each sample, and the pairs that would save bits.

    Args:
        is_needed: Where each component is needed.
        sites: The matrix of each component.
        rank_cost: Bits for each member that is on with its group and not needed; a larger one gives tighter groups.
        seed: Permutes the control's samples.

    Raises:
        SettingError: `rank_cost` is negative or no number, or there are no samples.
    """
    if not 0 <= rank_cost < math.inf:
        raise SettingError(f"rank_cost={rank_cost} must be a number of bits, 0 or more.")
    if not len(is_needed):
        raise SettingError("There are no samples to find clusters in. Give some rows.")
    needed = is_needed.cpu().numpy()
    joining = _Joining(needed, rank_cost)
    joining.run()
    control = _Joining(_permuted(needed, np.random.default_rng(seed)), rank_cost)
    control.run()
    n = len(needed)
    found = sorted(joining.groups(), key=lambda group: -group[2])
    groups = [_cluster(needed, sites, members, rows, saved) for members, rows, saved in found]
    alone, saved = joining.bits_alone / n, sum(group.bits_saved for group in groups) / n
    permuted = control.groups()
    return Clusters(
        tuple(groups),
        n,
        int(needed.any(0).sum()),
        alone,
        alone - saved,
        len(permuted),
        sum(saved for *_, saved in permuted) / n,
    )


def _cluster(needed: np.ndarray, sites: Sequence[str], members: list[int], rows: Rows, saved: float) -> Cluster:
    together = float(needed[rows][:, members].all(1).mean())
    names = tuple(dict.fromkeys(sites[member] for member in members))
    return Cluster(tuple(members), names, len(rows) / len(needed), together, saved)


def _permuted(needed: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each component needed as often as it is, in other samples."""
    return generator.permuted(needed, axis=0)


@dataclass
class _Joining:
    """Groups as they are joined; a group's number is new with every join.

    Attributes:
        needed: Where each component is needed.
        rank_cost: Bits for a member that is on and not needed.
    """

    needed: np.ndarray
    rank_cost: float
    members: dict[int, list[int]] = field(init=False)
    rows: dict[int, Rows] = field(init=False)
    heap: list[tuple[float, int, int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Every component that is needed anywhere, and not everywhere, is a group."""
        n, n_components = self.needed.shape
        sample, component = self.needed.nonzero()
        self.starts, self.of_sample = np.searchsorted(sample, np.arange(n + 1)), component
        self.counts = self.needed.sum(0)
        order = np.argsort(component, kind="stable")
        rows = np.split(sample[order], np.cumsum(self.counts)[:-1])
        some = [k for k in range(n_components) if 0 < self.counts[k] < n]
        self.members, self.rows = {k: [k] for k in some}, {k: rows[k] for k in some}
        self.group_of = np.full(n_components, -1)
        self.group_of[some] = some
        self.name_bits, self.number_bits = math.log2(max(2, len(some))), 0.5 * math.log2(n)
        self.alone = self._bits(self.counts, self.counts.reshape(-1, 1)) + self.number_bits
        self.bits_alone = float(self.alone[some].sum())

    def run(self) -> None:
        """Join the pair that saves most, until none saves any."""
        for group in list(self.members):
            self._offer(group)
        new = len(self.group_of)
        while self.heap:
            _, first, second = heapq.heappop(self.heap)
            if first not in self.members or second not in self.members:
                continue
            self.members[new] = sorted(self.members.pop(first) + self.members.pop(second))
            self.rows[new] = np.union1d(self.rows.pop(first), self.rows.pop(second))
            self.group_of[self.members[new]] = new
            self._offer(new)
            new += 1

    def groups(self) -> list[tuple[list[int], Rows, float]]:
        """Members, samples and bits saved of every group of two or more."""
        return [
            (members, self.rows[group], float(self.alone[members].sum()) - self._whole(group))
            for group, members in self.members.items()
            if len(members) > 1
        ]

    def _offer(self, group: int) -> None:
        """Put every pair of this group with a later one, that would save bits, in its place; of a joined one, with any."""
        others, both = self._overlaps(group)
        own, sizes = self.members[group], np.array([len(self.members[other]) for other in others.tolist()], int)
        if not len(others):
            return
        on = len(self.rows[group]) + np.array([len(self.rows[other]) for other in others.tolist()]) - both
        theirs = self.counts[np.concatenate([self.members[other] for other in others.tolist()])]
        joined = self._bits(on, np.broadcast_to(self.counts[own], (len(others), len(own))))
        within = self._within(np.repeat(on, sizes), theirs)
        joined += np.add.reduceat(within, np.cumsum(sizes) - sizes)
        joined += self._names(len(own) + sizes)
        apart = self._whole(group) + np.array([self._whole(other) for other in others.tolist()])
        for k in np.flatnonzero(apart - joined > 0):
            heapq.heappush(self.heap, (float(joined[k] - apart[k]), group, int(others[k])))

    def _overlaps(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups that are on in some of this one's samples, and in how many; of first groups the later ones alone."""
        rows = self.rows[group]
        sizes = self.starts[rows + 1] - self.starts[rows]
        places = np.repeat(self.starts[rows] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        found = self.group_of[self.of_sample[places]]
        is_other = (found >= 0) & (found != group)
        if group < len(self.group_of):
            is_other &= found > group
        keys = np.unique(np.repeat(np.arange(len(rows)), sizes)[is_other] * (2 * len(self.group_of)) + found[is_other])
        return np.unique(keys % (2 * len(self.group_of)), return_counts=True)

    def _whole(self, group: int) -> float:
        """Bits of a group as it is."""
        members = self.members[group]
        if len(members) == 1:
            return float(self.alone[members[0]])
        on = np.array([len(self.rows[group])])
        return float(self._bits(on, self.counts[members][None])[0] + self._names(len(members)))

    def _bits(self, on: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Bits of when groups are on, and of some members [group member] within."""
        n = len(self.needed)
        return n * _entropy(on / n) + self._within(on[:, None], counts).sum(1)

    def _within(self, on: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Bits of a member where its group is on."""
        share = np.divide(counts, on, out=np.zeros(np.broadcast_shapes(on.shape, counts.shape)), where=on > 0)
        return on * _entropy(share) + self.rank_cost * (on - counts)

    def _names(self, n_members: np.ndarray | int) -> np.ndarray | float:
        """Bits of what a group of two or more says beside its samples: its members, and a number for each and for itself."""
        return n_members * (self.name_bits + self.number_bits) + self.number_bits


def _entropy(share: np.ndarray) -> np.ndarray:
    """Bits of a coin."""
    inside = (share > 0) & (share < 1)
    p = np.where(inside, share, 0.5)
    return np.where(inside, -p * np.log2(p) - (1 - p) * np.log2(1 - p), 0.0)
