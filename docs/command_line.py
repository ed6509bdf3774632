"""Writes docs/reference/api/command-line.md from the program itself: `python docs/command_line.py`."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from param_features.cli.app import app

PAGE = Path(__file__).parent / "reference" / "api" / "command-line.md"

HEAD = """# Command line

`param-features COMMAND --help` prints the same. Tables go to the output stream, progress and notices to the error stream.
An error is one line with status 2. Ctrl-C ends with status 130 and, during a fit, saves what is found so far.

```sh
param-features decompose --model ./stories260K --params model.layers.2.self_attn.k_proj.weight \\
    --dataset tinystories_500.json --n-samples 8000 --steps 200 --out runs/x
param-features report runs/x --model ./stories260K --out report.html
param-features compare runs/x --model ./stories260K --sae runs/sae --dataset tinystories_500.json
```

`--model` is a folder of a Hugging Face model, its name on the hub, or `demo`. `--dataset` is a .txt, .md, .jsonl or .json
file or a name on the hub. A text file has one text a line (`--sample-by paragraph`: blank lines divide them; `document`:
the whole file is one). Each text is cut into full rows of `--n-ctx` tokens; `--pack` joins short ones. What exists here is
never looked up on the hub, nor is what reads like a path; folders are read without network. Extra `hf` brings transformers
and datasets.
"""


def command_line_page() -> str:
    """The page in markdown: every command, its arguments and options."""
    commands = [command.callback for command in app.registered_commands]
    return "\n".join([HEAD, *(line for command in commands for line in _section(command))])


def _section(command: Callable[..., None]) -> Iterator[str]:
    name, parameters = command.__name__.replace("_", "-"), inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    infos = {key: hints[key].__metadata__[0] for key in parameters}
    arguments = [info.metavar or key.upper() for key, info in infos.items() if not isinstance(info, OptionInfo)]
    yield f"## {name}\n\n```sh\n{' '.join(['param-features', name, *arguments])}\n```\n"
    yield inspect.getdoc(command) or ""
    yield "\n| option | meaning | default |\n|---|---|---|"
    for key, info in infos.items():
        yield _row(info, hints[key], parameters[key].default)
    yield ""


def _row(info: Any, hint: Any, default: Any) -> str:
    """One line of a command's table."""
    kinds = [kind for kind in get_args(get_args(hint)[0]) or [get_args(hint)[0]]]
    choices = next((get_args(kind) for kind in [get_args(hint)[0], *kinds] if get_origin(kind) is Literal), ())
    is_option = isinstance(info, OptionInfo)
    metavar = (info.metavar or "").strip() or ("" if bool in kinds else "\\|".join(choices) or "VALUE")
    names = [name for name in [info.default, *(info.param_decls or ())] if isinstance(name, str)] if is_option else []
    told = default if isinstance(info.show_default, bool) else info.show_default
    if default is inspect.Parameter.empty:
        told = "required"
    elif told is None or isinstance(told, bool):
        told = ""
    written = f"{', '.join(names)} {metavar}".strip()
    return f"| `{written}` | {info.help or ''} | {told} |"


if __name__ == "__main__":
    PAGE.write_text(command_line_page())
