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
from param_features.params import Adapter, adapter_for

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

Step = int | float


def read_steps(checkpoints: Any, steps: Sequence[Step] | None) -> list[tuple[Step, Any]]:
    """Every checkpoint with its step, in the order of training.

    Raises:
        InputError: There are none, or what is given is no collection of checkpoints.
        SettingError: Steps are missing, given twice, or do not rise.
    """
    if isinstance(checkpoints, Mapping) and checkpoints and all(isinstance(one, Tensor) for one in checkpoints.values()):
        raise InputError("checkpoints= is one state dict. Give a list of them, or {step: checkpoint}.")
    if not isinstance(checkpoints, Mapping | Sequence) or isinstance(checkpoints, str | bytes):
        raise InputError(
            f"checkpoints= is a {type(checkpoints).__name__}. Give a list in the order of training, or {{step: "
            f"checkpoint}}; a checkpoint is {_ACCEPTED}."
        )
    if not len(checkpoints):
        raise InputError(f"There are no checkpoints. Give one or more; a checkpoint is {_ACCEPTED}.")
    if isinstance(checkpoints, Mapping):
        return _of_mapping(checkpoints, steps)
    steps = list(range(len(checkpoints))) if steps is None else list(steps)
    if len(steps) != len(checkpoints):
        raise SettingError(f"steps= has {len(steps)} numbers for {len(checkpoints)} checkpoints. Give one for each.")
    for before, after in zip(steps, steps[1:], strict=False):
        if not before < after:
            raise SettingError(f"steps= has {after} after {before}. Give each step once, in rising order.")
    return list(zip(steps, checkpoints, strict=True))


def _of_mapping(checkpoints: Mapping[Any, Any], steps: Sequence[Step] | None) -> list[tuple[Step, Any]]:
    if steps is not None:
        raise SettingError("steps= is given, and checkpoints= says the steps already. Leave steps= out.")
    wrong = next((step for step in checkpoints if not isinstance(step, int | float)), None)
    if wrong is not None:
        raise SettingError(f"checkpoints= has {wrong!r} for a step. Give numbers: {{1000: checkpoint, 2000: …}}.")
    return sorted(checkpoints.items())


def check_checkpoints(adapter: Adapter, checkpoints: Sequence[tuple[Step, Any]]) -> None:
    """Refuse what is known not to fit before anything is run: names and shapes in memory, files that are not there.

    Raises:
        InputError: A checkpoint is of no kind that is accepted, or holds a tensor of another shape.
        StoreError: A file is missing.
        UnknownParameterError: A parameter is missing.
    """
    for step, given in checkpoints:
        if isinstance(given, nn.Module | Mapping):
            chosen_weights(adapter, read_checkpoint(adapter, given, step), step)
        elif isinstance(given, str | PathLike):
            _refuse_missing(given, step)
        elif not callable(given):
            raise InputError(f"The checkpoint of step {step} is a {type(given).__name__}. Give {_ACCEPTED}.")


