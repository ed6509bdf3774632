"""An attention-only toy that completes repeated segments, and mirrored ones: its induction circuit is the truth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from benchmarks.toys.labels import LabelToy
from param_features.errors import SettingError, ToyError
from param_features.fit import FitSettings
from param_features.toys.cache import Weights, cached_checkpoints, cached_weights
from param_features.toys.hooked import build_hooked

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

VERSION = 3
_ATTEMPTS = 3
_LOW = 0.3
_N_LETTERS, _N_DRAWN, _SHORTEST, _LONGEST = 24, 24, 6, 8
_START = 2 * _N_LETTERS
_BATCH, _LR, _WEIGHT_DECAY, _NEW_WEIGHT = 64, 5e-3, 1.0, 0.1


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, and where the next token is foretold, by what.

    Small letters are tokens 0 to 23, capitals 24 to 47, and 48 begins every row.

    Attributes:
        tokens: The rows.
        repeated: Where a letter comes again, and so does the one after it.
        mirrored: Where a letter comes again as a capital, and the one that stood before it is next, as a capital.
        last: Where a repetition or a mirror image ends, which nothing foretells.
    """

    tokens: Int[Tensor, "row pos"]
    repeated: Bool[Tensor, "row pos"]
    mirrored: Bool[Tensor, "row pos"]
    last: Bool[Tensor, "row pos"]

    @property
    def known(self) -> Bool[Tensor, "row pos"]:
        """Where the next token is foretold."""
        return self.repeated | self.mirrored


@lru_cache(maxsize=16)
def induction(
    *, d_model: int = 32, n_heads: int = 4, n_steps: int = 800, n_rows: int = 1200, n_probes: int = 256, seed: int = 0
) -> LabelToy:
    """A trained attention-only transformer of two layers that must use induction, and where it uses it.

    A row begins with a token of its own, on which heads can rest. Then come different letters at random. A segment of six
    to eight small letters comes again twice, in either order: as it was, and backwards in capitals. Neither a letter's
    identity nor its position foretells the next: only "what followed this letter before" does, which is induction, or
    "what stood before it", at a capital. Other capitals lie about that foretell nothing. Weights are kept on disk (see
    `cache_folder`); toys are cached within the process.

    The one label, `repeated`, is where a letter came before and so did the next one. It is to be told from all other
    positions but the row's first and the last of either segment, where the model cannot know that it ends. W_Q and W_K of
    the second layer, where heads match a letter with what came before, are decomposed. Where heads rest their gradient
    nearly vanishes, but in the mirror image it is as large as where letters repeat: its norm alone does not tell the label.
    Cost: about 12 CPU seconds of training.

    Args:
        d_model: Width of the residual stream.
        n_heads: Heads in each layer.
        n_steps: Training steps of 64 rows.
        n_rows: Rows of 25 tokens for the decomposition.
        n_probes: Other rows for the score.
        seed: Of weights and data.

    Raises:
        SettingError: Sizes are not positive, or the heads do not share the width equally.
        MissingExtraError: HookedTransformer cannot be imported.
        ToyError: No start led to a model that foretells both.
    """
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_steps": n_steps}
    _check_sizes(sizes | {"n_rows": n_rows, "n_probes": n_probes})
    model = build_hooked(_architecture(d_model, n_heads), seed=seed)
    weights = cached_weights(
        "induction", {**sizes, "seed": seed}, lambda: _find(d_model, n_heads, n_steps, seed), version=VERSION
    )
    model.load_state_dict(model.state_dict() | weights)
    generator = torch.Generator().manual_seed(seed + 2**20)
    probes = draw_rows(n_probes, generator)
    return LabelToy(
        name="induction",
        model=model.eval(),
        params=("blocks.1.attn.W_Q", "blocks.1.attn.W_K"),
        inputs=draw_rows(n_rows, generator).tokens,
        n_features=20,
        l0=3,
        divergence="kl",
        settings={"n_samples": 8 * n_rows, "fit": FitSettings(batch_size=256), "steps": 500},
        probes=probes.tokens,
        labels={"repeated": probes.repeated},
        counted=~probes.last & (probes.tokens != _START),
    )


def induction_checkpoints(
    *, every: int = 20, d_model: int = 32, n_heads: int = 4, n_steps: int = 800, seed: int = 0
) -> dict[int, Weights]:
    """The weights of the toy of the same arguments through its training, kept on disk likewise.

    Cost: as the toy's training.

    Args:
        every: Steps between two checkpoints.
        d_model: As in `induction`.
        n_heads: As there.
        n_steps: As there.
        seed: As there.

    Returns:
        Parameters by name, by training step: 0 before the first, `n_steps` after the last, where they are the toy's own.

    Raises:
        SettingError: `every` or sizes are not positive, or the heads do not share the width equally.
        MissingExtraError: HookedTransformer cannot be imported.
        ToyError: As in `induction`.
    """
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_steps": n_steps}
    _check_sizes(sizes | {"every": every})

    def train() -> dict[int, Weights]:
        kept: dict[int, Weights] = {}
        last = _find(d_model, n_heads, n_steps, seed, lambda step, weights: _keep(kept, step, weights, every))
        return kept | {n_steps: last}

    return cached_checkpoints("induction_checkpoints", sizes | {"seed": seed, "every": every}, train, version=VERSION)


