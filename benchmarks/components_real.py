"""Components of a trained language model's matrices: every metric beside singular directions, and seeds' agreement.

    python -m benchmarks.components_real [--model real|demo] [--blocks 2|all] [--seeds 3] [--steps N] [--save FOLDER]

With `--save` each fit is kept, and goes on where it was interrupted; what is finished is only read again. The default, all
seven matrices of block 2 of the 260,000-parameter model with 2,000 steps, takes about half an hour a seed on one core.
"""

import argparse
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from operator import le
from pathlib import Path
from statistics import median
from typing import Any

import torch

import param_features as pf
from benchmarks.bench.table import Row, to_text
from benchmarks.stories import stories_in
from param_features import demo
from param_features.fit.components import ComponentDictionary, ComponentSettings, Parts
from param_features.measure import Agreement, agreement_of, alive_parts

_MONITORS = ("unmasked", "stochastic", "rounded", "importance_as_mask", "all_zero")
_WITHIN = {"unmasked": 0.005, "stochastic": 0.05}
"""How far above the clean loss an aim allows."""

_AGREEMENT = 0.5
_MOST_ADVERSARIAL = 0.1


@dataclass(frozen=True)
class Job:
    """What is fitted with every seed.

    Attributes:
        model: The language model.
        tokens: Rows of its text.
        params: The matrices' names.
        call: Further arguments of `pf.decompose`.
        folder: Where fits are kept; None for nowhere.
    """

    model: Any
    tokens: torch.Tensor
    params: list[str]
    call: Mapping[str, Any]
    folder: Path | None

    def fitted(self, seed: int) -> Any:
        """The components of one seed, read where they are kept already."""
        return self._kept(f"seed_{seed}", method="components", seed=seed, **self.call)

    def features(self) -> Any:
        """100 L3D features of the same matrices, by the default settings."""
        return self._kept("features", n_features=100, progress=bool(self.call.get("progress", True)))

    def _kept(self, title: str, **call: Any) -> Any:
        place = None if self.folder is None else self.folder / title
        if place is not None and (place / "fit" / "config.json").is_file():
            return pf.load(place / "fit", model=self.model)
        start, checkpoints = time.process_time(), None if place is None else place / "steps"
        fit = pf.decompose(self.model, self.params, self.tokens, checkpoints=checkpoints, **call)
        print(f"{title}: {time.process_time() - start:.0f} CPU seconds", flush=True)
        if place is not None:
            fit.save_pretrained(place / "fit")
        return fit


def main() -> None:
    """Fit with every seed, and print the tables."""
    options = _options()
    torch.set_num_threads(1)  # so that CPU seconds compare
    job = job_of(options)
    fits = [job.fitted(seed) for seed in range(options.seeds)]
    for rows in (metric_rows([fit.metrics for fit in fits]), matrix_rows([fit.metrics for fit in fits], job.params)):
        print(to_text(rows), end="\n\n", flush=True)
    if len(fits) > 1:
        print(to_text(agreement_rows(list(seed_pairs(fits)))))
    if options.audit:
        audit = fits[0].audit(second=fits[1] if len(fits) > 1 else None, beside=[job.features()])
        print(f"\n{audit!r}\n\n{audit.by_method}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("real", "demo"), default="real")
    parser.add_argument("--folder", type=Path, default=Path("../shared/real"), help="holds load_stories.py")
    parser.add_argument("--blocks", default="2", help="a block's number, or all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-components", type=int, help="of each matrix")
    parser.add_argument("--preset", choices=("spd", "vpd"), help="published settings instead of the default ones")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting of the fit")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the fits, and go on with them")
    parser.add_argument("--audit", action="store_true", help="audit the first seed's components, 100 L3D features beside")
    return parser.parse_args()


def job_of(options: argparse.Namespace) -> Job:
    """What the options ask for."""
    if options.model == "demo":
        model, tokens = demo.load_model(), demo.tokens(512)
    else:
        stories = stories_in(options.folder)
        model, tokens = stories.load_hooked(), stories.load_tokens()
    settings = ComponentSettings.preset(options.preset) if options.preset else ComponentSettings()
    changes = {name: _read(value) for name, value in (pair.split("=", 1) for pair in options.set)}
    changes |= {} if options.steps is None else {"steps": options.steps}
    call = {"fit": ComponentSettings(**asdict(settings) | changes), "n_features": options.n_components}
    return Job(model, tokens, matrices_of(model, options.blocks), call, options.save)


