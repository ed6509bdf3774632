"""Features as a LoRA adapter in peft's own files: `W + Σ δ_k v_k` wherever peft runs."""

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from param_features.errors import ExportError, MissingExtraError
from param_features.files import new_file, new_folder
from param_features.fitted import Fitted
from param_features.intervene.calls import TWO_ROWS, refuse_other_uses
from param_features.intervene.folder import check_replaceable, write_folder
from param_features.intervene.layers import Layer, layers_of
from param_features.intervene.stacks import Stack, is_in_stack, stacks_of
from param_features.intervene.steer import read_coefficients

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KNOWN = (CONFIG, WEIGHTS, "README.md")


def peft() -> Any:
    """Import peft, which only LoRA adapters need.

    Raises:
        MissingExtraError: It cannot be imported.
    """
    try:
        import peft as library
    except ImportError as error:
        raise MissingExtraError(
            f"LoRA adapters need peft, and the import failed: {error}. peft from 0.17 up is accepted. Run: pip install "
            '"param_features[hf]".'
        ) from error
    return library


def write_lora(
    features: Fitted,
    path: str | PathLike,
    coefficients: Mapping[int, float],
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the adapter of Σ δ_k v_k; the features are bound to the model that peft wraps. See `features.to_lora`."""
    library = peft()
    coefficients = read_coefficients(coefficients, features.check_feature)
    folder = new_file(path, "adapter") if not os.path.isdir(path) else new_folder(path)
    check_replaceable(folder, _KNOWN)
    engine = features.bound_engine("to_lora")
    directions, steps = features.v_out.rows(list(coefficients)), list(coefficients.values())
    layers = layers_of(engine, directions, steps, [view for view in engine.subset.views if not is_in_stack(view)])
    stacks = stacks_of(engine, directions, steps)
    config = _config(library, engine.adapter.module, layers, stacks)
    refuse_other_uses(engine, [*layers, *stacks], features.examples or TWO_ROWS)
    factors = [layer.tensors(has_bias=config.lora_bias) for layer in layers] + [stack.tensors(config.r) for stack in stacks]
    tensors = {key: tensor.to(dtype) for of_layer in factors for key, tensor in of_layer.items()}
    about = {"format": "pt", "param_features": json.dumps({str(k): float(step) for k, step in coefficients.items()})}

    def fill(unfinished: Path) -> None:
        config.save_pretrained(str(unfinished))
        save_file({key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}, unfinished / WEIGHTS, about)

    return write_folder(folder, fill)


def _config(library: Any, module: torch.nn.Module, layers: list[Layer], stacks: list[Stack]) -> Any:
    """The description for peft: each layer by its full name, with a rank of its own, and a scaling of 1.

    Raises:
        ExportError: peft cannot hold all of these in one adapter.
    """
    rank = max(layer.rank for layer in [*layers, *stacks])
    _refuse_beside_stacks(layers, stacks)
    ranks = {f"^{_escaped(layer.name)}": layer.rank for layer in layers if layer.rank != rank}
    settings = getattr(module, "config", None)
    return library.LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=_targets([layer.name for layer in layers], [name for name, _ in module.named_modules()]),
        target_parameters=[f"{stack.name}.{stack.attribute}" for stack in stacks] or None,
        lora_dropout=0.0,
        lora_bias=_has_bias(layers),
        fan_in_fan_out=any(layer.kind == "conv1d" for layer in layers),
        task_type=_task(module),
        base_model_name_or_path=getattr(settings, "name_or_path", None) or None,
        inference_mode=True,
    )


def _targets(names: list[str], known: list[str]) -> list[str] | str:
    """The layers' names, or an expression where peft, which matches ends of names, would find further layers by them."""
    is_clear = not any(module.endswith(f".{name}") for name in names for module in known)
    return names if is_clear else "|".join(map(_escaped, names))


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _refuse_beside_stacks(layers: list[Layer], stacks: list[Stack]) -> None:
    """Refuse what peft cannot hold in one adapter with experts: biases, and transformers' Conv1D."""
    wrong = [layer.name for layer in layers if layer.bias is not None or layer.kind == "conv1d"]
    if stacks and wrong:
        raise ExportError(
            f"The features move experts of {stacks[0].name!r}, and a bias or the Conv1D of {wrong[0]!r}, which peft does "
            "not hold in one adapter. Use features of other parameters, or features.edit(model, …)."
        )


def _has_bias(layers: list[Layer]) -> bool:
    """Whether the adapter holds biases, which peft gives to every layer of an adapter or to none.

    Raises:
        ExportError: There is an embedding among the layers, which has none.
    """
    with_bias = [layer.name for layer in layers if layer.bias is not None]
    tables = [layer.name for layer in layers if layer.kind == "embedding"]
    if with_bias and tables:
        raise ExportError(
            f"The features move the bias of {with_bias[0]!r} and the embedding {tables[0]!r}. peft gives a bias to every "
            "layer of an adapter or to none, and embeddings take none. Use features of other parameters, or "
            "features.edit(model, …)."
        )
    return bool(with_bias)


def _task(module: torch.nn.Module) -> str | None:
    """The name in peft of what the model does; None where the model does not generate."""
    can_generate = getattr(module, "can_generate", None)
    if can_generate is None or not can_generate():
        return None
    return "SEQ_2_SEQ_LM" if getattr(getattr(module, "config", None), "is_encoder_decoder", False) else "CAUSAL_LM"
