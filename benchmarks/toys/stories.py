"""The demo story model as a toy: its grammar's rules are the truth."""

from functools import lru_cache

import torch

from benchmarks import demo_data
from benchmarks.toys.labels import LabelToy
from param_features import demo
from param_features.errors import SettingError
from param_features.fit import FitSettings


@lru_cache(maxsize=4)
def stories(*, n_rows: int = 1200, n_probes: int = 256, seed: int = 0) -> LabelToy:
    """The demo model, stories it was not trained on, and where each of 32 rules of its grammar decides the next token.

    A rule's positions are those at which the model must apply it. Every position counts. Where a rule is told by the token
    alone, random directions tell it too: `told_alone` leaves such rules out.
    Cost: nothing is trained; a fit takes a minute.

    Args:
        n_rows: Rows of 64 tokens for the decomposition.
        n_probes: Other rows for the score; half of them choose a rule's feature, the other half measure it.
        seed: Of the rows; the model is always the same.

    Raises:
        SettingError: `n_rows` or `n_probes` is below 2.
        MissingExtraError: TransformerLens cannot be imported.
    """
    if min(n_rows, n_probes) < 2:
        raise SettingError(f"n_rows={n_rows} and n_probes={n_probes} must be at least 2.")
    probes = demo_data.tokens(n_probes, seed=2 * seed + 1)
    return LabelToy(
        name="demo stories",
        model=demo.load_model(),
        params=("blocks.1.attn.W_K",),
        inputs=demo_data.tokens(n_rows, seed=2 * seed),
        n_features=100,
        l0=5,
        divergence="kl",
        settings={"n_samples": 12 * n_rows, "fit": FitSettings(batch_size=512), "steps": 600},
        probes=probes,
        labels=demo_data.rules(n_probes, seed=2 * seed + 1),
        counted=torch.ones_like(probes, dtype=torch.bool),
    )