def read_checkpoint(adapter: Adapter, given: Any, step: Step) -> dict[str, Tensor]:
    """A checkpoint's tensors by name.

    Cost: reads the file, asks the hub or calls the function; in memory, nothing is copied.

    Raises:
        InputError: It is none of what is accepted.
        StoreError: It cannot be read.
    """
    if callable(given) and not isinstance(given, nn.Module | Mapping):
        given = given()
    if isinstance(given, str | PathLike):
        _refuse_missing(given, step)
        given = given if _is_file(given) else _from_hub(adapter, str(given), step)
    if isinstance(given, nn.Module):
        return _tensors(adapter_for(given))
    try:
        found = read_state(given)
    except InputError as error:
        held = f" with {', '.join(map(repr, list(given)[:4]))}" if isinstance(given, Mapping) else ""
        raise InputError(
            f"The checkpoint of step {step} is a {type(given).__name__}{held}. Give {_ACCEPTED}; of a file that holds more "
            "than weights, take them out: lambda: torch.load(path)['model']."
        ) from error
    prefix = next((prefix for prefix in _PREFIXES if found and all(name.startswith(prefix) for name in found)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def chosen_weights(adapter: Adapter, found: Mapping[str, Tensor], step: Step) -> list[tuple[Tensor, Tensor]]:
    """Each of the model's tensors with the checkpoint's for it.

    Buffers that the checkpoint lacks stay as they are, but for the statistics of batch norm, which training changes.

    Raises:
        UnknownParameterError: A parameter is missing.
        InputError: One has another shape, or the checkpoint holds weights that the model has not.
    """
    names, pairs, missing = _names(adapter), [], []
    _refuse_others(found, {said for own in names.values() for said in own}, step)
    for name, tensor in _tensors(adapter).items():
        own = [said for said in names.get(id(tensor), [name]) if said in found]
        fitting = next((said for said in own if found[said].shape == tensor.shape), None)
        if fitting is not None:
            pairs.append((tensor, found[fitting]))
        elif own and _is_needed(name, tensor):
            raise InputError(
                f"{own[0]!r} has shape {tuple(found[own[0]].shape)} in the checkpoint of step {step} and "
                f"{tuple(tensor.shape)} in the model. Give checkpoints of this model."
            )
        elif _is_needed(name, tensor):
            missing.append(name)
    if missing:
        raise UnknownParameterError(
            f"The checkpoint of step {step} has no tensor for {missing[0]!r}{_and_more(missing)}. It holds {len(found)}; "
            f"nearest: {nearest(missing[0], list(found))}. Give all of the model's parameters, by its own names."
        )
    return pairs


@contextmanager
def lent(adapter: Adapter) -> Iterator[Callable[[Any, Step], None]]:
    """Gives a function that puts a checkpoint's weights into the model; on exit every bit is as it was.

    A checkpoint may be the model itself, or a state dict that shares its memory: what is meant are the weights that it had.

    Cost: a copy of the model's weights.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in _tensors(adapter).values()]
    own = {id(tensor): values for tensor, values in kept}

    def load(given: Any, step: Step) -> None:
        pairs = chosen_weights(adapter, read_checkpoint(adapter, given, step), step)
        _fill([(tensor, own[id(tensor)] if _shares(tensor, values) else values) for tensor, values in pairs])

    try:
        yield load
    finally:
        try:
            _fill(kept)
        except BaseException:
            _fill(kept)  # a Ctrl-C that fell into the restoration: finish it, then let it out
            raise


def _shares(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.device == other.device and one.numel() > 0 and one.data_ptr() == other.data_ptr())


def _fill(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, values in pairs:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor.copy_(values)


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones once."""
    return {view.name: view.stored for view in adapter.views().values()} | dict(adapter.module.named_buffers())


def _names(adapter: Adapter) -> dict[int, list[str]]:
    """What each tensor is called, by its id: the library's own name first, then those of state dicts and of users."""
    own = _tensors(adapter)
    said = [*own.items(), *adapter.module.state_dict(keep_vars=True).items()]
    said += [(alias, own[real]) for alias, real in adapter.aliases().items() if real in own]
    found: dict[int, list[str]] = {}
    for name, tensor in said:
        found.setdefault(id(tensor), []).append(name)
    return found


def _refuse_others(found: Mapping[str, Tensor], known: set[str], step: Step) -> None:
    """Refuse weights of other names: they would be left out, and those of a model that was not folded belong together."""
    others = [name for name in found if name not in known and not name.endswith(_FIXED) and _is_weight(found[name])]
    if others:
        raise InputError(
            f"The checkpoint of step {step} holds {others[0]!r}{_and_more(others)}, which the model has not. Give "
            "checkpoints of this model, processed as it was (folding LayerNorm and centring change names and weights), or "
            "leave these tensors out."
        )


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 0


def _is_needed(name: str, tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or name.endswith(_STATISTICS)


def _and_more(missing: Sequence[str]) -> str:
    return f" and {len(missing) - 1} more" if len(missing) > 1 else ""


def _is_file(given: str | PathLike) -> bool:
    return Path(given).suffix in _FILES or Path(given).is_file()


def _refuse_missing(given: str | PathLike, step: Step) -> None:
    is_local = isinstance(given, PathLike) or _is_file(given)
    if is_local and not Path(given).exists():
        raise StoreError(f"The checkpoint of step {step} is to be {str(given)!r}, where there is nothing. Give {_ACCEPTED}.")


def _from_hub(adapter: Adapter, where: str, step: Step) -> nn.Module:
    """A model of the same class out of a folder or from the hub, by its library's own call."""
    kind = type(adapter.module)
    if not any(base.__name__ == "PreTrainedModel" for base in kind.__mro__):
        raise InputError(
            f"The checkpoint of step {step} is {where!r}. Folders and revisions of the hub are read by Hugging Face models, "
            f"and this is a {kind.__name__}: give a function that loads it, such as lambda: {kind.__name__}."
            "from_pretrained(…), or a file."
        )
    name, _, revision = (where, "", "") if Path(where).is_dir() else where.partition("@")
    try:
        with torch.random.fork_rng(devices=[]):
            return kind.from_pretrained(name, **({"revision": revision} if revision else {}))  # pyright: ignore
    except OSError as error:
        raise StoreError(f"The checkpoint of step {step}, {where!r}, cannot be read: {error}") from error
