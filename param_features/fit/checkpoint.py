"""A fit's checkpoints: all that its next steps follow from, in a file of safetensors that is whole or not there.

Two are kept, the newest and the one before it. Their record lies in the header, as JSON with checksums; nothing is executed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors.torch import save
from torch import Tensor

from param_features.errors import StoreError
from param_features.files import Format, Origin, Part, read_file, read_tensors, shown, write_whole
from param_features.params import ParamRecord

State = dict[str, Tensor]
"""Tensors by name."""

FORMAT = Format("param_features checkpoint", "a checkpoint", (1,), "record_sha256")
_TITLES = ("counters/", "weights/", "optimizer/")
_ANOTHER = "Give another checkpoints=."


@runtime_checkable
class Resumable(Protocol):
    """A fit that goes step by step, and what its next steps follow from beside its settings and gradients.

    Attributes:
        generator: Draws batches and candidates.
        order: What is still to come of this pass over the data.
        n_steps: Steps taken.
    """

    generator: torch.Generator
    order: Tensor
    n_steps: int

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Holds the directions' tensors, in one group."""
        ...

    @property
    def n_in_pass(self) -> int:
        """How many samples or rows a pass over the data goes through: `order` holds numbers below it, each once at most."""
        ...

    @property
    def counters(self) -> Mapping[str, Tensor]:
        """Further tensors, which steps change in place."""
        ...

    def step(self) -> Any:
        """Take one step and return its outcome."""

    def status(self, outcome: Any) -> dict[str, str]:
        """What the progress bar shows."""
        ...


class Checkpoint(NamedTuple):
    """A fit between two steps: its tensors, and what it is a fit of."""

    state: State
    recipe: dict[str, Any]

    @property
    def n_steps(self) -> int:
        """How many steps were taken."""
        return int(self.state["n_steps"])


def state_of(trainer: Resumable) -> State:
    """Collect all that changes from step to step; the tensors are the trainer's own."""
    state = {"n_steps": torch.tensor(trainer.n_steps), "order": trainer.order, "generator": trainer.generator.get_state()}
    state |= {f"counters/{name}": tensor for name, tensor in trainer.counters.items()}
    for place, weight in enumerate(_weights(trainer)):
        state[f"weights/{place}"] = weight
        state |= {f"optimizer/{place}/{name}": value for name, value in trainer.optimizer.state[weight].items()}
    return state


@torch.no_grad()
def restore(trainer: Resumable, state: State) -> None:
    """Put a trainer of the same arguments where another one was.

    Tensors keep their strides, on which the last bit of a sum may depend.

    Raises:
        StoreError: The state is of another fit.
    """
    weights = _weights(trainer)
    _check_fits(trainer, state)
    for name, tensor in trainer.counters.items():
        tensor.copy_(state[f"counters/{name}"])
    for place, weight in enumerate(weights):
        weight.copy_(state[f"weights/{place}"])
        trainer.optimizer.state[weight] = _optimizer_state(state, f"optimizer/{place}/", weight)
    trainer.order = state["order"].clone()
    try:
        trainer.generator.set_state(state["generator"])
    except RuntimeError as error:
        raise StoreError(f"The checkpoint's generator cannot go on ({error}): it was edited. {_ANOTHER}") from error
    trainer.n_steps = int(state["n_steps"])


def _optimizer_state(state: State, prefix: str, weight: Tensor) -> State:
    moments = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    copies = {
        name: torch.empty_like(weight) if value.shape == weight.shape else value.clone() for name, value in moments.items()
    }
    return {name: value.copy_(moments[name]) for name, value in copies.items()}


def _check_fits(trainer: Resumable, state: State) -> None:
    weights = {f"weights/{place}": weight for place, weight in enumerate(_weights(trainer))}
    expected = weights | {f"counters/{name}": tensor for name, tensor in trainer.counters.items()}
    stored = {name: tensor for name, tensor in state.items() if name.startswith(("weights/", "counters/"))}
    is_whole = all(_is_adam(state, place, weight) for place, weight in enumerate(weights.values()))
    if _kinds(stored) != _kinds(expected) or not is_whole:
        raise StoreError(
            f"The checkpoint holds {_kinds(stored)}, this fit {_kinds(expected)}: it was written by another version of this "
            f"library. Install that version. {_ANOTHER}"
        )
    order = state["order"]
    n, is_drawn = trainer.n_in_pass, order.dtype == torch.long and order.dim() == 1
    if not is_drawn or len(order.unique()) != len(order) or not bool(((order >= 0) & (order < n)).all()):
        raise StoreError(f"The checkpoint's order is not one of this fit's {n} samples: it was edited. {_ANOTHER}")


