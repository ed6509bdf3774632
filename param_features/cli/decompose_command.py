"""`param-features decompose`: from a model and texts to a folder of features with their controls."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import param_features as pf
from param_features.cli import options
from param_features.cli.datasets import DataSource
from param_features.cli.models import LoadedModel, ModelSource, load_model
from param_features.cli.options import DATA, FIT, OUTPUT, flag, option, path_option
from param_features.cli.rows import RowSettings, check_data, load_rows
from param_features.cli.running import INTERRUPTED, say
from param_features.errors import SettingError, SourceError
from param_features.features import Featured
from param_features.machine import launched

Method = Literal["l3d", "hessian", "components"]
Format = Literal["matrix", "cp", "tucker"]
Selection = Literal["pursuit", "top_k", "l1"]
Divergence = Literal["auto", "kl", "se", "sum"]
ReferenceName = Literal["sample", "mean", "uniform", "label"]


_REFERENCE = "What outputs are compared with: sample, mean, uniform or label."
_PARAMS = "A parameter's name or a glob, as list-params has them; may be repeated."
_STORE = "Gradients that harvest took, instead of --dataset and --params; what decided them is the store's."
Params = Annotated[list[str], option("--params", FIT, _PARAMS, metavar="NAME")]
OptionalParams = Annotated[list[str] | None, option("--params", FIT, _PARAMS, metavar="NAME")]
StoreFolder = Annotated[Path | None, path_option("--store", DATA, _STORE, metavar="FOLDER")]
DivergenceName = Annotated[Divergence, option("--divergence", FIT, "How far outputs lie apart.")]
OptionalReferenceName = Annotated[
    ReferenceName | None, option("--reference", FIT, _REFERENCE, metavar="KIND", show_default="sample")
]
_N_FEATURES = "How many features; of components, of each matrix."
NFeatures = Annotated[
    int | None,
    option("--n-features", FIT, _N_FEATURES, min=1, metavar="N", show_default="100; of components, by the shapes"),
]
L0 = Annotated[
    float | None,
    option("--l0", FIT, "Features kept per sample, on average.", metavar="N", show_default="a twentieth of the features"),
]
Rank = Annotated[int, option("--rank", FIT, "Factors per feature and parameter.", min=1, metavar="N")]
NSamples = Annotated[
    int | None,
    option("--n-samples", FIT, "Gradients to take.", min=1, metavar="N", show_default="as fit in memory, up to 65,536"),
]
Steps = Annotated[
    int | None, option("--steps", FIT, "Optimiser steps.", min=1, metavar="N", show_default="the method's own")
]
Seed = Annotated[int, option("--seed", FIT, "Of every random choice.", min=0, metavar="N")]
SelectionName = Annotated[
    Selection | None, option("--selection", FIT, "How l3d finds a sample's coordinates.", show_default="pursuit")
]


def decompose(
    *,
    model: options.ModelName,
    library: options.LibraryName = "hf",
    device: options.Device = "cpu",
    dtype: options.DtypeName = "auto",
    store: StoreFolder = None,
    dataset: options.OptionalDatasetName = None,
    text_field: options.TextField = "text",
    sample_by: options.SampleByName = "line",
    split: options.Split = "train",
    subset: options.Subset = None,
    n_ctx: options.NCtx = None,
    n_rows: options.NRows = 4096,
    pack: options.Pack = False,
    positions: options.Positions = "all",
    params: OptionalParams = None,
    n_features: NFeatures = None,
    l0: L0 = None,
    rank: Rank = 1,
    n_samples: NSamples = None,
    steps: Steps = None,
    seed: Seed = 0,
    divergence: DivergenceName = "auto",
    reference: OptionalReferenceName = None,
    format: Annotated[Format, option("--format", FIT, "How a feature is held during the fit.")] = "matrix",
    method: Annotated[Method, option("--method", FIT, "How the parameters are decomposed.")] = "l3d",
    selection: SelectionName = None,
    out: options.NewFolder,
    checkpoint_dir: options.CheckpointFolder = None,
    force: options.Force = False,
    report: Annotated[bool, flag("--report", OUTPUT, "Write report.html there too.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Decompose parameters of a language model: find directions or components, each of which matters for few inputs.

    Prints the held-out metrics beside their controls and saves the features in --out, where pf.load reads them. Ctrl-C
    during the fit saves what is found so far. Processes that accelerate launched share the work.
    """
    quiet = quiet or not launched().is_main
    check_vacant(out, is_forced=force)
    fit = _fit_settings(method, selection, rank, format)
    _check_store(store, dataset, params)
    source = ModelSource(model, library, device, dtype)
    data = None if dataset is None else DataSource(dataset, text_field, sample_by, split, subset)
    loaded, tokens = load_both(source, data, RowSettings(n_ctx, n_rows, pack), quiet=quiet)
    features = pf.decompose(
        loaded.model,
        params,
        tokens,
        store=store,
        positions=options.positions_of(positions),
        tokenizer=loaded.tokenizer,
        n_features=n_features,
        l0=l0,
        n_samples=n_samples,
        steps=steps,
        seed=seed,
        divergence=divergence,
        reference=reference,
        method=method,
        fit=fit,
        progress=not quiet,
        checkpoints=checkpoint_dir,
    )
    if launched().is_main:
        _save(features, out, report=report, quiet=quiet)
    _end_if_interrupted(features)


