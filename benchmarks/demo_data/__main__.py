"""Make rows of stories that the package does not ship: `python -m benchmarks.demo_data FILE [--n N] [--n-ctx N] [--seed N]`.

FILE is written as safetensors: `tokens`, `surprisal`, `entropy`, and a mask `rules.NAME` for each rule of the grammar.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.demo_data import entropy, rules, surprisal, tokens


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the safetensors file to write")
    parser.add_argument("--n", type=int, default=4096, help="rows")
    parser.add_argument("--n-ctx", type=int, default=64, help="tokens per row")
    parser.add_argument("--seed", type=int, default=0, help="which rows; each seed gives others")
    options = parser.parse_args()
    n, n_ctx, seed = options.n, options.n_ctx, options.seed
    masks = {f"rules.{name}": mask for name, mask in rules(n, n_ctx=n_ctx, seed=seed).items()}
    values = {"surprisal": surprisal(n, n_ctx=n_ctx, seed=seed), "entropy": entropy(n, n_ctx=n_ctx, seed=seed)}
    save_file({"tokens": tokens(n, n_ctx=n_ctx, seed=seed)} | values | masks, options.file)
    print(f"{options.file}: {n} rows of {n_ctx} tokens")


if __name__ == "__main__":
    main()
