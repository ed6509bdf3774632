"""A trained language model decomposed with three seeds: errors beside controls, agreement between seeds, CPU seconds.

    python benchmarks/real_model.py FOLDER [--quick] [--top-k]

FOLDER holds `load_stories.py` with `load_hooked()` and `load_tokens()`, the model and its texts.
"""

import argparse
from pathlib import Path

import torch

import param_features as pf
from benchmarks.stories import stories_in

CASES = (("blocks.2.attn.W_K", 100), ("blocks.2.mlp.W_out", 100), ("blocks.2.attn.W_K", 1000))


def main() -> None:
    """Run the cases and print each one's table as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="two seeds, 4,000 samples, 20 features, 100 steps")
    parser.add_argument("--top-k", action="store_true", help="L3D's linear encoder instead of pursuit")
    parser.add_argument("--params", choices=sorted({name for name, _ in CASES}), help="these alone")
    parser.add_argument("--features", type=int, help="this number of features alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # so that CPU seconds compare
    stories = stories_in(asked.folder)
    model, tokens = stories.load_hooked(), stories.load_tokens()
    for params, n_features in CASES:
        if asked.params not in (None, params) or asked.features not in (None, n_features):
            continue
        call = {"n_features": n_features, "fit": pf.FitSettings(selection="top_k" if asked.top_k else "pursuit")}
        if asked.quick:
            call |= {"n_features": 20, "n_samples": 4000, "steps": 100, "seeds": (0, 1)}
        rows = pf.bench.stability(model, params, tokens, l0=5, progress=False, **call)
        print(pf.bench.to_text(rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