def _save(features: Featured, out: Path, *, report: bool, quiet: bool) -> None:
    """Print the metrics, and save the features."""
    typer.echo(repr(features))
    features.save_pretrained(out)
    if not quiet:
        say(f"Saved in {out}.")
    if report:
        write_report(features, out / "report.html", quiet=quiet)


def load_both(source: ModelSource, data: DataSource | None, rows: RowSettings, *, quiet: bool) -> tuple[LoadedModel, Any]:
    """Load the model, and rows of its data where there are any."""
    if data is not None:
        check_data(data, source)
    loaded = load_model(source)
    if not quiet:
        say(_brief(loaded))
    return loaded, None if data is None else load_rows(loaded, source, data, rows, quiet=quiet)


def _check_store(store: Path | None, dataset: str | None, params: list[str] | None) -> None:
    """Refuse a run without data or parameters, and data beside a store.

    Raises:
        SettingError: A store and a data set are given, or neither a store nor data and parameters.
    """
    if store is None and (dataset is None or not params):
        missing = "--dataset" if dataset is None else "--params"
        raise SettingError(
            f"There is no {missing}. Give --dataset and --params, or --store with a folder that harvest wrote."
        )
    if store is not None and dataset is not None:
        raise SettingError(f"--dataset {dataset} beside --store {store}, which holds its own data. Leave one of them out.")


def write_report(
    features: Featured,
    path: Path,
    *,
    tokens: Any = None,
    sae: Path | None = None,
    hook_name: str | None = None,
    quiet: bool = False,
) -> None:
    """Write the features as one page, and print a notice of where it is."""
    written = features.report(path, tokens=tokens, sae=sae, hook_name=hook_name)
    if not quiet:
        say(f"Report: {written}")


def check_vacant(folder: Path, *, is_forced: bool) -> None:
    """Refuse to write over something, before anything is computed.

    Raises:
        SourceError: `folder` is a file, or holds something and `is_forced` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"--out {folder} is a file. Give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not is_forced:
        raise SourceError(f"--out {folder} is not empty. Give another folder, or --force to write into this one.")


def _fit_settings(
    method: Method, selection: Selection | None, rank: int, format: Format
) -> pf.FitSettings | pf.HessianSettings | None:
    """Settings that differ from the method's own, None where none do.

    Raises:
        SettingError: The method has no selection, no formats, or no ranks.
    """
    if method == "l3d":
        settings = pf.FitSettings(rank=rank, format=format)
        settings = settings if selection is None else replace(settings, selection=selection)
        return None if settings == pf.FitSettings() else settings
    if selection is not None:
        raise SettingError(
            f"--selection {selection} with --method {method}. Selections belong to l3d: leave one of them out."
        )
    if format != "matrix":
        raise SettingError(f"--format {format} with --method {method}. Formats belong to l3d: leave one of them out.")
    if method == "components" and rank != 1:
        raise SettingError(f"--rank {rank} with --method components, which are of rank 1. Leave --rank out.")
    return None if rank == 1 else pf.HessianSettings(rank=rank)


def _end_if_interrupted(features: Featured) -> None:
    """End with the status of Ctrl-C if that ended the fit early.

    Raises:
        Exit: The fit ended early.
    """
    if features.config["steps_done"] < features.config["fit"]["steps"]:
        raise typer.Exit(INTERRUPTED)


def _brief(loaded: LoadedModel) -> str:
    """The model in a line, from what `pf.describe` tells."""
    model = pf.describe(loaded.model)
    layers = "" if model.n_layers is None else f", {model.n_layers} layers"
    kinds = f"{' and '.join(model.dtypes)} on {' and '.join(model.devices)}"
    tokens = model.tokens.removesuffix(", no tokenizer")
    return f"model: {model.library}{layers}, {model.n_params:,} parameters, {kinds}; {tokens}"
