"""How a command ends: errors in one line on the error stream with status 2, Ctrl-C with 130."""

from collections.abc import Sequence

import typer

from param_features.errors import ParamFeaturesError

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
    """Print a notice on the error stream."""
    typer.echo(message, err=True)


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
