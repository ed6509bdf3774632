"""`pf.sae.sae_metrics`: an SAE's sparsity, its reconstruction, and what the model loses when it runs on that."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.adapters import SparseAutoencoder, read_sae
from param_features.errors import InputError, SettingError
from param_features.machine import own_modes, public
from param_features.params import Adapter, adapter_for
from param_features.problem import ModelInputs, read_inputs
from param_features.sae.site import activations_at, has_positions, run_replaced

Replacement = Callable[[Tensor, slice], Tensor]
"""(activations of some samples, which of all samples they are) -> what takes their place."""

_POSITIONS_PER_BATCH = 4096
_BINS = 12
_MEANINGS = {
    "n_features": "",
    "n_samples": "",
    "l0": "features active per sample",
    "density": "share of samples that a feature is active on, median",
    "dead": "features active on no sample",
    "mse": "square error over the activations' variance; 0 is perfect, 1 predicts the mean",
    "explained_variance": "1 less that",
    "loss": "the model's cross-entropy, nats per token",
    "loss_reconstructed": "with the SAE's reconstruction in place of the activation",
    "loss_zero": "with zero in its place",
    "loss_mean": "with the mean activation in its place",
    "loss_recovered": "share of what zero costs that the reconstruction does not",
    "loss_recovered_mean": "the same for the mean",
}


@dataclass(frozen=True, eq=False)
class SaeMetrics(Mapping[str, float]):
    """What `sae_metrics` measured: numbers by name, and every feature's density.

    Attributes:
        numbers: The values.
        densities: Share of samples that each feature is active on.
    """

    numbers: Mapping[str, float]
    densities: Float[Tensor, " feature"]

    def __getitem__(self, name: str) -> float:
        """Look up one number by its name."""
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in order."""
        return iter(self.numbers)

    def __len__(self) -> int:
        """Count the numbers."""
        return len(self.numbers)

    @public
    def histogram(self, n_bins: int = _BINS) -> tuple[list[int], list[float]]:
        """Count features by log10 density, and give the bins' edges; dead features are in none."""
        alive = self.densities[self.densities > 0].log10()
        if not len(alive):
            return [0] * n_bins, [float(edge) for edge in range(-n_bins, 1)]
        counts, edges = torch.histogram(alive.double(), n_bins)
        return counts.long().tolist(), edges.tolist()

    def __repr__(self) -> str:
        """Print the numbers as a table with their meanings."""
        return "\n".join(f"{name:<20} {self._number(name):>9}  {_MEANINGS[name]}".rstrip() for name in self)

    def _number(self, name: str) -> str:
        value = self[name]
        return str(int(value)) if name.startswith("n_") or name == "dead" else f"{value:.4f}"


@public
@own_modes()
def sae_metrics(
    sae: Any,
    model: Any,
    tokens: Any = None,
    *,
    inputs: Any = None,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    tokenizer: Any = None,
    output: Callable[[Any], Tensor] | None = None,
) -> SaeMetrics:
    """Measure an SAE on a model: how sparse it is, what it rebuilds, and what the model's loss becomes with it.

    A transcoder is held against what the model writes at its `hook_name_out`, and replaces that; its skip connection, where
    it has one, counts as part of what it rebuilds.

    Cost: five forward passes, four of them for the losses, which a model of tokens has; six for a transcoder.

    Args:
        sae: An SAE or a transcoder of sae-lens or dictionary_learning, its folder, or a pair (release, id) on the hub.
        model: Any model that `pf.decompose` takes; it is left exactly as it was.
        tokens: As for `pf.decompose`, best of texts that the SAE was not trained on.
        inputs: The same, for models that take no tokens; a sample is then an input.
        hook_name: Where the SAE reads; what its metadata say by default.
        hook_name_out: Where a transcoder writes; what its metadata say by default.
        tokenizer: For strings, where the model carries none.
        output: As for `pf.decompose`.

    Returns:
        `l0`, `density`, `dead`, `mse`, `explained_variance`; for models that predict tokens the cross-entropy of the next
        token with the activations themselves (`loss`), reconstructed, zero, and at their mean; and the shares recovered.

    Raises:
        AdapterError: `sae` is no SAE.
        UnknownHookError: The model has no such place; lists the nearest.
        FeatureMismatchError: The SAE reads or writes something of another size.
        InputError: The SAE names no place.
        SettingError: `hook_name_out` is another place, and `sae` is no transcoder.

    Source: Bricken et al. (2023), *Towards Monosemanticity*: density histogram, reconstructed loss.
    """
    reader = read_sae(sae)
    place = named_place(reader, hook_name)
    place_out = place_written(reader, place, hook_name_out)
    adapter = adapter_for(model).reading(tokenizer=tokenizer, output=output)
    data = read_inputs(adapter, tokens, inputs)
    acts = activations_at(adapter, data, place)
    target = acts if place_out == place else activations_at(adapter, data, place_out)
    reader.check_read(acts.shape[1:])
    reader.check_written(acts.shape[:1], target.shape)
    mean = target.mean(0)
    n_active = torch.zeros(reader.n_features, dtype=torch.float64)
    for chunk in reader.encode(acts):
        n_active += (chunk != 0).sum(0)
    square_error = float((reader.reconstruct(acts).reshape(target.shape) - target).double().square().sum())
    variance = float((target - mean).double().square().sum())
    densities = n_active / len(acts)
    mse = square_error / variance if variance else float("nan")
    values = {
        "n_features": reader.n_features,
        "n_samples": len(acts),
        "l0": float(densities.sum()),
        "density": float(densities.median()),
        "dead": float((densities == 0).sum()),
        "mse": mse,
        "explained_variance": 1 - mse,
    }
    if data.tokens is not None and adapter.predicts_tokens:
        values |= _losses(adapter, data, place_out, lambda at: reader.reconstruct(acts[at]), mean)
    return SaeMetrics(values, densities)


