"""The command: `python -m benchmarks.bench [--seeds N] [--quick] [--only NAME] [--out FOLDER]`."""

from collections.abc import Sequence

import typer

from benchmarks.bench.command import bench
from param_features.cli.running import run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suite, print the table as it grows, and save it with every seed's values."""
    app = typer.Typer(add_completion=False)
    app.command()(bench)
    run(app, arguments, "python -m benchmarks.bench")


if __name__ == "__main__":
    main()
