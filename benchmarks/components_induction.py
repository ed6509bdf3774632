"""Components of the induction toy's attention: which of them carry its two steps, beside the heads that do.

    python -m benchmarks.components_induction [--seeds 3] [--first 0] [--steps 500] [--components 64] [--weight 3e-3]

Both layers' W_Q, W_K, W_V and W_O of a trained toy are decomposed together. A letter that repeats is foretold in two steps:
layer 0 writes at a letter which one stood before it, and layer 1 looks for the letter before which the present one stood.
Mirror images need the first step too, and other heads in the second. A step's components are chosen on rows of their own.
What each costs alone is counted in shares of what its layer's attention costs: where letters repeat, less elsewhere, and for
the second step less where letters are mirrored. In this order the fewest are taken that together cost half of what their
layer's attention costs where letters repeat.

The table says, of other rows, what going without them costs where letters repeat, where they are mirrored (nats of loss),
and elsewhere (KL from the model's own output). Beside them: random rank-1 matrices of equal norms in the same matrices
(median of five draws); as many other components of the same matrices, those nearest in norm; the layer's attention; the
heads of the known circuit, whole; and the other heads. Known are in layer 1 the heads whose prefix-matching score is at
least 0.5, in layer 0 those that alone cost a tenth of what their layer's attention costs. Last: how much of the chosen
components' norm² lies in the known heads, and how much of all components'.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

import param_features as pf
from benchmarks import toys
from benchmarks.toys.induction import Rows, draw_rows
from param_features.fit.components import MaskedModel, Masks, Parts
from param_features.gradients import GradientEngine, MatrixSite, sites_of
from param_features.problem import ModelInputs

STEPS = {0: "letter before", 1: "matching"}
ENOUGH, COUNTS, MATCHES = 0.5, 0.1, 0.5
N_ROWS, N_DRAWS = 256, 5
HEAD = "| without | repeated | mirrored | elsewhere |\n|---|---|---|---|"

Removed = Mapping[str, Parts]
"""What is taken out of each matrix."""
Chosen = dict[str, list[int]]
"""Components by matrix."""


@dataclass(frozen=True)
class Costs:
    """What going without some parts costs: nats of loss where letters repeat and where they are mirrored, KL elsewhere."""

    repeated: float
    mirrored: float
    elsewhere: float

    def __str__(self) -> str:
        """Cells of a table."""
        return f"{self.repeated:.2f} | {self.mirrored:.2f} | {self.elsewhere:.3f}"


def middle(rows: list[Costs]) -> Costs:
    """The median of each number."""
    return Costs(*(median(values) for values in zip(*map(astuple, rows), strict=True)))


class Subject:
    """The toy on some rows, with parts of its matrices taken out."""

    def __init__(self, engine: GradientEngine, rows: Rows) -> None:
        """Run it whole."""
        self.model, self.rows = MaskedModel(engine, sites_of(engine)), rows
        self.inputs = ModelInputs((rows.tokens,), {})
        with self.model.held():
            self.clean = self._logs(self.model.clean(self.inputs).output)

    @torch.no_grad()
    def without(self, removed: Removed) -> Costs:
        """Run it without these."""
        shape = self.rows.tokens.shape
        masks = Masks({name: torch.zeros(*shape, parts.n) for name, parts in removed.items()})
        with self.model.held():
            logs = self._logs(self.model.masked(self.inputs, removed, masks))
        rise = self._losses(logs) - self._losses(self.clean)
        kl = (self.clean.exp() * (self.clean - logs)).sum(-1)
        is_elsewhere = ~self.rows.known & ~self.rows.last
        repeated, mirrored = self.rows.repeated[:, :-1], self.rows.mirrored[:, :-1]
        return Costs(float(rise[repeated].mean()), float(rise[mirrored].mean()), float(kl[is_elsewhere].mean()))

    def _logs(self, output: Tensor) -> Tensor:
        return output.unflatten(0, self.rows.tokens.shape).log_softmax(-1)

    def _losses(self, logs: Tensor) -> Tensor:
        return functional.nll_loss(logs[:, :-1].transpose(1, 2), self.rows.tokens[:, 1:], reduction="none")


def main() -> None:
    """Print every seed's table, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--components", type=int, default=64, help="of each matrix")
    parser.add_argument("--weight", type=float, default=3e-3, help="the importance weight")
    parser.add_argument("--adversary", type=float, default=0.0, help="weight of D under an adversary's masks")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tables = [of_seed(seed, asked) for seed in range(asked.first, asked.first + asked.seeds)]
    print(f"\nMedians of {asked.seeds} seeds\n{HEAD}")
    for row in tables[0]:
        print(f"| {row} | {middle([table[row] for table in tables])} |")


