"""`param-features list-params`: what can be decomposed."""

from collections.abc import Sequence

import typer

import param_features as pf
from param_features.cli import options
from param_features.cli.models import ModelSource, load_model
from param_features.params import ParamInfo


def list_params(
    model: options.ModelName,
    *,
    library: options.LibraryName = "hf",
    device: options.Device = "cpu",
    dtype: options.DtypeName = "auto",
) -> None:
    """Print every parameter's name, shape, size, and parts if it is a fused matrix.

    A part is chosen by its name in brackets: 'transformer.h.0.attn.c_attn.weight[k]'. Tied weights are listed once.
    """
    loaded = load_model(ModelSource(model, library, device, dtype))
    typer.echo(params_table(pf.list_params(loaded.model)))


def params_table(params: Sequence[ParamInfo]) -> str:
    """A table of parameters in aligned columns; the last one is left out where no matrix has parts."""
    rows = [("name", "shape", "size", "parts")]
    rows += [(info.name, " x ".join(map(str, info.shape)), f"{info.n_params:,}", " ".join(info.parts)) for info in params]
    names, shapes, sizes, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    has_parts = any(info.parts for info in params)
    lines = [
        f"{name:<{names}}  {shape:<{shapes}}  {size:>{sizes}}  {parts if has_parts else ''}"
        for name, shape, size, parts in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
