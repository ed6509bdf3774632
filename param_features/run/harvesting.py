"""`pf.harvest`: gradients of many samples to disk, for any number of fits."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

from torch import Tensor

from param_features.errors import SettingError
from param_features.files import new_folder
from param_features.gradients import HarvestSettings
from param_features.gradients.disk import Compression, FactorStore, harvested, recipe_of
from param_features.machine import launched, own_modes, public, spoken
from param_features.params import ParamSpec
from param_features.problem import read_model, read_problem, say_notices


@public
@own_modes()
def harvest(
    model: Any,
    params: ParamSpec,
    tokens: Any = None,
    *,
    directory: str | PathLike,
    inputs: Any = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = "sample",
    output: Callable[[Any], Tensor] | None = None,
    positions: Any = "all",
    tokenizer: Any = None,
    n_samples: int | None = None,
    settings: HarvestSettings | None = None,
    shard_mib: float = 256,
    compress_rank: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    progress: bool = True,
) -> FactorStore:
    """Take gradients once and keep them on disk, for `pf.decompose(…, store=…)` with any number of features, rank and l0.

    Called again with the same arguments it goes on after the last whole shard, re-makes shards that are damaged, and ends
    with the same bits as a harvest that was never cut short. The model is left exactly as it was.

    Of several processes that accelerate launched each takes its share of the shards; the store is that of one process, bit
    for bit, and a kill loses at most one shard of each.

    Cost: as the harvest of `pf.decompose`, and writing and hashing every shard once. Memory: one slot of a batch; gradients
    go to the disk as they come. Disk: of a factored sample, 4 bytes times positions times (d_out + d_in).

    Args:
        model: As for `pf.decompose`; so are `tokens`, `inputs`, `divergence`, `reference`, `output`, `positions` and
            `tokenizer`.
        params: Which parameters.
        tokens: Or texts.
        directory: Where the store is to lie; made where it is missing.
        inputs: Instead of tokens.
        divergence: What gradients are of.
        reference: What outputs are compared with.
        output: Takes what the model returns.
        positions: Which positions are samples.
        tokenizer: For strings.
        n_samples: Samples in all; overrides `settings.n_samples`, of which the default here is `max_samples`, whatever the
            memory.
        settings: Further settings.
        shard_mib: Size of a shard, in MiB; one batch at least, and what a kill loses at most.
        compress_rank: Keep so many leading factors of each training sample's gradient of a matrix, where that is smaller;
            None keeps it whole. The store says what is lost. Held-out gradients are always whole: errors are honest.
        dtype: Of the numbers in training shards: `"float32"` (as they come) or `"bfloat16"`. They are read as float32.
        seed: Draws samples, positions and references, as that of `pf.decompose` does.
        progress: Whether to show a progress bar and what is going on, on the error stream.

    Returns:
        The store, its shards checked.

    Raises:
        StoreError: The directory holds a store of other arguments, every difference named; or another harvest writes to it.
        DiskFullError: There is too little room, said before the run where it can be known; whole shards stay.
        SettingError: A setting is out of range.
    """
    if shard_mib <= 0:
        raise SettingError(f"shard_mib={shard_mib} must be positive; a few hundred is usual.")
    compression = Compression(compress_rank, dtype)
    settings = settings or HarvestSettings()
    settings = settings if n_samples is None else replace(settings, n_samples=n_samples)
    chosen = read_model(model, params, tokenizer=tokenizer, output=output)
    problem = read_problem(chosen, tokens, inputs, divergence=divergence, reference=reference, positions=positions)
    progress = progress and launched().is_main
    say = spoken(progress)
    say_notices(problem, divergence, say)
    recipe = recipe_of(problem, settings, seed=seed, shard_mib=shard_mib, compression=compression)
    return harvested(problem, settings, recipe, new_folder(directory), say=say, progress=progress, compression=compression)
