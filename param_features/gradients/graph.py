"""What autograd's graph says about a model: which operations lie between two tensors, and which ways lead past one.

It speaks of every input, where comparing numbers on a few rows speaks of those rows within a tolerance.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

PASSED_ON = frozenset(
    f"{name}Backward{number}"
    for name in ("Alias", "Clone", "ToCopy", "View", "UnsafeView", "ReshapeAlias", "Slice", "Squeeze", "Unsqueeze")
    for number in range(3)
)
"""Operations that give every number on as it is, in the same order where the shape is the same in the end."""

AFFINE = PASSED_ON | {
    f"{name}Backward0" for name in ("Addmm", "Mm", "Baddbmm", "Bmm", "Linear", "T", "Transpose", "Permute", "Add")
}
"""Operations of a product with a matrix and of adding a bias."""


def operations_between(output: Tensor, leaf: Tensor) -> set[str]:
    """The names of all operations that lead from a leaf, and from any other, to an output; the leaf's own is left out."""
    leaf_node = get_gradient_edge(leaf).node
    return {node.name() for node in nodes_of([output]) if node is not leaf_node}


def nodes_of(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the outputs' graph, once."""
    return (node for node, _ in _edges(outputs, past=None, is_by_node=True))


def leads_past(root: Tensor, place: Tensor, sites: Sequence[Tensor]) -> bool:
    """Whether a way from the root to one of the sites does not lead through the place."""
    ends = {_edge(site) for site in sites if site.requires_grad}
    return any(edge in ends for edge in _edges([root], past=_edge(place)))


def _edges(outputs: Iterable[Tensor], *, past: Any, is_by_node: bool = False) -> Iterator[tuple[Any, int]]:
    """Every edge of the outputs' graph that is reached without going through one of them; one a node if that suffices."""
    ahead = [_edge(output) for output in outputs if output.requires_grad]
    seen: set[Any] = set()
    while ahead:
        edge = ahead.pop()
        mark = edge[0] if is_by_node else edge
        if edge[0] is None or mark in seen or edge == past:
            continue
        seen.add(mark)
        yield edge
        ahead += edge[0].next_functions


def _edge(tensor: Tensor) -> tuple[Any, int]:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
