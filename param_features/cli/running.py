"""How a command ends: errors in one line on the error stream with status 2, Ctrl-C with 130."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from tqdm import tqdm

from param_features.errors import Notice, ParamFeaturesError

FAILED, INTERRUPTED = 2, 130


def run(app: typer.Typer, arguments: Sequence[str] | None, name: str) -> None:
    """Run the commands of `app` and end the process.

    Args:
        app: The commands.
        arguments: What follows the program's name; the process's own when None.
        name: The program's name in help.

    Raises:
        SystemExit: Always, with the status.
    """
    try:
        with _notices_said():
            status = app(arguments, prog_name=name, standalone_mode=False) or 0
    except typer.TyperException as error:
        raise SystemExit(_misused(error)) from error
    except (ParamFeaturesError, OSError) as error:
        raise SystemExit(_failed(str(error))) from error
    except typer.Abort:
        status = INTERRUPTED
    if status == INTERRUPTED:
        say("Interrupted.")
    raise SystemExit(status)


def say(message: str) -> None:
    """Print a line on the error stream."""
    typer.echo(message, err=True)


def silence(is_wanted: bool) -> bool:
    """Silence notices until the command ends, where that is wanted, which is returned."""
    if is_wanted:
        warnings.simplefilter("ignore", Notice)
    return is_wanted


@contextmanager
def _notices_said() -> Iterator[None]:
    """Run a block in which a `Notice` is a line on the error stream, without the place in the code that it comes from."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, Notice):
                tqdm.write(str(message), file=sys.stderr)
            else:
                show(message, category, *place)

        warnings.showwarning = shown
        yield


def _failed(message: str) -> int:
    say(f"Error: {' '.join(message.split())}")
    return FAILED


def _misused(error: typer.TyperException) -> int:
    """Print what is wrong with the arguments and whose `--help` to read; nothing where help has just been printed."""
    message = error.format_message().strip()
    context = getattr(error, "ctx", None)
    if not message:
        return FAILED
    advice = "" if context is None else f" See: {context.command_path} --help"
    return _failed(f"{message}{advice}")
