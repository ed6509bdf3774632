"""`param-features harvest`: gradients to a folder, for any number of decompositions."""

from pathlib import Path
from typing import Annotated

import typer

import param_features as pf
from param_features.cli import options
from param_features.cli.datasets import DataSource
from param_features.cli.decompose_command import DivergenceName, NSamples, OptionalReferenceName, Params, Seed, load_both
from param_features.cli.models import ModelSource
from param_features.cli.options import OUTPUT, option, path_option
from param_features.cli.rows import RowSettings
from param_features.machine import launched

_OUT = "Folder for the gradients: new, or of a harvest with the same options, which goes on."
_SHARD = "Size of a shard; what a kill loses at most."


def harvest(
    *,
    model: options.ModelName,
    library: options.LibraryName = "hf",
    device: options.Device = "cpu",
    dtype: options.DtypeName = "auto",
    dataset: options.DatasetName,
    text_field: options.TextField = "text",
    sample_by: options.SampleByName = "line",
    split: options.Split = "train",
    subset: options.Subset = None,
    n_ctx: options.NCtx = None,
    n_rows: options.NRows = 4096,
    pack: options.Pack = False,
    positions: options.Positions = "all",
    params: Params,
    n_samples: NSamples = None,
    seed: Seed = 0,
    divergence: DivergenceName = "auto",
    reference: OptionalReferenceName = None,
    out: Annotated[Path, path_option("--out", OUTPUT, _OUT, metavar="FOLDER")],
    shard_mib: Annotated[float, option("--shard-mib", OUTPUT, _SHARD, metavar="MIB")] = 256,
    quiet: options.Quiet = False,
) -> None:
    """Take gradients once and keep them, for decompose --store with any number of features, rank and l0.

    Processes that accelerate launched share the shards. A harvest that was killed goes on when it is called again.
    """
    quiet = quiet or not launched().is_main
    data = DataSource(dataset, text_field, sample_by, split, subset)
    source, rows = ModelSource(model, library, device, dtype), RowSettings(n_ctx, n_rows, pack)
    loaded, tokens = load_both(source, data, rows, quiet=quiet)
    store = pf.harvest(
        loaded.model,
        params,
        tokens,
        directory=out,
        positions=options.positions_of(positions),
        tokenizer=loaded.tokenizer,
        n_samples=n_samples,
        shard_mib=shard_mib,
        seed=seed,
        divergence=divergence,
        reference=reference or "sample",
        progress=not quiet,
    )
    if launched().is_main:
        typer.echo(repr(store))
