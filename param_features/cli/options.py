"""Options that several commands share, each declared once, in the groups in which help shows them."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from param_features.cli.datasets import SampleBy
from param_features.cli.models import Dtype, Library
from param_features.cli.running import silence
from param_features.problem import read_positions

MODEL, DATA, FIT, OUTPUT = "Model", "Data", "Fit", "Output"


def option(name: str, group: str, help: str, *short_names: str, **settings: Any) -> Any:
    """Declare an option of a group."""
    return typer.Option(name, *short_names, rich_help_panel=group, help=help, **settings)


def positions_of(text: str) -> str | int | slice:
    """Read `--positions`.

    Raises:
        SettingError: It is no name, number or range.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        return read_positions(text)
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    return read_positions(slice(*numbers) if len(numbers) in (2, 3) else text)


def path_option(name: str, group: str, help: str, *short_names: str, **settings: Any) -> Any:
    """Declare an option whose value is a path; a leading `~` is the user's folder."""
    return option(name, group, help, *short_names, parser=lambda text: Path(os.path.expanduser(text)), **settings)


def flag(name: str, group: str, help: str, *short_names: str, **settings: Any) -> Any:
    """Declare an option without a value."""
    return option(name, group, help, *short_names, metavar=" ", **settings)


_MODEL_NAME = "Folder of a Hugging Face model, its name on the hub, or 'demo', the embedded model."
_LIBRARY = "Whose model to make of it; parameters have that library's names."
_DTYPE = "Of the weights: float32, bfloat16, float16, float64, or the checkpoint's own."

ModelName = Annotated[str, option("--model", MODEL, _MODEL_NAME, metavar="NAME")]
LibraryName = Annotated[Library, option("--library", MODEL, _LIBRARY)]
Device = Annotated[str, option("--device", MODEL, "Where the model is, as torch names it.", metavar="NAME")]
DtypeName = Annotated[Dtype, option("--dtype", MODEL, _DTYPE, metavar="NAME")]

_POSITIONS = "Which positions of a row are samples: all, last, a number, or a range such as 10:-1; counted without padding."
_DATASET = "Texts: a .txt, .jsonl or .json file (a list of strings), a data set on the hub, or 'demo' with --model demo."
_TEXT_FIELD = "Where a row's text is, in JSON objects and hub data sets."
_SAMPLE_BY = "What one text of a text file is: a line, a paragraph (blank lines divide them), or the document."
_N_CTX = "Tokens per row; texts are cut into full rows, and what is left at their ends is left out."
_N_CTX_DEFAULT = "64, or the model's context if that is shorter"
_SAE = "Folder of an SAE that SAELens or dictionary_learning saved."

DatasetName = Annotated[str, option("--dataset", DATA, _DATASET, metavar="NAME")]
OptionalDatasetName = Annotated[str | None, option("--dataset", DATA, _DATASET, metavar="NAME")]
TextField = Annotated[str, option("--text-field", DATA, _TEXT_FIELD, metavar="NAME")]
SampleByName = Annotated[SampleBy, option("--sample-by", DATA, _SAMPLE_BY, metavar="KIND")]
Split = Annotated[str, option("--split", DATA, "Of a hub data set.", metavar="NAME")]
Subset = Annotated[str | None, option("--subset", DATA, "Of a hub data set that has several.", metavar="NAME")]
NCtx = Annotated[int | None, option("--n-ctx", DATA, _N_CTX, min=2, metavar="N", show_default=_N_CTX_DEFAULT)]
NRows = Annotated[int, option("--n-rows", DATA, "At most this many rows, the first ones.", min=1, metavar="N")]
Pack = Annotated[bool, flag("--pack", DATA, "Join texts, so that short ones fill rows too.")]
Positions = Annotated[str, option("--positions", DATA, _POSITIONS, metavar="WHICH")]
SaeFolder = Annotated[Path, path_option("--sae", DATA, _SAE, metavar="FOLDER")]
OptionalSaeFolder = Annotated[Path | None, path_option("--sae", DATA, _SAE, metavar="FOLDER")]

NewFolder = Annotated[Path, path_option("--out", OUTPUT, "Folder for the features, new or empty.", metavar="FOLDER")]
OptionalNewFolder = Annotated[
    Path | None, path_option("--out", OUTPUT, "Folder for the features, new or empty.", metavar="FOLDER")
]
_CHECKPOINTS = "Folder in which harvest and fit are kept as they go; the same command goes on from there after a kill."
CheckpointFolder = Annotated[
    Path | None, path_option("--checkpoint-dir", OUTPUT, _CHECKPOINTS, metavar="FOLDER", show_default="none kept")
]
Force = Annotated[bool, flag("--force", OUTPUT, "Write into a folder that is not empty.")]
Quiet = Annotated[bool, flag("--quiet", OUTPUT, "No progress or notices, only errors.", "-q", callback=silence)]
