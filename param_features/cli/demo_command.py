"""`param-features demo`: the embedded model, decomposed."""

from typing import Annotated

import typer

import param_features as pf
from param_features.cli import options
from param_features.cli.decompose_command import Seed, check_vacant
from param_features.cli.models import DEMO, ModelSource, load_model
from param_features.cli.options import FIT, OUTPUT, flag, option
from param_features.cli.running import say

PARAMS = "blocks.1.attn.W_K"
_N_FEATURES, _L0 = 100, 5
_QUICK_STEPS, _QUICK_SAMPLES = 60, 2000


def demo(
    *,
    quick: Annotated[bool, flag("--quick", FIT, "Small settings: seconds instead of a minute or two.")] = False,
    seed: Seed = 0,
    n_shown: Annotated[int, option("--n-shown", OUTPUT, "Features to print.", min=0, max=20, metavar="N")] = 10,
    n_examples: Annotated[int, option("--n-examples", OUTPUT, "Top examples of each.", min=1, metavar="N")] = 4,
    out: options.OptionalNewFolder = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Decompose a key matrix of the embedded model: features' top examples, then the metrics beside their controls.

    The token at which a feature acts stands between « and »; what followed comes after the arrow.
    """
    if out is not None:
        check_vacant(out, is_forced=force)
    model = load_model(ModelSource(DEMO)).model
    features = pf.decompose(
        model,
        PARAMS,
        pf.demo.tokens(200 if quick else 2000),
        n_features=_N_FEATURES,
        l0=_L0,
        steps=_QUICK_STEPS if quick else None,
        n_samples=_QUICK_SAMPLES if quick else None,
        seed=seed,
        progress=not quiet,
    )
    for feature in range(n_shown):
        examples = [f"  {example}" for example in features.top_examples(feature, n_examples)]
        typer.echo("\n".join([f"Feature {feature}", *examples, ""]))
    typer.echo(repr(features))
    if out is not None:
        features.save_pretrained(out)
        say(f"Saved in {out}.")
