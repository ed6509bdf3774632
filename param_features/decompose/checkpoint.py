"""A fit's checkpoints: all that its next steps follow from, in a file of safetensors that is whole or not there.

Two are kept, the newest and the one before it. Their record lies in the header, as JSON with checksums; nothing is executed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from param_features.errors import StoreError
from param_features.store import library_version, write_whole

State = dict[str, Tensor]
"""Tensors by name."""

_FORMAT, _VERSION = "param_features checkpoint", 1
_HOW = "it was cut short or edited"


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
    def counters(self) -> Mapping[str, Tensor]:
        """Further tensors, which steps change in place."""
        ...

    def step(self) -> Any:
        """Take one step and return what it saw."""

    def status(self, seen: Any) -> dict[str, str]:
        """What the progress bar shows."""
        ...


class Checkpoint(NamedTuple):
    """A fit between two steps: its tensors, and what it is a fit of."""

    state: State
    recipe: dict[str, Any]

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return int(self.state["n_steps"])


def state_of(trainer: Resumable) -> State:
    """All that changes from step to step; the tensors are the trainer's own."""
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
    trainer.generator.set_state(state["generator"])
    trainer.n_steps = int(state["n_steps"])


def _optimizer_state(state: State, prefix: str, weight: Tensor) -> State:
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    like = {name: torch.empty_like(weight) if value.shape == weight.shape else value.clone() for name, value in own.items()}
    return {name: value.copy_(own[name]) for name, value in like.items()}


def _check_fits(trainer: Resumable, state: State) -> None:
    weights = {f"weights/{place}": weight for place, weight in enumerate(_weights(trainer))}
    expected = weights | {f"counters/{name}": tensor for name, tensor in trainer.counters.items()}
    found = {name: tensor for name, tensor in state.items() if name.startswith(("weights/", "counters/"))}
    if _kinds(found) != _kinds(expected):
        raise StoreError(
            f"The checkpoint holds {_kinds(found)}, this fit {_kinds(expected)}: it was written by another version of this "
            "library. Install that version, or give another checkpoint_dir=."
        )


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for name, tensor in tensors.items()}


def _weights(trainer: Resumable) -> list[Tensor]:
    (group,) = trainer.optimizer.param_groups
    return group["params"]


def packed_checkpoint(found: Checkpoint) -> bytes:
    """The bytes of a checkpoint's file."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.state.items()}
    record = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "library_version": library_version(),
        "torch_version": torch.__version__,
        "recipe": found.recipe,
        "tensors_sha256": _tensors_sum(state),
    }
    return save(state, {"record": json.dumps(record | {"record_sha256": _record_sum(record)})})


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
    if path.exists():
        return read_checkpoint(path)
    return read_checkpoint(before(path)) if before(path).exists() else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a file.

    Raises:
        StoreError: It is damaged, or of a format that this version cannot read.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StoreError(f"{path} is not a safetensors file ({error}): {_HOW}. {_way_out(path)}") from error
    record = _record(path, metadata)
    if record["tensors_sha256"] != _tensors_sum(state):
        raise StoreError(f"{path} holds tensors that do not match their checksum: {_HOW}. {_way_out(path)}")
    return Checkpoint(state, record["recipe"])


def _record(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        record = json.loads(metadata.get("record", "{}"))
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} holds a record that is not JSON ({error}): {_HOW}. {_way_out(path)}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise StoreError(f"{path} is no checkpoint: its 'format' is not {_FORMAT!r}. {_way_out(path)}")
    stated = record.pop("record_sha256", None)
    if stated != _record_sum(record):
        raise StoreError(f"{path} holds a record that does not match its checksum: {_HOW}. {_way_out(path)}")
    if record["format_version"] != _VERSION:
        raise StoreError(
            f"{path} has format version {record['format_version']!r}; this library reads version {_VERSION}. It was written "
            f"by param_features {record['library_version']}: install that version, or give another checkpoint_dir=."
        )
    return record


def _way_out(path: Path) -> str:
    if path != before(path) and before(path).exists():
        return f"Remove it to go on from the one before, {before(path).name}, or give another checkpoint_dir=."
    return "Remove it to begin the fit anew, or give another checkpoint_dir=."


def _record_sum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _tensors_sum(state: State) -> str:
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        found.update(state[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
