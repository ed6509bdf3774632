"""What a step along features adds to stacks of experts, as the factors that peft holds for a parameter of three axes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import ExportError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine
from param_features.intervene.layers import PREFIX, scaled
from param_features.params import ParamView


@dataclass(frozen=True)
class Stack:
    """A layer's stack of experts and what is added to each.

    Attributes:
        owner: The layer.
        name: Its name in the model that peft wraps.
        attribute: The stack.
        is_transposed: Whether matrices are stored [d_in, d_out].
        depth: How many further stacks of the layer are moved: peft wraps one around the other, the first innermost.
        A: Rows that read the input; zero for experts that stay.
        B: Columns that write the output; B·A is added to an expert's matrix.
    """

    owner: nn.Module
    name: str
    attribute: str
    is_transposed: bool
    depth: int
    A: Float[Tensor, "expert rank d_in"]
    B: Float[Tensor, "expert d_out rank"]

    @property
    def rank(self) -> int:
        """The rank of every expert's part."""
        return self.A.shape[1]

    def changes(self) -> dict[str, Tensor]:
        """What is added to the layer's own tensor. Cost: the stack, built once."""
        matrices = self.B @ self.A
        return {self.attribute: matrices.mT if self.is_transposed else matrices}

    def tensors(self, rank: int) -> dict[str, Tensor]:
        """The factors by peft's keys, filled up with zeros to a rank."""
        prefix = f"{PREFIX}.{self.name}{'.base_layer' * self.depth}.lora"
        missing = rank - self.rank
        A = torch.nn.functional.pad(self.A, (0, 0, 0, missing)).flatten(0, 1)
        B = torch.nn.functional.pad(self.B, (0, missing)).permute(1, 2, 0).flatten(1)
        return {f"{prefix}_A.weight": A, f"{prefix}_B.weight": B}


def is_in_stack(view: ParamView) -> bool:
    """Whether a parameter is the matrix of one expert in a stack."""
    return view.layout.pattern == "expert row column -> (expert row) column"


def stacks_of(engine: GradientEngine, directions: LowRank, steps: Sequence[float]) -> list[Stack]:
    """Every stack that a step of `steps` along `directions` moves, each once.

    Raises:
        ExportError: The layer is not one of the Hugging Face model that peft wraps, or is held twice.
    """
    names, stacks = engine.adapter.peft_names(), dict[tuple[str, str], list[ParamView]]()
    for view in filter(is_in_stack, engine.subset.views):
        if view.owner not in names or len(view.places) > 1:
            raise ExportError(
                f"{view.name!r} is tied, or lies in a layer that the Hugging Face model from disk does not have so. "
                "Load that model and pass it: to_lora(path, …, model=hf), or use features.edit(model, …)."
            )
        stacks.setdefault((names[view.owner], view.attribute), []).append(view)
    return [_stack(name, views, _above(views[0], name, stacks), directions, steps) for (name, _), views in stacks.items()]


def _above(view: ParamView, name: str, stacks: Iterable[tuple[str, str]]) -> int:
    """How many of the layer's other moved stacks come after this one."""
    order = [key for key, _ in view.owner.named_parameters(recurse=False) if (name, key) in set(stacks)]
    return len(order) - 1 - order.index(view.attribute)


def _stack(name: str, views: list[ParamView], depth: int, directions: LowRank, steps: Sequence[float]) -> Stack:
    view = views[0]
    n_experts, (d_out, d_in) = len(view.stored), view.matrix_shape
    factors = {_number(view): scaled(directions.factors[view.name], steps) for view in views}
    rank = next(iter(factors.values()))[1].shape[0]
    A, B = torch.zeros(n_experts, rank, d_in, dtype=torch.float64), torch.zeros(n_experts, d_out, rank, dtype=torch.float64)
    for number, (left, right) in factors.items():
        A[number], B[number] = right.to(A), left.to(B)
    is_transposed, device = view.fold == "i o -> o i", view.stored.device
    return Stack(view.owner, name, view.attribute, is_transposed, depth, A.to(device), B.to(device))


def _number(view: ParamView) -> int:
    assert view.layout.part is not None
    start, stop = view.layout.part
    return start // (stop - start)
