"""The pictures of the how-to pages, of the demo model and a toy, in about two minutes on two cores.

python docs/pictures.py [NAME …] writes docs/pictures/NAME.png; without names, all. Needs extras `lens`, `sae`, `plots` and
`devinterp`, playwright, and a Chrome or Chromium on the path.
"""

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from PIL import Image

import param_features as pf

FOLDER = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 900, 420


@cache
def demo_model():
    """One model object: the sets of features of a circuit must share it."""
    return pf.demo.load_model()


@cache
def features_of(name: str) -> pf.ParamFeatures:
    """Forty features of one parameter of the demo model."""
    call = {"n_features": 40, "l0": 3, "n_samples": 4000, "steps": 200, "progress": False}
    return pf.decompose(demo_model(), name, pf.demo.tokens(400), **call)


def report(path: Path) -> None:
    """The first screen of the report: metrics beside controls, and the table of features."""
    with tempfile.TemporaryDirectory() as folder:
        page = features_of("blocks.1.attn.W_K").report(Path(folder) / "report.html", n_rows=50)
        photograph(page, path, height=1000)


def highlights(path: Path) -> None:
    """Top examples of a feature, as a notebook draws them."""
    features = features_of("blocks.1.attn.W_K")
    with tempfile.TemporaryDirectory() as folder:
        photograph(features.view(3, n=4).save(Path(folder) / "feature.html"), path, height=312)


def steering(path: Path) -> None:
    """Probabilities of next tokens against the step along a feature of one behaviour."""
    girls, boys = ("Lily", "Mia", "Anna", "Sue", "Emma", "Lucy"), ("Tom", "Tim", "Ben", "Max", "Sam", "Jack")
    starts = ("Once upon a time, there was a clever", "There once was a silly", "There once was a brave")
    she = [f"{start} girl named {name}." for start in starts for name in girls]
    he = [f"{start} boy named {name}." for start in starts for name in boys]
    pairs = [*zip(she, he, strict=True), *zip(he, she, strict=True)]
    call = {"reference": pairs, "n_features": 2, "steps": 60, "progress": False}
    features = pf.decompose(demo_model(), "blocks.1.mlp.W_out", **call)
    draw(pf.plot.steering(features, 0, ["There once was a brave boy named Dan."], n_outputs=4), path)


def circuit(path: Path) -> None:
    """A circuit of features of two layers."""
    prompts = [f"{end}<eos>Once upon a time," for end in ("The end.", "They were best friends.", "So he ran home. The end.")]
    small = {"n_features": 20, "l0": 3, "n_samples": 1500, "steps": 60, "progress": False}
    names = ("blocks.1.attn.W_O", "blocks.2.mlp.W_out")
    sets = [pf.decompose(demo_model(), name, pf.demo.tokens(200), **small) for name in names]
    found = pf.circuit(
        sets, prompts, pf.circuits.LogProbability(" there"), n_nodes=6, n_random=2, background=pf.demo.tokens(50)
    )
    draw(pf.plot.circuit(found), path, height=600)


def compare(path: Path) -> None:
    """Best correlations of parameter features with an SAE's features."""
    model, tokens = demo_model(), pf.demo.tokens(400)
    sae = pf.sae.train_sae(model, "blocks.1.hook_resid_post", tokens, n_features=100, l0=5, progress=False)
    draw(pf.plot.compare(pf.compare(features_of("blocks.1.attn.W_K"), sae, pf.demo.tokens(60, seed=1))), path)


def track(path: Path) -> None:
    """Impact and error of a toy's features over its training."""
    torch.manual_seed(0)
    x = torch.rand(2000, 8) * (torch.rand(2000, 8) < 0.1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 3, bias=False), torch.nn.Linear(3, 8), torch.nn.ReLU())
    optimizer, checkpoints = torch.optim.Adam(model.parameters(), lr=0.005), {}
    for step in range(1, 1001):
        optimizer.zero_grad()
        (model(x) - x).square().sum(1).mean().backward()
        optimizer.step()
        if step % 50 == 0:
            checkpoints[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = pf.decompose(model, ["0.weight", "1.weight"], inputs=x, n_features=8, l0=1, steps=150, progress=False)
    draw(pf.plot.track(pf.track(checkpoints, features, progress=False), ("impact", "error")), path, height=560)


def draw(figure, path: Path, height: int = HEIGHT) -> None:
    """Write a plotly figure at the width of a page."""
    pf.plot.save(figure.update_layout(width=WIDTH, height=height, template="plotly_white"), path, scale=1.4)


def photograph(page: Path, path: Path, height: int) -> None:
    """The top of a page, as a browser shows it."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    browser_path = next(path for path in map(shutil.which, names) if path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1100, "height": height}, color_scheme="light")
        view.goto(page.as_uri())
        view.wait_for_timeout(1500)
        view.screenshot(path=path)
        browser.close()


def shrink(path: Path) -> None:
    """Keep 128 colours: a third of the size, and nothing to be seen."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


PICTURES: dict[str, Callable[[Path], None]] = {
    drawing.__name__: drawing for drawing in (report, highlights, steering, circuit, compare, track)
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore")
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name](FOLDER / f"{name}.png")
        shrink(FOLDER / f"{name}.png")
