"""How cost grows: CPU seconds and memory of harvest and fit against each size alone, with the exponents of growth.

python -m benchmarks.growth [--quick] [--plot FILE]     a few CPU minutes on one thread; FILE is a .png, .svg or .html

The model is of GPT-2's architecture with random weights and two layers; the parameter is the first layer's key matrix of
d × d numbers. From the middle sizes each curve changes one. A cell runs in a process of its own: its memory is what the peak
resident memory grows by. A curve's exponent is the slope of log cost over log size between its last three points: 1 is
proportional, 0 is no growth. CPU seconds of a step are the lower of two after a first.
"""

import argparse
import math
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import param_features as pf
from param_features.fit import FitRequest, Trainer
from param_features.gradients import Factored, GradientStore
from param_features.measure.controls import control_errors
from param_features.params import ParamSubset, adapter_for, select

D_VOCAB, N_LAYERS, BATCH = 2000, 2, 256


@dataclass(frozen=True)
class Sizes:
    """One cell's sizes; `d` is the width of the model, |W| its square."""

    n_features: int = 50
    rank: int = 1
    n_pos: int = 16
    d: int = 256
    n_samples: int = 512


CURVES = {
    "features": ("n_features", (25, 50, 100, 200, 400)),
    "rank": ("rank", (1, 2, 4, 8)),
    "positions": ("n_pos", (8, 16, 32, 64)),
    "parameters": ("d", (128, 256, 512, 768)),
    "samples": ("n_samples", (256, 512, 1024, 2048)),
}

COSTS = "harvest, CPU s", "harvest, MiB", "fit, CPU ms a step", "fit, MiB", "controls, CPU s"


def main() -> None:
    """Measure every curve and print a table as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first three points of each curve")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves as well")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| against | size | harvest CPU s | MiB | fit CPU ms a step | MiB | controls CPU s |\n|---|---|---|---|---|---|---|"
    )
    slopes, curves = [], {}
    for title, (field, values) in CURVES.items():
        values = values[:3] if asked.quick else values
        cells, shown = [], [value**2 if field == "d" else value for value in values]
        for size, value in zip(shown, values, strict=True):
            cells.append(cell(replace(Sizes(), **{field: value})))
            print(f"| {title} | {size:,} | " + " | ".join(f"{number:,.3g}" for number in cells[-1]) + " |", flush=True)
        curves[title] = shown, list(zip(*cells, strict=True))
        slopes.append((title, [slope(shown, column) for column in zip(*cells, strict=True)]))
    print("\n| exponent against | harvest CPU | memory | fit CPU | memory | controls CPU |\n|---|---|---|---|---|---|")
    for title, found in slopes:
        print(f"| {title} | " + " | ".join(f"{number:.2f}" for number in found) + " |")
    if asked.plot:
        draw(curves, asked.plot)


def draw(curves: dict[str, tuple[list[int], list[tuple[float, ...]]]], path: str) -> None:
    """One panel for every size, on logarithmic axes; costs in their own units."""
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=len(curves), rows=1, shared_yaxes=True)
    for place, (title, (sizes, costs)) in enumerate(curves.items(), 1):
        for cost, colour in ((0, "#636efa"), (2, "#ef553b"), (4, "#00cc96"), (3, "#999999")):
            line = {"color": colour, "dash": "dot" if cost == 3 else "solid"}
            figure.add_scatter(
                x=sizes,
                y=costs[cost],
                name=COSTS[cost],
                line=line,
                col=place,
                row=1,
                showlegend=place == 1,
                legendgroup=cost,
            )
        figure.update_xaxes(
            type="log", title=title, tickvals=sizes, ticktext=[f"{size:,}" for size in sizes], col=place, row=1
        )
    figure.update_yaxes(type="log", dtick=1)
    figure.update_layout(
        template="simple_white", width=1400, height=380, margin={"t": 20}, legend={"orientation": "h", "y": -0.35}
    )
    pf.plot.save(figure, path)


def cell(sizes: Sizes) -> tuple[float, ...]:
    """Harvest CPU s and MiB, fit CPU ms a step and MiB, CPU s of the controls."""
    harvested, harvest_mib = apart(lambda: harvest_seconds(sizes))
    step, fit_mib = apart(lambda: step_seconds(sizes))
    controls, _ = apart(lambda: control_seconds(sizes))
    return harvested, harvest_mib, step * 1e3, fit_mib, controls


def slope(sizes: list[int], costs: tuple[float, ...]) -> float:
    """Of log cost over log size, by least squares over the last three points."""
    x, y = ([math.log(max(value, 1e-9)) for value in values[-3:]] for values in (sizes, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def apart(function: Callable[[], float]) -> tuple[float, float]:
    """What a function returns in a process of its own, and by how many MiB the peak grows there."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as file:
            line = file.read()
        os.waitpid(child, 0)
        value, mib = map(float, line.split())
        return value, mib
    try:
        before = peak_mib()
        value = function()
        os.write(write, f"{value} {peak_mib() - before}".encode())
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def harvest_seconds(sizes: Sizes) -> float:
    """CPU seconds of all samples to a store on disk, every position of each row."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=N_LAYERS, n_embd=sizes.d, n_head=max(1, sizes.d // 64), vocab_size=D_VOCAB, n_positions=sizes.n_pos
    )
    model = GPT2LMHeadModel(config).eval()
    tokens = torch.randint(D_VOCAB, (max(4, sizes.n_samples // sizes.n_pos), sizes.n_pos))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        call = {"n_samples": sizes.n_samples, "directory": folder, "progress": False}
        pf.harvest(model, "transformer.h.0.attn.c_attn.weight[k]", tokens, **call)
        return time.process_time() - start


def gradients(sizes: Sizes, n_samples: int, seed: int) -> GradientStore:
    """Random factored gradients: what a step costs does not depend on their values."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_samples, sizes.n_pos, sizes.d)
    delta, inputs = (torch.randn(shape, generator=generator) for _ in range(2))
    store = GradientStore(n_samples, {"w": Factored(delta, inputs)})
    store.add({"w": Factored(delta, inputs)})
    return store


def step_seconds(sizes: Sizes) -> float:
    """CPU seconds of one step: the lower of two after one that is left out."""
    store, generator = gradients(sizes, sizes.n_samples, 0), torch.Generator().manual_seed(0)
    settings = pf.FitSettings(steps=1000, batch_size=BATCH)
    request = FitRequest(sizes.n_features, sizes.rank, max(1, sizes.n_features / 20), settings)
    trainer = Trainer(store, request, generator)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        trainer.step()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def control_seconds(sizes: Sizes) -> float:
    """CPU seconds of the three controls, scored on 100 samples."""
    train, held_out = gradients(sizes, sizes.n_samples, 0), gradients(sizes, 100, 1)
    layer = torch.nn.Linear(sizes.d, sizes.d, bias=False)
    subset = subset_of(layer)
    start = time.process_time()
    control_errors(
        train,
        held_out,
        subset,
        n_features=min(sizes.n_features, sizes.n_samples),
        rank=sizes.rank,
        l0=max(1, sizes.n_features / 20),
        generator=torch.Generator().manual_seed(0),
        is_pursued=True,
    )
    return time.process_time() - start


def subset_of(layer: torch.nn.Module) -> ParamSubset:
    """A layer's weight as the parameter subset, under the name that the gradients have."""
    (view,) = select(adapter_for(layer).views(), "weight").views
    return ParamSubset((replace(view, name="w"),))


if __name__ == "__main__":
    main()