def _is_adam(state: State, place: int, weight: Tensor) -> bool:
    """Whether what Adam keeps of a weight is all there, or nothing yet."""
    prefix = f"optimizer/{place}/"
    shapes = {name.removeprefix(prefix): value.shape for name, value in state.items() if name.startswith(prefix)}
    return not shapes or shapes == {"step": torch.Size(()), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for name, tensor in tensors.items()}


def _weights(trainer: Resumable) -> list[Tensor]:
    (group,) = trainer.optimizer.param_groups
    return group["params"]


def packed_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Write a checkpoint as the bytes of its file."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.state.items()}
    record = {"torch_version": torch.__version__, "recipe": checkpoint.recipe, "tensors_sha256": _tensors_sum(state)}
    return save(state, {"record": json.dumps(FORMAT.stamped(record))})


def write_checkpoint(path: Path, data: bytes) -> None:
    """Put a checkpoint in its place; the one there becomes the one before. At any moment one of the two is whole."""
    if path.exists():
        path.replace(before(path))
    write_whole(path, data)


def before(path: Path) -> Path:
    """Where the checkpoint before the newest lies."""
    return path.with_name(f"{path.stem}.before.safetensors")


def read_newest(path: Path) -> Checkpoint | None:
    """The newest checkpoint; that before it where a kill came between; None where there is neither.

    Raises:
        StoreError: It is damaged, or of a format that this version cannot read. The one before is then not taken unasked.
    """
    if os.path.lexists(path):
        return read_checkpoint(path)
    return read_checkpoint(before(path)) if os.path.lexists(before(path)) else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a file.

    Raises:
        StoreError: It is damaged, of a format that this version cannot read, or says what no fit's state says.
    """
    origin = Origin(str(path), _way_out(path))
    state, metadata = read_tensors(read_file(path, origin), origin)
    record = FORMAT.read(metadata.get("record", "{}"), Origin(f"The record of {path}", origin.advice))
    part = Part(record, "", origin)
    part.check_fields(("format", "format_version", "library_version", "torch_version", "recipe", "tensors_sha256"))
    if part.sha256("tensors_sha256") != _tensors_sum(state):
        origin.refuse("holds tensors that do not match their checksum: it was cut short or edited")
    _check_recipe(part.part("recipe"))
    _check_state(state, origin)
    return Checkpoint(state, record["recipe"])


def _check_recipe(recipe: Part) -> None:
    """Refuse a recipe that cannot be compared with another; what it says is compared, never read.

    Raises:
        StoreError: It names no method, or its parameters are not records of parameters.
    """
    recipe.check_fields(("method",), (*recipe.body,))
    recipe.text("method")
    if "params" in recipe.body:
        for part in recipe.parts("params").values():
            ParamRecord.read(part)


def _check_state(state: State, origin: Origin) -> None:
    """Refuse tensors that are not those of `state_of`; shapes are compared with the fit's own in `restore`.

    Raises:
        StoreError: Names the tensor.
    """
    n_bytes = torch.Generator().get_state().numel()
    wanted = {"n_steps": (torch.int64, 0, 1), "order": (torch.int64, 1, None), "generator": (torch.uint8, 1, n_bytes)}
    for name, (dtype, n_dims, n) in wanted.items():
        tensor = state.get(name)
        is_kind = tensor is not None and (tensor.dtype, tensor.dim()) == (dtype, n_dims)
        if tensor is None or not is_kind or n not in (None, tensor.numel()) or tensor.numel() and int(tensor.min()) < 0:
            origin.refuse(
                f"lacks {name!r}, or holds another tensor under that name; accepted: {dtype}, {n_dims} axes, from 0"
            )
    unknown = [name for name in state if name not in wanted and not name.startswith(_TITLES)]
    if unknown:
        origin.refuse(f"holds the unknown tensors {', '.join(map(shown, unknown[:8]))}")


def _way_out(path: Path) -> str:
    if path != before(path) and before(path).exists():
        return f"Remove it to go on from the one before, {before(path).name}, or give another checkpoints=."
    return "Remove it to begin the fit anew, or give another checkpoints=."


def _tensors_sum(state: State) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
