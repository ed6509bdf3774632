"""Checkpoints of a model: which there are, reading them one at a time, and their weights in the model for a while."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from param_features.changes import read_state
from param_features.errors import InputError, SettingError, StoreError, UnknownParameterError, nearest
from param_features.machine import at_home
from param_features.params import Adapter, adapter_for, overwrite, stand_ins

_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_STATISTICS = ("running_mean", "running_var")
_FIXED = ("inv_freq", "cos_cached", "sin_cached")
"""Rotary tables, which some files hold and no training changes."""
_ACCEPTED = (
    "a state dict, a module, the path of a .safetensors or torch file, a Hugging Face folder or 'owner/name@revision', or a "
    "function that returns one of these"
)

TrainingStep = int | float


def read_steps(checkpoints: Any, steps: Sequence[TrainingStep] | None) -> list[tuple[TrainingStep, Any]]:
    """Every checkpoint with its step, in the order of training.

    Raises:
        InputError: There are none, or what is given is no collection of checkpoints.
        SettingError: Steps are missing, given twice, or do not rise.
    """
    if isinstance(checkpoints, Mapping) and checkpoints and all(isinstance(value, Tensor) for value in checkpoints.values()):
        raise InputError("checkpoints= is one state dict. Give a list of them, or {step: checkpoint}.")
    if not isinstance(checkpoints, Mapping | Sequence) or isinstance(checkpoints, str | bytes):
        raise InputError(
            f"checkpoints= is a {type(checkpoints).__name__}. Give a list in the order of training, or {{step: "
            f"checkpoint}}; a checkpoint is {_ACCEPTED}."
        )
    if not len(checkpoints):
        raise InputError(f"There are no checkpoints. Give one or more; a checkpoint is {_ACCEPTED}.")
    if isinstance(checkpoints, Mapping):
        return _sorted_steps(checkpoints, steps)
    steps = list(range(len(checkpoints))) if steps is None else list(steps)
    if len(steps) != len(checkpoints):
        raise SettingError(f"steps= has {len(steps)} numbers for {len(checkpoints)} checkpoints. Give one for each.")
    for before, after in zip(steps, steps[1:], strict=False):
        if not before < after:
            raise SettingError(f"steps= has {after} after {before}. Give each step once, in rising order.")
    return list(zip(steps, checkpoints, strict=True))


def _sorted_steps(checkpoints: Mapping[Any, Any], steps: Sequence[TrainingStep] | None) -> list[tuple[TrainingStep, Any]]:
    if steps is not None:
        raise SettingError("steps= is given, and checkpoints= says the steps already. Leave steps= out.")
    wrong = next((step for step in checkpoints if not isinstance(step, int | float)), None)
    if wrong is not None:
        raise SettingError(f"checkpoints= has {wrong!r} for a step. Give numbers: {{1000: checkpoint, 2000: …}}.")
    return sorted(checkpoints.items())


def check_checkpoints(adapter: Adapter, checkpoints: Sequence[tuple[TrainingStep, Any]]) -> None:
    """Refuse what is known not to fit before anything is run: names and shapes in memory, files that are not there.

    Raises:
        InputError: A checkpoint is of no kind that is accepted, or holds a tensor of another shape.
        StoreError: A file is missing.
        UnknownParameterError: A parameter is missing.
    """
    for step, checkpoint in checkpoints:
        if isinstance(checkpoint, nn.Module | Mapping):
            chosen_weights(adapter, checkpoint_tensors(adapter, checkpoint, step), step)
        elif isinstance(checkpoint, str | PathLike):
            _refuse_missing(at_home(checkpoint), step)
        elif not callable(checkpoint):
            raise InputError(f"The checkpoint of step {step} is a {type(checkpoint).__name__}. Give {_ACCEPTED}.")


def checkpoint_tensors(adapter: Adapter, checkpoint: Any, step: TrainingStep) -> dict[str, Tensor]:
    """A checkpoint's tensors by name.

    Cost: reads the file, asks the hub or calls the function; in memory, nothing is copied.

    Raises:
        InputError: It is none of what is accepted.
        StoreError: It cannot be read.
    """
    if callable(checkpoint) and not isinstance(checkpoint, nn.Module | Mapping):
        checkpoint = checkpoint()
    if isinstance(checkpoint, str | PathLike):
        checkpoint = at_home(checkpoint)
        _refuse_missing(checkpoint, step)
        checkpoint = checkpoint if _is_file(checkpoint) else _from_hub(adapter, str(checkpoint), step)
    if isinstance(checkpoint, nn.Module):
        return _tensors(adapter_for(checkpoint))
    try:
        state = read_state(checkpoint)
    except InputError as error:
        keys = f" with {', '.join(map(repr, list(checkpoint)[:4]))}" if isinstance(checkpoint, Mapping) else ""
        raise InputError(
            f"The checkpoint of step {step} is a {type(checkpoint).__name__}{keys}. Give {_ACCEPTED}; of a file that holds "
            "more than weights, take them out: lambda: torch.load(path)['model']."
        ) from error
    prefix = next((prefix for prefix in _PREFIXES if state and all(name.startswith(prefix) for name in state)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def chosen_weights(adapter: Adapter, state: Mapping[str, Tensor], step: TrainingStep) -> list[tuple[Tensor, Tensor]]:
    """Each of the model's tensors with the checkpoint's for it.

    Buffers that the checkpoint lacks stay as they are, but for the statistics of batch norm, which training changes.

    Raises:
        UnknownParameterError: A parameter is missing.
        InputError: One has another shape, or the checkpoint holds weights that the model has not.
    """
    names, pairs, missing = _names(adapter), [], []
    _refuse_unknown(state, {name for aliases in names.values() for name in aliases}, step)
    for name, tensor in _tensors(adapter).items():
        stored = [alias for alias in names.get(id(tensor), [name]) if alias in state]
        fitting = next((alias for alias in stored if state[alias].shape == tensor.shape), None)
        if fitting is not None:
            pairs.append((tensor, state[fitting]))
        elif stored and _is_needed(name, tensor):
            raise InputError(
                f"{stored[0]!r} has shape {tuple(state[stored[0]].shape)} in the checkpoint of step {step} and "
                f"{tuple(tensor.shape)} in the model. Give checkpoints of this model."
            )
        elif _is_needed(name, tensor):
            missing.append(name)
    if missing:
        raise UnknownParameterError(
            f"The checkpoint of step {step} has no tensor for {missing[0]!r}{_and_more(missing)}. It holds {len(state)}; "
            f"nearest: {nearest(missing[0], list(state))}. Give all of the model's parameters, by its own names."
        )
    return pairs


@contextmanager
def lent(adapter: Adapter) -> Iterator[Callable[[Any, TrainingStep], None]]:
    """Gives a function that puts a checkpoint's weights into the model; on exit every bit is as it was.

    A checkpoint may be the model itself, or a state dict that shares its memory: what is meant are the weights that it had.

    Cost: a copy of the model's weights.
    """
    originals = [(tensor, tensor.detach().clone()) for tensor in _tensors(adapter).values()]
    original_of = {id(tensor): values for tensor, values in originals}

    def load(checkpoint: Any, step: TrainingStep) -> None:
        pairs = chosen_weights(adapter, checkpoint_tensors(adapter, checkpoint, step), step)
        _fill([(tensor, original_of[id(tensor)] if _shares(tensor, values) else values) for tensor, values in pairs])

    try:
        with stand_ins():
            yield load
    finally:
        try:
            _fill(originals)
        except BaseException:
            _fill(originals)  # a Ctrl-C that fell into the restoration: finish it, then let it out
            raise


def _shares(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return a is b or (a.device == b.device and a.numel() > 0 and a.data_ptr() == b.data_ptr())


def _fill(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, values in pairs:
        overwrite(tensor, values)


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones once."""
    return {view.name: view.stored for view in adapter.views().values()} | dict(adapter.module.named_buffers())


