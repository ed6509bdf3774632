"""Decompose one W_K of the embedded model: ten features' top examples, metrics beside controls, a picture and a page.

Run: python demos/first_features.py [--quick] [--out runs/demo]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import param_features as pf
from param_features.measure import Example

PARAMS = "blocks.1.attn.W_K"
N_SHOWN = 10


def main() -> None:
    arguments = read_arguments()
    model = pf.demo.load_model()
    tokens = pf.demo.tokens(200 if arguments.quick else 2000)
    features = pf.decompose(
        model,
        params=PARAMS,
        tokens=tokens,
        n_features=100,
        l0=5,
        steps=60 if arguments.quick else None,
        n_samples=2_000 if arguments.quick else None,
        seed=0,
    )
    for feature in range(N_SHOWN):
        print(f"\nFeature {feature}")
        for example in features.top_examples(feature, 6):
            print(f"  {example}")
    print(f"\n{features}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    features.save_pretrained(arguments.out / "features")
    draw(features, arguments.out / "features.png")
    page = features.report(arguments.out / "report.html")
    print(f"\nPage: {page}. Picture: {arguments.out / 'features.png'}.")
    print(f"Features: {arguments.out / 'features'} (pf.load reads them).")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small settings, for a check that everything runs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for the page, the picture and the features"
    )
    return parser.parse_args()


def draw(features: pf.ParamFeatures, path: Path) -> None:
    """Top examples with token highlights on the left, the fit's error beside its controls' on the right."""
    figure, (text, bars) = plt.subplots(1, 2, figsize=(11.5, 7), width_ratios=[3, 1.2], layout="constrained")
    draw_examples(text, features)
    draw_errors(bars, features.metrics)
    figure.suptitle(f"{features.n_features} features of {PARAMS}: three top examples of the ten strongest")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_examples(axes: plt.Axes, features: pf.ParamFeatures) -> None:
    axes.axis("off")
    axes.set(xlim=(0, 118), ylim=(4 * N_SHOWN, -1))
    for feature in range(N_SHOWN):
        examples = features.top_examples(feature, 3)
        bound = max(abs(value) for example in examples for value in example.activations)
        for line, example in enumerate(examples):
            label = f"{feature}" if line == 0 else ""
            axes.text(0, 4 * feature + line, label, family="monospace", weight="bold", va="center", fontsize=9)
            draw_tokens(axes, example, bound, x=4, y=4 * feature + line)


def draw_tokens(axes: plt.Axes, example: Example, bound: float, x: float, y: float) -> None:
    """A window of tokens up to the activating one, and the next token after an arrow; red is negative, blue positive."""
    start = max(0, example.position - 18)
    for index in range(start, example.position + 1):
        value = example.activations[index] / bound
        faded = 1 - 0.7 * abs(value)
        color = (1, faded, faded) if value < 0 else (faded, faded, 1)
        edge = "black" if index == example.position else color
        token = example.tokens[index]
        box = {"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": edge, "linewidth": 0.8}
        axes.text(x, y, token.strip() or token, family="monospace", fontsize=8, va="center", bbox=box)
        x += len(token.strip() or token) + 0.7
    following = example.next_token.strip() if example.next_token else "(end)"
    axes.text(x + 0.5, y, f"→ {following}", family="monospace", fontsize=8, va="center", color="gray")


def draw_errors(axes: plt.Axes, metrics: pf.Metrics) -> None:
    names = ["reconstruction_error", "control_pca", "control_random", "control_svd_w"]
    labels = ["features", "principal\ndirections", "random\ndirections", "singular\ndirections\nof W"]
    found = axes.bar(labels, [metrics[name] for name in names], color=["#2b6cb0", "#bbb", "#bbb", "#bbb"])
    axes.bar_label(found, fmt="%.2f")
    axes.set(ylabel=f"reconstruction error, held out, l0 = {metrics['l0']:g}", ylim=(0, 1.1))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
