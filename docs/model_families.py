"""Writes docs/reference/model-families.md from what the library does on each family: `python -m docs.model_families`.

It needs what `make test` installs into .venv, and takes about two minutes.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

import torch

from tests.families import FAMILIES, Examination, Family, Findings

PAGE = Path(__file__).parent / "reference" / "model-families.md"
_MOST_NAMES = 6
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=_l)\d+|(?<=\[)\d+(?=\])")
"""A layer's or an expert's."""

HEAD = """# Model families

Every row is a tiny model with random weights, built as its library builds it. Held against autograd in float64 (float32
where a kernel takes no other) are the gradients of all its parameters, sample by sample, and the activations of features
of one parameter, by both routes. Steering all rows, and some (`where=`), is held against a weight edited by hand; afterwards
nothing of it is left, bit for bit. `python -m docs.model_families` writes this page; `make test` tests the commonest third,
and `make test-release` the others.

*Factored* parameters keep their gradients as products of inputs and output gradients, which is fast and small. *Dense* ones
take autograd's own, which is slower and gives the same answer. *Refused* is what ends in an error that says why.
"""


def page(findings: Mapping[Family, Findings]) -> str:
    """The page in markdown."""
    n_whole = sum(not (found.dense or found.refused) for found in findings.values())
    n_refused = sum("everything" in found.refused for found in findings.values())
    lines = [
        HEAD,
        f"Of {len(findings)} families {n_whole} work with every gradient factored, {len(findings) - n_whole - n_refused} "
        f"with some dense or with a call that is refused. Refused altogether: {n_refused}.",
    ]
    for group, families in groupby(findings, key=lambda family: family.group):
        lines += [
            f"\n## {group}\n",
            "| family | class | features of | factored | dense | refused |",
            "|---|---|---|---|---|---|",
        ]
        lines += [row(family, findings[family]) for family in families]
    return "\n".join([*lines, ""])


def row(family: Family, found: Findings) -> str:
    """The family's line in its table."""
    by_reason: dict[str, list[str]] = {}
    for name, why in found.dense.items():
        by_reason.setdefault(why.partition(":")[0], []).append(name)
    dense = "; ".join(f"{_names(names)}: {why}" for why, names in by_reason.items())
    refused = "; ".join(f"`{what}`: {str(error).partition('. ')[0]}" for what, error in found.refused.items())
    cells = [family.name, f"`{found.model}`", f"`{family.param}`", str(len(found.factored)), dense, refused]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _names(names: Iterable[str]) -> str:
    """The parameters' names, those of every layer once."""
    patterns = list(dict.fromkeys(_NUMBER.sub("N", name) for name in names))
    shown = ", ".join(f"`{name}`" for name in patterns[:_MOST_NAMES])
    return shown if len(patterns) <= _MOST_NAMES else f"{shown} and {len(patterns) - _MOST_NAMES} more"


def write() -> None:
    """Examine every family and write the page."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own notices
        PAGE.write_text(page({family: Examination.of(family).findings() for family in FAMILIES}))


if __name__ == "__main__":
    write()