def of_seed(seed: int, asked: argparse.Namespace) -> dict[str, Costs]:
    """Decompose one toy, and take its components out."""
    toy, start = toys.induction(seed=seed), time.process_time()
    names = [f"blocks.{layer}.attn.W_{kind}" for layer in STEPS for kind in "QKVO"]
    fit = {"steps": asked.steps, "batch_size": 800, "lr": 3e-3, "lr_end": 0.05, "importance": "site", "p_end": 0.5}
    fit |= {"importance_weight": asked.weight, "faithfulness_weight": 1e3, "adversarial_weight": asked.adversary}
    call = {"method": "components", "n_features": asked.components, "fit": fit, "seed": seed, "progress": False}
    found = pf.decompose(toy.model, names, toy.inputs, **call)
    engine, parts = found.bound_engine("taken apart"), found.dictionary.parts
    print(f"\nseed {seed}, {time.process_time() - start:.0f} CPU s\n{found.metrics}\n{HEAD}", flush=True)
    generator = torch.Generator().manual_seed(seed + 2**21)
    choosing, measured = (Subject(engine, draw_rows(N_ROWS, generator)) for _ in range(2))
    table, lines = {}, []
    for layer, step in STEPS.items():
        sites = {site.name: site for site in sites_of(engine) if site.name.startswith(f"blocks.{layer}.")}
        heads = heads_of(sites[f"blocks.{layer}.attn.W_O"], toy.model.cfg.n_heads)
        known = known_heads(toy.model, choosing, layer, heads)
        chosen = carriers(choosing, {name: parts[name] for name in sites}, choosing.without(together(heads)), layer)
        own = taken(parts, chosen)
        rows = {
            "its components": [own],
            "random, equal norms": [random_like(own, generator) for _ in range(N_DRAWS)],
            "other components": [taken(parts, nearest_in_norm(parts, chosen))],
            "known heads": [together([heads[head] for head in known])],
            "other heads": [together([each for head, each in enumerate(heads) if head not in known])],
            "attention": [together(heads)],
        }
        for what, cases in rows.items():
            table[f"{step}: {what}"] = middle([measured.without(case) for case in cases])
            print(f"| {step}: {what} | {table[f'{step}: {what}']} |", flush=True)
        lines.append(beside_circuit(step, chosen, parts, known, len(heads)))
    print(*lines, sep="\n", flush=True)
    return table


def known_heads(model: torch.nn.Module, subject: Subject, layer: int, heads: list[Removed]) -> list[int]:
    """The heads that are known to take a step."""
    if layer == 1:
        scores = pf.development.prefix_matching(model, subject.rows.tokens).scores[layer]
        return (scores >= MATCHES).nonzero().flatten().tolist()
    enough = COUNTS * subject.without(together(heads)).repeated
    return [number for number, head in enumerate(heads) if subject.without(head).repeated >= enough]


def carriers(subject: Subject, parts: Removed, attention: Costs, layer: int) -> Chosen:
    """The fewest components that together cost enough, in the order of what each costs alone, as a share of attention's."""
    alone = {}
    for name, of in parts.items():
        for number in range(of.n):
            costs = subject.without(taken(parts, {name: [number]}))
            repeated, mirrored, elsewhere = (x / y for x, y in zip(astuple(costs), astuple(attention), strict=True))
            alone[name, number] = repeated - elsewhere - (mirrored if layer == 1 else 0)
    chosen: Chosen = {}
    for name, number in sorted(alone, key=alone.__getitem__, reverse=True):
        chosen.setdefault(name, []).append(number)
        if subject.without(taken(parts, chosen)).repeated >= ENOUGH * attention.repeated:
            break
    return chosen


def taken(parts: Removed, chosen: Chosen) -> Removed:
    """These components."""
    return {name: Parts(parts[name].U[numbers], parts[name].V[numbers]) for name, numbers in chosen.items()}


def norms(parts: Parts) -> Tensor:
    """‖U_c ⊗ V_c‖."""
    return parts.U.norm(dim=1) * parts.V.norm(dim=1)


def random_like(removed: Removed, generator: torch.Generator) -> Removed:
    """Random rank-1 matrices of the same norms."""
    drawn = {}
    for name, parts in removed.items():
        U, V = (functional.normalize(torch.randn(side.shape, generator=generator), dim=1) for side in (parts.U, parts.V))
        drawn[name] = Parts(U * norms(parts)[:, None], V)
    return drawn


def nearest_in_norm(parts: Removed, chosen: Chosen) -> Chosen:
    """As many others of each matrix as it has left, each the nearest in norm that is not yet taken."""
    others: Chosen = {}
    for name, numbers in chosen.items():
        sizes = norms(parts[name])
        left = [number for number in range(parts[name].n) if number not in numbers]
        for number in numbers[: len(left)]:
            nearest = min(left, key=lambda other: abs(float(sizes[other] - sizes[number])))
            left.remove(nearest)
            others.setdefault(name, []).append(nearest)
    return others


def heads_of(site: MatrixSite, n_heads: int) -> list[Removed]:
    """What each head writes, as parts of W_O."""
    weight = site.weight()
    reads = torch.eye(weight.shape[1]).chunk(n_heads)
    return [{site.name: Parts(columns.T, read)} for columns, read in zip(weight.chunk(n_heads, 1), reads, strict=True)]


def together(removed: list[Removed]) -> Removed:
    """Parts of one matrix, all of them."""
    (name,) = removed[0]
    return {name: Parts(torch.cat([each[name].U for each in removed]), torch.cat([each[name].V for each in removed]))}


def beside_circuit(step: str, chosen: Chosen, parts: Removed, known: list[int], n_heads: int) -> str:
    """Say which components were chosen, and how much of them lies in the known heads."""

    def share(names_and_parts: Removed) -> float:
        squares = torch.zeros(n_heads)
        for name, of in names_and_parts.items():
            side, other = (of.V, of.U) if name.endswith("W_O") else (of.U, of.V)
            by_head = side.unflatten(1, (n_heads, -1)).square().sum(-1) * other.square().sum(1, keepdim=True)
            squares += by_head.sum(0)
        return float(squares[known].sum() / squares.sum())

    numbers = ", ".join(f"{len(each)} of {name[-3:]}" for name, each in sorted(chosen.items()))
    shares = (
        f"{share(taken(parts, chosen)):.2f} of their norm² (of all components' {share({n: parts[n] for n in chosen}):.2f})"
    )
    return f"{step}: {numbers}; {shares} lies in heads {known}, {len(known)} of {n_heads}"


if __name__ == "__main__":
    main()
