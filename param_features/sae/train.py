"""`pf.sae.train_sae`: a baseline SAE by sae-lens, with the field's recipe."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from param_features.adapters import sae_lens_library
from param_features.errors import FeatureCountError, NonFiniteError, SettingError
from param_features.machine import own_modes, public
from param_features.params import adapter_for
from param_features.problem import read_inputs
from param_features.sae.resampling import resample, reset_moments
from param_features.sae.site import activations_at

ARCHITECTURES = ("batchtopk", "topk")
_N_CHECKS = 10
_LR = 0.024


@public
@own_modes()
def train_sae(
    model: Any,
    hook_name: str,
    tokens: Any = None,
    *,
    inputs: Any = None,
    n_features: int = 100,
    l0: float | None = None,
    architecture: str = "batchtopk",
    n_epochs: float = 10,
    lr: float | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    progress: bool = True,
    tokenizer: Any = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Any:
    """Train an SAE of sae-lens on the model's activations: a baseline beside parameter features.

    The recipe: a pre-encoder bias that starts at the activations' mean; an untied decoder whose rows keep unit norm, the
    part of the gradient parallel to a row taken off before Adam sees it; features that fired on no sample for an epoch
    resampled, ten times during the first three quarters, and Adam's moments for them reset; the learning rate warmed up
    over 5 % of the steps and lowered to zero over the last 20 %.

    Cost: one forward pass of the data, whose activations are held in memory; then n_epochs passes over them. A minute for
    512 features, 64 numbers and 190,000 samples on one core.

    Args:
        model: Any model that `pf.decompose` takes; it is left exactly as it was.
        hook_name: A hook point of TransformerLens, or the name of a submodule whose output is taken.
        tokens: As for `pf.decompose`; every real position is a sample.
        inputs: Instead of tokens, what the module takes; a sample is an input, all of its activations joined.
        n_features: Size of the dictionary.
        l0: Features per sample; n_features / 20, at least 1, by default.
        architecture: `"batchtopk"` keeps l0 features per sample on average, as parameter features do, and is saved as a
            JumpReLU SAE; `"topk"` keeps exactly l0, a whole number.
        n_epochs: Passes over the samples.
        lr: Adam's learning rate; 0.024 / √d_in by default, 0.003 for 64 numbers: rows have entries of about 1 / √d_in.
        batch_size: Samples per step.
        seed: Of weights, order and resampling. Same seed, same machine, same bits.
        progress: Whether to show a progress bar on the error stream.
        tokenizer: For strings, where the model carries none.
        output: As for `pf.decompose`.

    Returns:
        sae-lens' object for inference: `encode`, `decode`, `save_model(folder)`; `SAE.load_from_disk(folder)` gives it back.
        Its metadata names the model, the hook, the context size and the settings.

    Raises:
        UnknownHookError: The model has no such place; lists the nearest.
        InputError: Inputs that the model cannot take, or a place without activations.
        FeatureCountError: `n_features` or `l0` out of range.
        SettingError: Another setting is out of range.
        NonFiniteError: The SAE's weights became NaN or infinite.
        MissingExtraError: sae-lens is not installed.

    Source: SAETrainer and its SAEs are sae-lens'; decoder norms and resampling follow Bricken et al., *Towards
        Monosemanticity* (2023); BatchTopK, Bussmann et al. (arXiv 2412.06410).
    """
    l0 = max(1.0, n_features / 20) if l0 is None else float(l0)
    plan = TrainingPlan(n_features, l0, architecture, n_epochs, lr, batch_size, seed)
    library = sae_lens_library()
    adapter = adapter_for(model).reading(tokenizer=tokenizer, output=output)
    data = read_inputs(adapter, tokens, inputs)
    acts = activations_at(adapter, data, hook_name).flatten(1).float()
    device = next((parameter.device for parameter in adapter.module.parameters()), acts.device)
    metadata = {
        "model_name": getattr(getattr(adapter.model, "cfg", None), "model_name", None) or adapter.description,
        "hook_name": hook_name,
        "context_size": data.n_pos,
        "n_training_samples": len(acts),
        "param_features": vars(plan),
    }
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerators' generators too
        return _inference(library, _trained(library, acts, plan, metadata, device, progress=progress))


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of a training, checked to lie within range."""

    n_features: int
    l0: float
    architecture: str
    n_epochs: float
    lr: float | None
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not (self.n_features >= 1 and 0 < self.l0 <= self.n_features):
            raise FeatureCountError(
                f"n_features={self.n_features} and l0={self.l0:g}. n_features must be at least 1, and l0 above 0 and at "
                "most n_features."
            )
        if self.architecture not in ARCHITECTURES:
            raise SettingError(
                f"architecture={self.architecture!r} is unknown. Accepted: {', '.join(map(repr, ARCHITECTURES))}. "
                "Others are trained by sae-lens itself."
            )
        if self.architecture == "topk" and self.l0 != round(self.l0):
            raise SettingError(
                f"l0={self.l0:g} with architecture='topk', which keeps a whole number. Round it, or take 'batchtopk'."
            )
        for name in ("n_epochs", "lr", "batch_size"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise SettingError(f"{name}={getattr(self, name)} must be above 0.")


def _trained(
    library: Any,
    acts: Float[Tensor, "sample d_in"],
    plan: TrainingPlan,
    metadata: dict,
    device: torch.device,
    *,
    progress: bool,
) -> Any:
    """Train an SAE and return it as it is after the last step."""
    size = min(plan.batch_size, len(acts))
    n_steps = max(1, round(plan.n_epochs * len(acts) / size))
    sae = _training_sae(library, plan, acts.shape[1], metadata).to(device)
    with torch.no_grad():
        sae.b_dec.copy_(acts.mean(0))
    per_epoch = max(1, len(acts) // size)
    trainer = _trainer(sae, plan, n_steps, size, per_epoch)
    generator = torch.Generator().manual_seed(plan.seed)
    batches = _batches(len(acts), size, generator)
    checks = {round(n_steps * 0.75 * part / _N_CHECKS) for part in range(1, _N_CHECKS + 1)} - {0}
    for step in tqdm(range(n_steps), desc="sae", disable=not progress, file=sys.stderr):
        trainer.step(acts[next(batches)])
        trainer.n_training_steps += 1
        if step + 1 in checks:
            dead = trainer.dead_neurons.nonzero()[:, 0].cpu()
            resample(sae, acts, dead, generator)
            reset_moments(trainer.optimizer, sae, dead)
    if not all(bool(parameter.isfinite().all()) for parameter in sae.parameters()):
        raise NonFiniteError(f"The SAE's weights became NaN or infinite at lr={trainer.cfg.lr:g}. Take a smaller lr=.")
    trainer.set_final_sae_metadata()
    return sae


def _batches(n_samples: int, size: int, generator: torch.Generator):
    """Draw indices of batches without end, every sample once an epoch but for the last few."""
    while True:
        order = torch.randperm(n_samples, generator=generator)
        yield from (order[start : start + size] for start in range(0, n_samples - size + 1, size))


def _training_sae(library: Any, plan: TrainingPlan, d_in: int, metadata: dict) -> Any:
    classes = {
        "batchtopk": (library.BatchTopKTrainingSAE, library.BatchTopKTrainingSAEConfig, float),
        "topk": (library.TopKTrainingSAE, library.TopKTrainingSAEConfig, int),
    }
    kind, config, number = classes[plan.architecture]
    settings = config(
        d_in=d_in,
        d_sae=plan.n_features,
        k=number(plan.l0),
        apply_b_dec_to_input=True,
        decoder_init_norm=1.0,
        rescale_acts_by_decoder_norm=False,  # rows have unit norm throughout
        aux_loss_coefficient=0.0,  # dead features are resampled instead
    )
    for name, value in metadata.items():
        settings.metadata[name] = value
    return kind(settings)


def _trainer(sae: Any, plan: TrainingPlan, n_steps: int, size: int, per_epoch: int) -> Any:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=n_steps * size,
        train_batch_size_samples=size,
        lr=_LR / sae.cfg.d_in**0.5 if plan.lr is None else plan.lr,
        lr_end=0.0,
        lr_warm_up_steps=n_steps // 20,
        lr_decay_steps=n_steps // 5,
        device=str(sae.device),
        dead_feature_window=per_epoch,
        feature_sampling_window=per_epoch,
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    trainer.optimizer.register_step_pre_hook(lambda *_: _drop_parallel(sae))
    trainer.optimizer.register_step_post_hook(lambda *_: _unit_rows(sae))
    return trainer


@torch.no_grad()
def _drop_parallel(sae: Any) -> None:
    """Take the part parallel to each decoder row off its gradient: renormalising would undo it, and Adam's moments not."""
    rows, gradient = sae.W_dec, sae.W_dec.grad
    gradient -= (gradient * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True) * rows


@torch.no_grad()
def _unit_rows(sae: Any) -> None:
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _inference(library: Any, trained: Any) -> Any:
    """Make the SAE for inference, as sae-lens would load it after `save_inference_model`."""
    weights = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
    trained.process_state_dict_for_saving_inference(weights)
    sae = library.SAE.from_dict(trained.cfg.get_inference_sae_cfg_dict())
    sae.load_state_dict(weights)
    return sae.requires_grad_(False).eval()