def named_place(sae: SparseAutoencoder, hook_name: str | None) -> str:
    """Find where the SAE reads: what the user says, or else its metadata.

    Raises:
        InputError: Neither the user nor the SAE's metadata say.
    """
    place = hook_name or sae.hook_name
    if not place:
        raise InputError("The SAE's metadata name no hook. Say where it reads: hook_name='blocks.2.hook_resid_post', say.")
    return place


def place_written(sae: SparseAutoencoder, place: str, hook_name_out: str | None) -> str:
    """Find where it writes: where an SAE reads; of a transcoder what the user says, or else its metadata.

    Raises:
        InputError: Neither the user nor the transcoder's metadata say.
        SettingError: Another place is given for an SAE.
    """
    if not sae.is_transcoder:
        if hook_name_out not in (None, place):
            raise SettingError(
                f"hook_name_out={hook_name_out!r}, and the {sae.description} rebuilds what it reads. Leave it out, "
                "or give a transcoder."
            )
        return place
    if not (place_out := hook_name_out or sae.hook_name_out):
        raise InputError(
            f"The metadata of the {sae.description} do not name where it writes. Say hook_name_out='blocks.2.hook_mlp_out', "
            "say."
        )
    return place_out


def _losses(
    adapter: Adapter, data: ModelInputs, place: str, rebuilt: Callable[[slice], Tensor], mean: Tensor
) -> dict[str, float]:
    """Measure cross-entropies with the activations at every real position replaced in several ways."""
    replacements: dict[str, Replacement | None] = {
        "loss": None,
        "loss_reconstructed": lambda acts, at: rebuilt(at).reshape(acts.shape).to(acts),
        "loss_zero": lambda acts, at: torch.zeros_like(acts),
        "loss_mean": lambda acts, at: mean.to(acts).expand_as(acts),
    }
    losses = {name: _loss(adapter, data, place, function) for name, function in replacements.items()}
    unchanged, reconstructed = losses["loss"], losses["loss_reconstructed"]
    for control, name in (("loss_zero", "loss_recovered"), ("loss_mean", "loss_recovered_mean")):
        cost = losses[control] - unchanged
        losses[name] = (losses[control] - reconstructed) / cost if cost else float("nan")
    return losses


def _loss(adapter: Adapter, data: ModelInputs, place: str, function: Replacement | None) -> float:
    total, n_tokens, n_samples = 0.0, 0, 0
    size = max(1, _POSITIONS_PER_BATCH // data.n_pos)
    for start in range(0, len(data), size):
        rows = data.rows(slice(start, start + size))
        replace = None if function is None else _at_samples(rows, function, n_samples)
        output, acts = run_replaced(adapter, rows, place, replace)
        n_samples += _n_samples(acts, rows)
        ids = rows.tokens
        if ids is None or output.dim() != 3 or output.shape[:2] != ids.shape:
            return float("nan")
        is_real = torch.ones_like(ids, dtype=torch.bool) if rows.mask is None else rows.mask
        is_counted = is_real[:, :-1] & is_real[:, 1:]
        logits, following = output[:, :-1][is_counted], ids[:, 1:][is_counted]
        total += float(torch.nn.functional.cross_entropy(logits.double(), following, reduction="sum"))
        n_tokens += len(following)
    return total / n_tokens if n_tokens else float("nan")


def _n_samples(acts: Tensor, rows: ModelInputs) -> int:
    if not has_positions(acts, rows):
        return len(acts)
    return acts.shape[:2].numel() if rows.mask is None else int(rows.mask.sum())


def _at_samples(rows: ModelInputs, function: Replacement, start: int) -> Callable[[Tensor], Tensor]:
    """Make a replacement of samples one of activations at all positions; padding keeps what it had."""

    def replace(acts: Tensor) -> Tensor:
        at = slice(start, start + _n_samples(acts, rows))
        if not has_positions(acts, rows):
            return function(acts, at)
        is_real = torch.ones(acts.shape[:2], dtype=torch.bool, device=acts.device) if rows.mask is None else rows.mask
        changed = acts.clone()
        changed[is_real] = function(acts[is_real], at).to(changed)
        return changed

    return replace
