"""The picture of ten components of a real model that a person can read, and of ten that cannot be read.

    python -m docs.component_pictures FOLDER FIT [--rows 300] [--page FILE]

FOLDER holds `load_stories.py` with `load_hooked()` and `load_tokens()`; FIT is what `components.save_pretrained` wrote.
Writes docs/pictures/components.png, prints a line for each component shown, and needs what `docs/pictures.py` needs.

The rule that chooses: take a component's top 20 examples, each of another text. Its *purity* is the share of them in which
the most frequent token stands, at the place itself, before it or after it, whichever is largest. Of the components that are
needed (importance above 0.1) in 20 texts at least, the ten purest and the ten least pure are drawn, at most two of a matrix;
among equals those with the larger sum of the three shares are the purer. Beside them is printed the purity of 20 random
samples.
"""

import argparse
import html
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import torch
from torch import Tensor

import param_features as pf
from benchmarks.stories import stories_in
from docs.pictures import FOLDER, photograph, shrink
from param_features.measure.examples import Example, top_examples
from param_features.views import TokenRow

N_TOP, N_SHOWN, N_OF_MATRIX, N_LINES, N_DRAWS, NEEDED = 20, 10, 2, 2, 1000, 0.1
BEFORE, AFTER = 9, 2
PLACES = {"here": 0, "before": -1, "after": 1}


@dataclass(frozen=True)
class Read:
    """A component with its top examples.

    Attributes:
        number: Numbered through all matrices.
        matrix: The parameter's name.
        density: Share of samples on which it is needed.
        examples: Its top examples.
        shares: Of the most frequent token, with the token, by place.
    """

    number: int
    matrix: str
    density: float
    examples: tuple[Example, ...]
    shares: dict[str, tuple[float, str]]

    @property
    def purity(self) -> tuple[float, float]:
        """By which components are ordered."""
        values = [share for share, _ in self.shares.values()]
        return max(values), sum(values)

    @property
    def title(self) -> str:
        """What is said of it."""
        place, (share, token) = max(self.shares.items(), key=lambda item: item[1][0])
        return f"{self.matrix}, component {self.number}: density {self.density:.3f}; {share:.0%} have {token!r} {place}"


def main() -> None:
    """Choose, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("fit", type=Path)
    parser.add_argument("--rows", type=int, default=300, help="texts in which to look: the last ones")
    parser.add_argument("--page", type=Path, help="where to keep the page that is photographed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stories = stories_in(asked.folder)
    components = pf.load(asked.fit, model=stories.load_hooked())
    tokens = stories.load_tokens()[-asked.rows :]
    read = read_components(components, tokens)
    pure, impure = extremes(read)
    middle, high = purities_at_random(strings_of(components, tokens))
    lists = {
        f"The {len(pure)} purest of {len(read)} components": pure,
        f"The {len(impure)} least pure": impure,
    }
    print(f"{N_TOP} samples at random: purity {middle:.0%}, 95 draws of 100 below {high:.0%}")
    for title, chosen in lists.items():
        print("\n  ".join([title, *(each.title for each in chosen)]))
    with tempfile.TemporaryDirectory() as folder:
        page = asked.page or Path(folder) / "components.html"
        page.write_text(drawn(lists), encoding="utf-8")
        photograph(page.resolve(), FOLDER / "components.png", height=1250)
        shrink(FOLDER / "components.png")


def strings_of(components: pf.ParamComponents, tokens: Tensor) -> list[list[str]]:
    """Every text as strings."""
    adapter = components.bound_engine("strings").adapter
    return [adapter.to_strings(row) for row in tokens.tolist()]


def read_components(components: pf.ParamComponents, tokens: Tensor) -> list[Read]:
    """Those that are needed in enough texts."""
    acts, rows = components.activations(tokens), tokens.tolist()
    to_strings = components.bound_engine("strings").adapter.to_strings
    is_needed = acts > NEEDED
    read = []
    for number in (is_needed.any(1).sum(0) >= N_TOP).nonzero().flatten().tolist():
        examples = top_examples(acts, number, rows, to_strings, n=N_TOP)
        density = float(is_needed[..., number].double().mean())
        places = [(each.tokens, each.position) for each in examples]
        read.append(Read(number, components.site(number)[0], density, tuple(examples), shares_of(places)))
    return read


def shares_of(places: Sequence[tuple[Sequence[str], int]]) -> dict[str, tuple[float, str]]:
    """Of the most frequent token at, before and after some places of texts: its share and the token."""
    shares = {}
    for name, offset in PLACES.items():
        near = [row[position + offset] for row, position in places if 0 <= position + offset < len(row)]
        token, count = Counter(near).most_common(1)[0] if near else ("", 0)
        shares[name] = count / len(places), token
    return shares


def purities_at_random(strings: list[list[str]]) -> tuple[float, float]:
    """Median purity of random samples, one from each of as many random texts, and the 95th percentile."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(N_DRAWS):
        chosen = [strings[row] for row in torch.randperm(len(strings), generator=generator)[:N_TOP].tolist()]
        places = [(row, int(torch.randint(len(row), (), generator=generator))) for row in chosen]
        drawn.append(max(share for share, _ in shares_of(places).values()))
    hundredths = quantiles(drawn, n=100)
    return hundredths[49], hundredths[94]


def extremes(read: list[Read]) -> tuple[list[Read], list[Read]]:
    """The purest and the least pure, few of a matrix, none twice."""
    order = sorted(read, key=lambda each: each.purity, reverse=True)
    pure = first(order)
    return pure, first([each for each in reversed(order) if each not in pure])


def first(order: Sequence[Read]) -> list[Read]:
    """The first ten, at most two of a matrix."""
    taken: Counter[str] = Counter()
    chosen = []
    for each in order:
        if taken[each.matrix] < N_OF_MATRIX and len(chosen) < N_SHOWN:
            taken[each.matrix] += 1
            chosen.append(each)
    return chosen


def drawn(lists: dict[str, list[Read]]) -> str:
    """The page: a column for each list."""
    columns = "".join(
        f"<div class=column><h2>{html.escape(title)}</h2>{''.join(map(card, chosen))}</div>"
        for title, chosen in lists.items()
    )
    style = (
        "body { font: 10.5px/1.35 system-ui, sans-serif; margin: 8px } .columns { display: flex; gap: 14px } "
        ".column { flex: 1; min-width: 0 } h2 { font-size: 13px; margin: 2px 0 6px } "
        "p { margin: 6px 0 0; font-weight: 600 } "
        ".line > div { white-space: nowrap !important; overflow: hidden }"
    )
    head = f'<meta charset="utf-8"><title>Components</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><div class=columns>{columns}</div></body></html>'


def card(read: Read) -> str:
    """A component: what is said of it, and its first examples."""
    return f"<p>{html.escape(read.title)}</p>" + "".join(
        f"<div class=line>{line(each)}</div>" for each in read.examples[:N_LINES]
    )


def line(example: Example) -> str:
    """A window of text, its importances as colours, the place marked."""
    start = max(0, example.position - BEFORE)
    window = slice(start, example.position + AFTER + 1)
    values = example.activations[window]
    return TokenRow("", example.tokens[window], values, example.position - start).static(1.0)


if __name__ == "__main__":
    main()
