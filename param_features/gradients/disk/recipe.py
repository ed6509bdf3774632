"""What a store of gradients was made from, as JSON: two recipes that are equal give the same bits."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from param_features.errors import StoreError
from param_features.files import shown
from param_features.gradients.disk.compression import Compression
from param_features.gradients.sampling import HarvestSettings
from param_features.params import Adapter, ParamRecord, values_of
from param_features.problem import CustomDivergence, ModelInputs, Problem

Recipe = dict[str, Any]

_LABELS = {
    "weights": "the model's other weights",
    "data": "tokens= (or inputs=)",
    "partners": "the corrupted prompts",
    "divergence_code": "the code of divergence=",
    "output": "output=",
    "output_code": "the code of output=",
    "gradients.seed": "the seed of the gradients",
    "gradients.shard_mib": "the size of shards",
    "background": "the data of background=",
    "bits": "the training gradients themselves",
}
"""How entries whose names say too little are called in messages."""

_SINCE = {"compress_rank": None, "dtype": "float32", "positions": "all"}
"""What stores were made with before these were settings."""

_IN_MEMORY = ("max_memory_gib", "memory_dtype", "n_references", "n_examples")
"""Settings of a harvest that change nothing on disk."""


def recipe_of(
    problem: Problem, settings: HarvestSettings, *, seed: int, shard_mib: float, compression: Compression
) -> Recipe:
    """All that decides what a store holds. Cost: hashes the model's weights and the data."""
    divergence, output = problem.divergence, problem.adapter.given_output
    fingerprints = problem.subset.fingerprint()
    recipe = {
        "params": {view.name: asdict(ParamRecord.of(view, fingerprints[view.name])) for view in problem.subset.views},
        "weights": _weights(problem.adapter),
        "data": sum_of_data(problem.data),
        "partners": None if problem.pairs is None else sum_of_data(problem.pairs.corrupted),
        "divergence": divergence.name,
        "divergence_code": _code(divergence.function) if isinstance(divergence, CustomDivergence) else None,
        "output": None if output is None else getattr(output, "__name__", type(output).__name__),
        "output_code": None if output is None else _code(output),
        "reference": problem.reference if isinstance(problem.reference, str) else f"given {_tensor(problem.reference)}",
        "seed": seed,
        "shard_mib": shard_mib,
        "compress_rank": compression.rank,
        "dtype": compression.dtype,
    }
    positions = problem.positions.given
    if not isinstance(positions, str) or positions != "all":
        recipe["positions"] = _positions(positions)
    sampling = {name: value for name, value in asdict(settings).items() if name not in _IN_MEMORY}
    return json.loads(json.dumps(recipe | sampling))


def settings_of(recipe: Recipe) -> HarvestSettings:
    """The settings that a recipe records."""
    return HarvestSettings(**{name: recipe[name] for name in asdict(HarvestSettings()) if name in recipe})


def refuse_differences(
    recorded: Recipe, wanted: Recipe, *, where: str, then: str, was: str = "was harvested from something else"
) -> None:
    """Refuse what differs from a recipe that was followed before.

    Raises:
        StoreError: Names every difference, with both values.
    """
    recorded, wanted = ({**_SINCE, **recipe} for recipe in (recorded, wanted))
    differences = [
        line for name in recorded if recorded[name] != wanted.get(name) for line in _lines(name, recorded, wanted)
    ]
    if differences:
        raise StoreError(f"{where} {was}: {'; '.join(differences)}. {then}")


def _lines(name: str, recorded: Recipe, wanted: Recipe) -> list[str]:
    if name == "params":
        return _param_lines(recorded[name], wanted.get(name, {}))
    if name == "weights" and recorded.get("params") != wanted.get("params"):
        return []
    return [f"{_LABELS.get(name, name + '=')} {_short(wanted.get(name))}, there {_short(recorded[name])}"]


def _param_lines(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    if list(recorded) != list(wanted):
        return [f"params= chooses {', '.join(wanted)}, there {', '.join(recorded)}"]
    changed = [name for name in recorded if recorded[name] != wanted[name]]
    return [f"the weights of {', '.join(map(repr, changed))} have changed"]


def _short(value: Any) -> str:
    if not isinstance(value, str):
        return shown(value, 200)
    *kind, last = value.split(" ")
    return " ".join([*kind, f"{last[:8]}…"]) if len(last) == 64 and len(kind) < 4 else shown(value, 200)


def _weights(adapter: Adapter) -> str:
    """SHA-256 of every parameter and saved buffer, by name."""
    tensors = {name: values_of(view) for name, view in adapter.views().items()}
    for prefix, module in adapter.module.named_modules():
        saved = {name: tensor for name, tensor in module._buffers.items() if name not in module._non_persistent_buffers_set}
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in saved.items() if tensor is not None}
    return _sha(*(part for name in sorted(tensors) for part in (name.encode(), _tensor(tensors[name]).encode())))


def sum_of_data(inputs: ModelInputs) -> str:
    """SHA-256 of every argument, of the mask and of the targets."""
    named = {f"args/{place}": value for place, value in enumerate(inputs.args)} | inputs.kwargs | {"mask": inputs.mask}
    named |= {} if inputs.targets is None else {"targets": inputs.targets}
    values = {name: _tensor(value) if isinstance(value, Tensor) else repr(value) for name, value in named.items()}
    return _sha(json.dumps(values, sort_keys=True).encode())


def _positions(given: Any) -> Any:
    if isinstance(given, Tensor):
        return f"mask {_tensor(given)}"
    if isinstance(given, slice):
        return {"slice": [given.start, given.stop, given.step]}
    return {"function": getattr(given, "__name__", type(given).__name__), "code": _code(given)} if callable(given) else given


def _tensor(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return _sha(f"{data.dtype} {tuple(data.shape)}".encode(), data.reshape(-1).view(torch.uint8).numpy().data)


def _code(function: Callable) -> str | None:
    """SHA-256 of a function's code; None of other callables. What it closes over is not seen."""
    code = getattr(function, "__code__", None)
    return None if code is None else _sha(repr(_constants(code)).encode())


def _constants(code: CodeType) -> tuple[Any, ...]:
    inner = tuple(_constants(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    return code.co_code, code.co_names, inner


def _sha(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
