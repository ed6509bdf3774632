"""The program `param-features`: its commands, and where they are written."""

from collections.abc import Sequence
from typing import Annotated

import typer

from param_features.cli.decompose_command import decompose
from param_features.cli.demo_command import demo
from param_features.cli.harvest_command import harvest
from param_features.cli.listing import list_params
from param_features.cli.pushing import push
from param_features.cli.running import run
from param_features.cli.viewing import compare, report
from param_features.files import library_version

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, list_params, harvest, decompose, report, compare, push):
    app.command()(command)


def _show_version(is_wanted: bool) -> bool:
    if is_wanted:
        typer.echo(f"param_features {library_version()}")
        raise typer.Exit
    return is_wanted


@app.callback()
def program(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, metavar=" ", callback=_show_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Parameter features: low-rank directions in a model's weights, each of which matters for few inputs."""


def main(arguments: Sequence[str] | None = None, *, name: str = "param-features") -> None:
    """Run a command and end the process: status 0, 2 after an error, 130 after Ctrl-C.

    Args:
        arguments: What follows the program's name; the process's own when None.
        name: The program's name in help.
    """
    run(app, arguments, name)
