"""`param-features push`: a saved run to the Hugging Face hub, with its card."""

from pathlib import Path
from typing import Annotated

import typer

import param_features as pf
from param_features.cli import options
from param_features.cli.models import ModelSource
from param_features.cli.options import MODEL, OUTPUT, flag, option
from param_features.cli.viewing import load_run
from param_features.errors import SettingError
from param_features.files.hub import is_hub_name, local_path
from param_features.sharing import CARD, PushTarget, check_name, push_folder

CARD_PANEL = "Card"
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that decompose wrote.", show_default=False)]
Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.", show_default=False)]
Base = Annotated[
    str | None, option("--base-model", CARD_PANEL, "Its name on the hub.", metavar="NAME", show_default="--model's")
]
License = Annotated[str | None, option("--license", CARD_PANEL, "As the hub abbreviates it.", metavar="NAME")]
Data = Annotated[str | None, option("--data", CARD_PANEL, "What the features were fitted to, in words.", metavar="TEXT")]
Examples = Annotated[
    str | None, option("--model", MODEL, "Folder or hub name of the model, for top examples in the card.", metavar="NAME")
]


def push(
    folder: Folder,
    repo: Repo,
    *,
    private: Annotated[bool, flag("--private", OUTPUT, "Make a new repository private.")] = False,
    branch: Annotated[str | None, option("--branch", OUTPUT, "Where to.", metavar="NAME", show_default="main")] = None,
    model: Examples = None,
    library: options.LibraryName = "hf",
    device: options.Device = "cpu",
    dtype: options.DtypeName = "auto",
    base_model: Base = None,
    license: License = None,
    data: Data = None,
) -> None:
    """Push a saved run to the Hugging Face hub, and print the commit's address.

    A README.md in FOLDER goes as it is; without one a card is written, with top examples where --model is given. Held-out
    rows saved with the run go too: push no data that is not yours to publish. Log in with `hf auth login`, or set HF_TOKEN.
    """
    check_name(repo)
    card_options = {"--model": model, "--base-model": base_model, "--license": license, "--data": data}
    is_private = private or None
    if (folder / CARD).is_file():
        _refuse_unused(folder, [name for name, value in card_options.items() if value is not None])
        pf.load(folder)
        typer.echo(push_folder(folder, PushTarget(repo, private=is_private, branch=branch)))
        return
    card = pf.CardSettings(base_model=base_model or _hub_name(model), license=license, data=data)
    source = None if model is None else ModelSource(model, library, device, dtype)
    features = pf.load(folder) if source is None else load_run(str(folder), source)[0]
    typer.echo(features.push_to_hub(repo, card=card, private=is_private, branch=branch))


def _refuse_unused(folder: Path, names: list[str]) -> None:
    """Refuse options for a card that is written already.

    Raises:
        SettingError: Some were given; the message lists them.
    """
    if names:
        raise SettingError(
            f"{folder / CARD} goes to the hub as it is, and {', '.join(names)} would change nothing. Edit it and leave "
            "them out, or remove it to have a card written."
        )


def _hub_name(model: str | None) -> str | None:
    """The model's name where it was loaded from the hub."""
    return model if model is not None and model != "demo" and is_hub_name(model) and local_path(model) is None else None