def _check_sizes(sizes: dict[str, int]) -> None:
    if min(sizes.values()) < 1 or sizes["d_model"] % sizes["n_heads"]:
        raise SettingError(f"{sizes}: all must be positive and d_model a multiple of n_heads.")


def _keep(kept: dict[int, Weights], step: int, weights: Weights, every: int) -> None:
    """Copy the weights of every so many steps; a new start forgets those of the last one."""
    if step == 0:
        kept.clear()
    if step % every == 0:
        kept[step] = {name: tensor.detach().clone() for name, tensor in weights.items()}


def draw_rows(n: int, generator: torch.Generator) -> Rows:
    """Rows as the toy is trained on."""
    letters = torch.rand(n, _N_LETTERS, generator=generator).argsort(1)[:, :_N_DRAWN]
    is_capital = torch.rand(n, _N_DRAWN, generator=generator) < 0.5
    length = torch.randint(_SHORTEST, _LONGEST + 1, (n, 1), generator=generator)
    spare = (torch.rand(n, 3, generator=generator) * (_N_DRAWN - 3 * length + 1)).long().sort(1).values
    source, first, second = (spare + length * torch.arange(3)).split(1, 1)
    is_mirror_first = torch.rand(n, 1, generator=generator) < 0.5
    copy, mirror = torch.where(is_mirror_first, second, first), torch.where(is_mirror_first, first, second)
    position = torch.arange(_N_DRAWN).expand(n, -1)
    is_source, is_copy, is_mirror = ((position >= start) & (position < start + length) for start in (source, copy, mirror))
    fresh = letters + _N_LETTERS * (is_capital & ~is_source)
    origin = torch.where(is_copy, source + position - copy, position)
    origin = torch.where(is_mirror, source + length - 1 - (position - mirror), origin)
    rows = fresh.gather(1, origin) + _N_LETTERS * is_mirror
    last = (position == copy + length - 1) | (position == mirror + length - 1)
    repeated, mirrored, last = (functional.pad(mask, (1, 0)) for mask in (is_copy & ~last, is_mirror & ~last, last))
    return Rows(functional.pad(rows, (1, 0), value=_START), repeated, mirrored, last)


def foretold_losses(model: "HookedTransformer", generator: torch.Generator, n: int = 512) -> tuple[float, float]:
    """Cross-entropy, in nats, of the tokens that are foretold: in repetitions, and in mirror images."""
    rows = draw_rows(n, generator)
    with torch.no_grad():
        losses = _losses(model, rows.tokens)
    return float(losses[rows.repeated[:, :-1]].mean()), float(losses[rows.mirrored[:, :-1]].mean())


def _architecture(d_model: int, n_heads: int) -> dict:
    return {
        "n_layers": 2,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_model // n_heads,
        "d_vocab": _START + 1,
        "n_ctx": _N_DRAWN + 1,
        "attn_only": True,
        "normalization_type": "LN",
        "positional_embedding_type": "shortformer",  # positions reach queries and keys only, and induction comes sooner
    }


def _find(
    d_model: int, n_heads: int, n_steps: int, seed: int, watch: Callable[[int, Weights], None] | None = None
) -> Weights:
    """The weights of the first start that foretells both; `watch` is given the step and the weights before each step."""
    generator, lowest = torch.Generator().manual_seed(seed), float("inf")
    for _ in range(_ATTEMPTS):
        start = int(torch.randint(2**31, (), generator=generator))
        model = build_hooked(_architecture(d_model, n_heads), seed=start)
        _train(model, n_steps, generator, watch)
        loss = max(foretold_losses(model, generator))
        if loss < _LOW:
            return dict(model.named_parameters())
        lowest = min(lowest, loss)
    raise ToyError(
        f"After {_ATTEMPTS} starts the loss on foretold tokens is {lowest:.2f} nats; {_LOW} or less is wanted, where they "
        "repeat and where they are mirrored. Ask for more steps or a larger d_model."
    )


@torch.enable_grad()
def _train(
    model: "HookedTransformer", n_steps: int, generator: torch.Generator, watch: Callable[[int, Weights], None] | None
) -> None:
    is_decayed = {name: ".W_" in name and "embed" not in name for name, _ in model.named_parameters()}
    groups = [
        {"params": [p for name, p in model.named_parameters() if is_decayed[name] is chosen], "weight_decay": decay}
        for chosen, decay in ((True, _WEIGHT_DECAY), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50, max(0.0, 2 * (1 - step / n_steps)))
    )
    for step in range(n_steps):
        if watch is not None:
            watch(step, dict(model.named_parameters()))
        rows = draw_rows(_BATCH, generator)
        losses, known = _losses(model, rows.tokens), rows.known[:, :-1]
        loss = losses[known].mean() + _NEW_WEIGHT * losses[~known].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _losses(model: "HookedTransformer", rows: Tensor) -> Tensor:
    return functional.cross_entropy(model(rows)[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")
