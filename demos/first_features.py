"""Decompose one W_K of the embedded model: ten features' top examples, metrics beside controls, a picture and a page.

Run: python demos/first_features.py [--quick] [--out runs/demo]
"""

import argparse
from pathlib import Path

import param_features as pf
from param_features.sharing import draw

PARAMS = "blocks.1.attn.W_K"
N_SHOWN = 10


def main() -> None:
    arguments = read_arguments()
    model = pf.demo.load_model()
    tokens = pf.demo.tokens(60 if arguments.quick else 2000)
    features = pf.decompose(
        model,
        params=PARAMS,
        tokens=tokens,
        n_features=100,
        l0=5,
        steps=20 if arguments.quick else None,
        n_samples=800 if arguments.quick else None,
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


if __name__ == "__main__":
    main()
