"""A trained language model decomposed with three seeds: errors beside controls, agreement between seeds, CPU seconds.

    python -m benchmarks.real_model FOLDER [--quick] [--top-k]

FOLDER holds `load_stories.py` with `load_hooked()` and `load_tokens()`, the model and its texts.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import param_features as pf
from benchmarks.bench.stability import stability
from benchmarks.bench.table import to_text
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
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that CPU seconds compare
    stories = stories_in(options.folder)
    model, tokens = stories.load_hooked(), stories.load_tokens()
    for params, n_features in CASES:
        if options.params not in (None, params) or options.features not in (None, n_features):
            continue
        settings: dict[str, Any] = {
            "n_features": n_features,
            "fit": pf.FitSettings(selection="top_k" if options.top_k else "pursuit"),
        }
        if options.quick:
            settings |= {"n_features": 20, "n_samples": 4000, "steps": 100, "seeds": (0, 1)}
        rows = stability(model, params, tokens, l0=5, progress=False, **settings)
        print(to_text(rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