def matrices_of(model: Any, blocks: str) -> list[str]:
    """The matrices of one block's attention and MLP, or of all blocks'."""
    block = r"\d+" if blocks == "all" else blocks
    wanted = re.compile(rf"blocks\.{block}\.(attn|mlp)\._?W_\w+")
    return [param.name for param in pf.list_params(model) if wanted.fullmatch(param.name)]


def _read(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None if value == "None" else value


def metric_rows(metrics: list[Mapping[str, float]]) -> list[Row]:
    """The numbers of the whole model by seed, the controls' beside them."""

    def row(case: str, number: str, name: str, share: float | None = None, of_name: str = "") -> Row:
        """A number of every seed; met where it is at most a share of the same seed's other number."""
        values = tuple(of[name] for of in metrics)
        if share is None:
            return Row(case, number, values)
        most = [share * of[of_name] for of in metrics]
        return Row(case, number, values, f"<= {median(most):.3g}", sum(map(le, values, most)))

    rows = [row("components", "loss, clean", "loss_clean")]
    for name in _MONITORS:
        share = 1 + _WITHIN[name] if name in _WITHIN else None
        rows.append(row("components", f"loss, {name}", f"loss_{name}", share, "loss_clean"))
    rows += [row("components", f"KL, {name}", name) for name in _MONITORS]
    for name in sorted(name for name in metrics[0] if re.fullmatch(r"adversarial_\d+", name)):
        share = _MOST_ADVERSARIAL if name == "adversarial_20" else None
        rows += [
            row("components", f"KL, {name}", name, share, "all_zero"),
            row("components", f"loss, {name}", f"loss_{name}"),
        ]
    rows += [row("components", name, name) for name in ("loss_unrecovered", "l0", "l0_above_0.1", "alive", "faithfulness")]
    for name in metrics[0]:
        if "control_" in name and not name.startswith("loss_"):
            masks, _, control = name.partition("control_")
            masks = masks.removesuffix("_") or "rounded"
            rows += [row(control, f"KL, {masks}", name), row(control, f"loss, {masks}", f"loss_{name}")]
    return rows


def matrix_rows(metrics: list[Mapping[str, float]], params: list[str]) -> list[Row]:
    """L0 and alive of every matrix, by seed."""
    return [
        Row(name, number, tuple(of[f"{number}/{name}"] for of in metrics)) for name in params for number in ("l0", "alive")
    ]


def seed_pairs(fits: list[Any]) -> Iterator[Agreement]:
    """How far every two seeds have the same components, of those that each one's held-out examples need."""
    alive = [_alive(fit) for fit in fits]
    for first, second in combinations(alive, 2):
        yield agreement_of(first, second, torch.Generator().manual_seed(0))


def _alive(fit: Any) -> dict[str, Parts]:
    assert isinstance(fit.dictionary, ComponentDictionary)
    return alive_parts(fit.dictionary, fit.bound_engine("benchmarks.components_real"), fit.own_examples)


def agreement_rows(pairs: list[Agreement]) -> list[Row]:
    """|Cosine| of whole rank-1 matrices, one value for each pair of seeds, random parts beside."""

    def row(number: str, values: tuple[float, ...], least: float | None = None) -> Row:
        met = None if least is None else sum(value >= least for value in values)
        return Row("seeds' agreement", number, values, "" if least is None else f">= {least:g}", met)

    return [
        row("best of any", tuple(pair.best for pair in pairs), _AGREEMENT),
        row("one to one", tuple(pair.matched for pair in pairs)),
        row("random, best of any", tuple(pair.random_best for pair in pairs)),
        row("random, one to one", tuple(pair.random_matched for pair in pairs)),
        row("components", tuple(float(pair.n) for pair in pairs)),
    ]


if __name__ == "__main__":
    main()