def _names(adapter: Adapter) -> dict[int, list[str]]:
    """What each tensor is called, by its id: the library's own name first, then those of state dicts and of users."""
    tensors = _tensors(adapter)
    named = [*tensors.items(), *adapter.module.state_dict(keep_vars=True).items()]
    named += [(alias, tensors[real]) for alias, real in adapter.aliases().items() if real in tensors]
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    return names


def _refuse_unknown(state: Mapping[str, Tensor], known: set[str], step: TrainingStep) -> None:
    """Refuse weights of other names: they would be left out, and those of a model that was not folded belong together."""
    unknown = [name for name in state if name not in known and not name.endswith(_FIXED) and _is_weight(state[name])]
    if unknown:
        raise InputError(
            f"The checkpoint of step {step} holds {unknown[0]!r}{_and_more(unknown)}, which the model has not. Give "
            "checkpoints of this model, processed as it was (folding LayerNorm and centring change names and weights), or "
            "leave these tensors out."
        )


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 0


def _is_needed(name: str, tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or name.endswith(_STATISTICS)


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _is_file(path: str | PathLike) -> bool:
    return Path(path).suffix in _FILES or Path(path).is_file()


def _refuse_missing(path: str | PathLike, step: TrainingStep) -> None:
    is_local = isinstance(path, PathLike) or _is_file(path)
    if is_local and not Path(path).exists():
        raise StoreError(f"The checkpoint of step {step} is to be {str(path)!r}, where there is nothing. Give {_ACCEPTED}.")


def _from_hub(adapter: Adapter, where: str, step: TrainingStep) -> nn.Module:
    """A model of the same class out of a folder or from the hub, by its library's own call."""
    model_class: Any = type(adapter.module)
    if not any(base.__name__ == "PreTrainedModel" for base in model_class.__mro__):
        raise InputError(
            f"The checkpoint of step {step} is {where!r}. Folders and revisions of the hub are read by Hugging Face models, "
            f"and this is a {model_class.__name__}: give a function that loads it, such as lambda: "
            f"{model_class.__name__}."
            "from_pretrained(…), or a file."
        )
    name, _, revision = (where, "", "") if Path(where).is_dir() else where.partition("@")
    try:
        with torch.random.fork_rng(devices=[]):
            return model_class.from_pretrained(name, revision=revision or "main")  # the default of from_pretrained itself
    except OSError as error:
        raise StoreError(f"The checkpoint of step {step}, {where!r}, cannot be read: {error}") from error
