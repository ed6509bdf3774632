"""Token-gradients per CPU second and peak memory: the paper's algorithm, a plain loop, and the harvest of param_features.

    python -m benchmarks.harvest [SHAPE …] [--subset NAME …] [--real FOLDER] [--large-chunks]

One table; all of it takes half an hour on one core and 6 GB (10 with --large-chunks, which takes `jacrev` in chunks of 50
too). FOLDER holds the model stories260K and `load_stories.py`.

A token-gradient is one position's gradient of KL against another position's output, for every parameter of the subset. The
ways are compared (their gradients must be the same), then run in turns in one process, each on one thread: medians of
three turns, and of the ratios within each. Ways that would take minutes are timed on fewer tokens, as the table says; more
would not make them faster. Peaks are `ru_maxrss` of a process for each way, with imports and model (the last row is these).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from benchmarks.stories import stories_in

TURNS, N_CHECKED = 3, 20
LARGE, SMALL = "direct, chunks of 50", "direct, chunks of 10"
DIRECT = {LARGE: 50, SMALL: 10}
LOOP, ALL, ONE, ORDINARY = "loop of autograd.grad", "harvest, all positions", "harvest, one a row", "forward + backward"
WAYS = (*DIRECT, LOOP, ALL, ONE, ORDINARY)
_NEO = {"W_K": ["attn.attention.k_proj.weight"], "attention": ["attn.attention.*"], "MLP": ["mlp.*"]}
_GPT2 = {"W_K": ["attn.c_attn.weight[k]"], "attention": ["attn.*"], "MLP": ["mlp.*"]}
_LLAMA = {"W_K": ["self_attn.k_proj.weight"], "attention": ["self_attn.*"], "MLP": ["mlp.*"]}
SHAPES = {
    "stories260K": ("model.layers.2.", _LLAMA),
    "TinyStories-1M": ("transformer.h.4.", _NEO),
    "TinyStories-8M": ("transformer.h.4.", _NEO),
    "GPT-2 small": ("transformer.h.6.", _GPT2),
}


class Case:
    """A model, a subset of its parameters, a batch of tokens, and the ways of taking its gradients."""

    def __init__(self, shape: str, subset: str, real: Path) -> None:
        """Build the model and plan the harvest."""
        import torch

        from param_features.gradients import Harvester, HarvestSettings, SampleProbe, plan_engine
        from param_features.params import adapter_for, select
        from param_features.problem import KL, Problem, Reference, read_inputs
        from param_features.problem.output import inspect_output

        torch.set_num_threads(1)
        self.shape, (self.model, self.tokens) = shape, real_model(real) if shape == "stories260K" else random_model(shape)
        prefix, names = SHAPES[shape]
        adapter = adapter_for(self.model)
        chosen = select(adapter.views(), [prefix + name for name in names[subset]], adapter.aliases(), adapter.parts())
        self.views, self.data = chosen.views, read_inputs(adapter, self.tokens, None)
        engine = plan_engine(Problem(adapter, chosen, self.data, inspect_output(adapter, self.data), KL(), "sample"))
        self.harvester = Harvester(SampleProbe(engine, self.data), KL(), Reference("sample"), HarvestSettings())
        self.leaves = {whole(view.name): view.stored for view in self.views}

    @cached_property
    def references(self):
        """Every position's reference, [row pos d_vocab], as the harvest draws them; the other ways get them for nothing."""
        import torch

        from param_features.gradients.sampling import draw_positions

        generator = torch.Generator().manual_seed(0)
        n_rows, n_pos = self.tokens.shape
        positions = draw_positions(self.data, n_pos, generator).T.flatten()
        row, partner = torch.arange(n_rows).repeat(n_pos), self.harvester.reference.choose(n_rows * n_pos, generator)
        with torch.no_grad():
            drawn = self.model(self.tokens).logits.softmax(-1)
        references = torch.empty_like(drawn)
        references[row, positions] = drawn[row[partner], positions[partner]]
        return references

    def n_tokens(self, way: str) -> int:
        """How many token-gradients the way takes."""
        n_rows, n_pos = self.tokens.shape
        if way in DIRECT:
            return max(DIRECT[way], N_CHECKED)
        n_loop = 2 if self.shape in ("stories260K", "GPT-2 small") else 8
        return {LOOP: n_loop * n_pos, ONE: n_rows}.get(way, n_rows * n_pos)

    def run(self, way: str, consume: Callable = lambda *_: None) -> None:
        """Take the gradients once; `consume` gets a list of tokens, counted along the rows, and their gradients by name."""
        n_tokens = self.n_tokens(way)
        if way in DIRECT:
            consume(list(range(n_tokens)), self.direct(n_tokens, DIRECT[way]))
        elif way == LOOP:
            self.loop(n_tokens // self.tokens.shape[1], consume)
        elif way == ORDINARY:
            self.ordinary()
        else:
            self.harvest(n_tokens // len(self.tokens), consume)

    def direct(self, n_tokens: int, chunk: int) -> dict:
        """The paper's algorithm: full gradients of the batch's first tokens by `jacrev`, in chunks."""
        import torch
        from torch.nn.functional import kl_div

        def divergences(leaves):
            logits = torch.func.functional_call(self.model, leaves, (self.tokens,), {"use_cache": False}).logits
            return kl_div(logits.log_softmax(-1), self.references, reduction="none").sum(-1).flatten()[:n_tokens]

        leaves = {name: leaf.detach() for name, leaf in self.leaves.items()}
        return torch.func.jacrev(divergences, chunk_size=chunk)(leaves)

    def loop(self, n_rows: int, consume: Callable) -> None:
        """`torch.autograd.grad` position by position; a sequence's forward pass is shared by its positions."""
        import torch
        from torch.nn.functional import kl_div

        n_pos = self.tokens.shape[1]
        self.model.requires_grad_(False)
        leaves = [leaf.requires_grad_() for leaf in self.leaves.values()]
        for row in range(n_rows):
            logits = self.model(self.tokens[row : row + 1], use_cache=False).logits[0]
            for pos in range(n_pos):
                divergence = kl_div(logits[pos].log_softmax(-1), self.references[row, pos], reduction="sum")
                found = torch.autograd.grad(divergence, leaves, retain_graph=pos < n_pos - 1)
                consume([row * n_pos + pos], {name: g.unsqueeze(0) for name, g in zip(self.leaves, found, strict=True)})

    def harvest(self, n_slots: int, consume: Callable) -> None:
        """`param_features`: so many positions of every row, in the form in which they are stored."""
        import torch

        from param_features.gradients.store import storable

        n_rows, n_pos = self.tokens.shape

        def take(row, position, gradients) -> None:
            consume((row * n_pos + position).tolist(), storable(gradients))

        self.harvester.each_slot(self.data, torch.arange(n_rows), n_slots, torch.Generator().manual_seed(0), take)

    def ordinary(self) -> None:
        """The forward and backward pass of one training step of the whole model on the batch."""
        from torch.nn.functional import cross_entropy

        self.model.requires_grad_(True)
        logits = self.model(self.tokens, use_cache=False).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten()).backward()
        self.model.zero_grad()

    def check(self) -> float:
        """The largest difference between two ways' gradients of a token, relative to the parameter's gradients' mean norm.

        Raises:
            SystemExit: It is above 1e-4.
        """
        expected, worst = self.first(SMALL), 0.0
        for way in (LOOP, ALL):
            found = self.first(way)
            for at in range(len(self.views)):
                scale = statistics.mean(float(gradients[at].norm()) for gradients in expected.values())
                gaps = [float((found[token][at] - expected[token][at]).norm()) / scale for token in expected]
                worst = max(worst, *gaps)
        if worst > 1e-4:
            raise SystemExit(f"{self.shape}: the ways' gradients differ by {worst:.1e}")
        return worst

    def first(self, way: str) -> dict:
        """The first tokens' gradients, a matrix for each parameter."""
        found = {}

        def consume(tokens: list[int], gradients: dict) -> None:
            for place, token in enumerate(tokens):
                if token < N_CHECKED:
                    found[token] = [matrix(view, gradients, place).detach() for view in self.views]

        self.run(way, consume)
        assert len(found) == N_CHECKED, f"{way} left out {N_CHECKED - len(found)} of the first tokens"
        return found

    def seconds(self, way: str) -> float:
        """CPU seconds of one run."""
        start = time.process_time()
        self.run(way)
        return time.process_time() - start


def random_model(shape: str) -> tuple:
    """A random model of the shape and 16 rows of 16 random tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    tokens = torch.randint(50257, (16, 16))
    if shape == "GPT-2 small":
        return GPT2LMHeadModel(GPT2Config()).eval(), tokens
    config = GPTNeoConfig(
        hidden_size={"TinyStories-1M": 64, "TinyStories-8M": 256}[shape],
        num_layers=8,
        num_heads=16,
        vocab_size=50257,
        attention_types=[[["global", "local"], 4]],
    )
    return GPTNeoForCausalLM(config).eval(), tokens


def real_model(folder: Path) -> tuple:
    """stories260K and 64 rows of 64 tokens of stories."""
    stories = stories_in(folder)
    return stories.load_hf()[0], stories.load_tokens(64, 64)


def whole(name: str) -> str:
    """Torch's name of the parameter that a part is of."""
    return name.partition("[")[0]


def matrix(view, gradients: dict, place: int):
    """One sample's gradient of a parameter, from whole tensors or from the harvest's own form."""
    if whole(view.name) in gradients and not hasattr(gradients[whole(view.name)], "dense"):
        return view.to_matrix(view.layout.read(gradients[whole(view.name)][place]))
    return gradients[view.name].map(lambda tensor: tensor[place : place + 1]).dense().matrix[0]


def timed(case: Case, ways: tuple[str, ...]) -> dict:
    """The worst difference, and each way's seconds a turn."""
    worst = case.check()
    turns = [{way: case.seconds(way) for way in ways} for _ in range(TURNS)]
    return {"worst": worst, "n": {way: case.n_tokens(way) for way in ways}, "turns": turns}


def child(*arguments: str) -> dict:
    """What this script prints when it is run with other arguments."""
    command = [sys.executable, "-m", "benchmarks.harvest", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def rows(shape: str, subset: str, rest: list[str]) -> None:
    """Print one subset's rows."""
    asked = [shape, "--subset", subset, *rest]
    found = child(*asked, "--inner", "time")
    n, turns = found["n"], found["turns"]
    fastest = max(
        (way for way in DIRECT if way in turns[0]), key=lambda way: statistics.median(n[way] / turn[way] for turn in turns)
    )
    for way in turns[0]:
        peak = child(*asked, "--inner", way)["peak_mib"]
        line = [shape, subset, way, n[way] if way != ORDINARY else "", *numbers(way, n, turns, fastest), f"{peak:,.0f}"]
        print("|", " | ".join(map(str, line)), "|", flush=True)


def numbers(way: str, n: dict, turns: list[dict], fastest: str) -> list[str]:
    """Rate, times the rate of direct and of the loop, and seconds in ordinary passes."""
    median = statistics.median
    passes = f"{median(turn[way] / turn[ORDINARY] for turn in turns):.2f}"
    if way == ORDINARY:
        return [f"{median(turn[way] for turn in turns):.2f} s", "", "", passes]
    rate = median(n[way] / turn[way] for turn in turns)
    ratios = [f"{median(n[way] / turn[way] * turn[other] / n[other] for turn in turns):.3g}" for other in (fastest, LOOP)]
    return [f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", *ratios, passes if n[way] in (n[ALL], n[ONE]) else ""]


def main() -> None:
    """Print the table; a process of its own for each subset's times and each way's peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--subset", nargs="*", default=list(_NEO), help="W_K, attention, MLP")
    parser.add_argument("--real", default="../shared/real", help="folder of stories260K")
    parser.add_argument("--large-chunks", action="store_true", help="`jacrev` in chunks of 50 as well")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inner:
        case = Case(asked.shapes[0], asked.subset[0], Path(asked.real))
        ways = tuple(way for way in WAYS if asked.large_chunks or way != LARGE)
        found = timed(case, ways) if asked.inner == "time" else (case.run(asked.inner) or {})
        print(json.dumps(found | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    print("| shape | subset | way | tokens | token-gradients per CPU s | × direct | × loop | passes | peak MiB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for shape in asked.shapes or SHAPES:
        for subset in asked.subset:
            rows(shape, subset, ["--real", asked.real, *(["--large-chunks"] if asked.large_chunks else [])])


if __name__ == "__main__":
    main()
