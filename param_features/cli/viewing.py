"""`param-features report` and `compare`: a saved run as a page, and beside an SAE."""

from pathlib import Path
from typing import Annotated

import typer

import param_features as pf
from param_features.cli import options
from param_features.cli.datasets import DataSource
from param_features.cli.decompose_command import write_report
from param_features.cli.models import LoadedModel, ModelSource, load_model
from param_features.cli.options import DATA, OUTPUT, option, path_option
from param_features.cli.rows import RowSettings, check_data, load_rows
from param_features.errors import SourceError
from param_features.features import Featured
from param_features.files.hub import features_place
from param_features.run import bind

_RUN = "Folder that decompose wrote, or OWNER/NAME[@REVISION] on the hub."
Run = Annotated[str, typer.Argument(metavar="RUN", help=_RUN, show_default=False)]
Page = Annotated[
    Path | None,
    path_option("--out", OUTPUT, "The page.", metavar="FILE", show_default="report.html, in RUN if it is a folder"),
]
HookName = Annotated[
    str | None, option("--hook-name", DATA, "Where the SAE reads.", metavar="NAME", show_default="as the SAE itself says")
]


def report(
    run: Run,
    *,
    model: options.ModelName,
    library: options.LibraryName = "hf",
    device: options.Device = "cpu",
    dtype: options.DtypeName = "auto",
    sae: options.OptionalSaeFolder = None,
    hook_name: HookName = None,
    dataset: options.OptionalDatasetName = None,
    text_field: options.TextField = "text",
    sample_by: options.SampleByName = "line",
    split: options.Split = "train",
    subset: options.Subset = None,
    n_ctx: options.NCtx = None,
    n_rows: options.NRows = 256,
    pack: options.Pack = False,
    out: Page = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a saved run as one HTML page that needs no network.

    Examples come from --dataset, or from the held-out rows saved with the run. With --sae, SAE features stand beside them.
    """
    source = ModelSource(model, library, device, dtype)
    data = None if dataset is None else DataSource(dataset, text_field, sample_by, split, subset)
    check_sources(source, data, sae)
    features, loaded = load_run(run, source)
    tokens = None if data is None else load_rows(loaded, source, data, RowSettings(n_ctx, n_rows, pack), quiet=quiet)
    write_report(features, out or _page_of(run), tokens=tokens, sae=sae, hook_name=hook_name, quiet=quiet)


def compare(
    run: Run,
    *,
    model: options.ModelName,
    library: options.LibraryName = "hf",
    device: options.Device = "cpu",
    dtype: options.DtypeName = "auto",
    sae: options.SaeFolder,
    hook_name: HookName = None,
    dataset: options.DatasetName,
    text_field: options.TextField = "text",
    sample_by: options.SampleByName = "line",
    split: options.Split = "train",
    subset: options.Subset = None,
    n_ctx: options.NCtx = None,
    n_rows: options.NRows = 256,
    pack: options.Pack = False,
    quiet: options.Quiet = False,
) -> None:
    """Print which features of a saved run go with which features of an SAE, on the same tokens."""
    source = ModelSource(model, library, device, dtype)
    data = DataSource(dataset, text_field, sample_by, split, subset)
    check_sources(source, data, sae)
    features, loaded = load_run(run, source)
    tokens = load_rows(loaded, source, data, RowSettings(n_ctx, n_rows, pack), quiet=quiet)
    typer.echo(repr(pf.compare(features, sae, tokens, hook_name=hook_name)))


def check_sources(model: ModelSource, data: DataSource | None, sae: Path | None) -> None:
    """Refuse data and SAEs that are not there, before any model is loaded.

    Raises:
        SourceError: The folder holds no SAE, or the data are not there.
        SettingError: The data belong to another model.
    """
    if data is not None:
        check_data(data, model)
    if sae is not None and not any((sae / name).is_file() for name in ("cfg.json", "ae.pt")):
        raise SourceError(
            f"--sae {sae} holds no cfg.json, so it is no SAE that SAELens saved, and no ae.pt of dictionary_learning. Give "
            "a folder that SAELens' save_inference_model wrote, or dictionary_learning's trainSAE."
        )


def load_run(run: str, source: ModelSource) -> tuple[Featured, LoadedModel]:
    """Load a saved run and its model, and bind them; files are fetched and checked before the model is loaded."""
    features = pf.load(run)
    loaded = load_model(source)
    return bind(features, loaded.model, tokenizer=loaded.tokenizer), loaded


def _page_of(run: str) -> Path:
    place = features_place(run)
    return place / "report.html" if isinstance(place, Path) else Path("report.html")
