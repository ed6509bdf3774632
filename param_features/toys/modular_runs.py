"""Training of the modular-addition toy from its first step: memorised early, generalised late, kept as checkpoints."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from param_features.circuits import Metric
from param_features.errors import InputError, SettingError, UnknownParameterError, nearest
from param_features.machine import public
from param_features.params import Adapter
from param_features.problem import ModelInputs
from param_features.toys.cache import Weights, cached_checkpoints
from param_features.toys.hooked import build_hooked
from param_features.toys.modular_model import TRAINED, Course, masked, measured, sums, trained
from param_features.toys.modular_toy import ModularToy, all_pairs, architecture_of, check_sizes, toy_of

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

VERSION = 1


@dataclass(frozen=True)
class SumLoss(Metric):
    """Cross-entropy of a + b mod p after "=": the loss of the toy's training, for calls that take `loss=`."""

    unit = "nats"

    @property
    def name(self) -> str:
        """See `Metric`."""
        return "cross-entropy of the sum"

    def on(self, adapter: Adapter, inputs: ModelInputs):
        """See `Metric`."""
        pairs = inputs.tokens if inputs.tokens is not None else inputs.args[0]

        def values(output: Tensor) -> Tensor:
            logits = output if output.dim() == 2 else output[:, -1]
            return cross_entropy(logits, sums(pairs).to(logits.device), reduction="none")

        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class ModularTraining:
    """Checkpoints of one training run.

    Attributes:
        toy: The model with the last checkpoint's weights. `toy.model.load_state_dict(state)` puts another's there.
        steps: At which step each checkpoint was taken; 0 is the start.
        states: Each checkpoint's state dict.
        train: Rows [a, b, =] trained on.
        test: All other rows.
        losses: Mean cross-entropy on `train` and on `test`, nats.
        accuracies: Share of right answers on `train` and on `test`.
    """

    toy: ModularToy
    steps: tuple[int, ...]
    states: tuple[Weights, ...]
    train: Int[Tensor, "n_train three"]
    test: Int[Tensor, "n_test three"]
    losses: Float[Tensor, "checkpoint two"]
    accuracies: Float[Tensor, "checkpoint two"]

    def __repr__(self) -> str:
        """Where it memorised and where it generalised."""
        early, late = self.first_step(0.99, on="train"), self.first_step(0.99)
        return (
            f"ModularTraining of {self.toy.name}: {len(self.steps)} checkpoints to step {self.steps[-1]}; 99% right on the "
            f"{len(self.train)} pairs trained on at step {early}, on the {len(self.test)} others at step {late}"
        )

    @public
    def first_step(self, accuracy: float, *, on: str = "test") -> int | None:
        """The step of the first checkpoint with this share of right answers on `"test"` or `"train"`; None where none has.

        Raises:
            SettingError: `on` is neither.
        """
        if on not in ("train", "test"):
            raise SettingError(f"on={on!r} is unknown. Accepted: 'train', 'test'.")
        reached = self.accuracies[:, ("train", "test").index(on)] >= accuracy
        return self.steps[int(reached.nonzero()[0])] if bool(reached.any()) else None

    @public
    def pruned(self, masks: Mapping[str, Tensor]) -> tuple[float, float]:
        """Test loss in nats and test accuracy of the last checkpoint, weights being 0 where a mask is False.

        Raises:
            UnknownParameterError: A mask is of no trained parameter.
            InputError: A mask has another shape, or is not of bools.
        """
        return measured(masked(self.states[-1], self._checked(masks)), self.test)

    @public
    def retrained(
        self,
        masks: Mapping[str, Tensor],
        *,
        rewind: int = 0,
        n_steps: int | None = None,
        every: int = 25,
        until: float | None = None,
    ) -> "ModularTraining":
        """The same training once more, from an early checkpoint's weights, with those under a mask held at 0.

        Cost: as the training, 12 ms for each step with the default sizes. Nothing is kept on disk.

        Args:
            masks: By parameter, False where an entry is 0 from first to last; other parameters train in full.
            rewind: The step of the checkpoint to start from. 0 is the initialisation.
            n_steps: Steps from there; as many as this training had by default.
            every: Steps between checkpoints.
            until: Test accuracy at which to stop.

        Returns:
            A training whose steps count from that checkpoint.

        Raises:
            SettingError: There is no such checkpoint, or a count is not positive.
            UnknownParameterError: A mask is of no trained parameter.
            InputError: A mask has another shape, or is not of bools.

        Source: Frankle and Carbin 2019 (1803.03635); for rewinding, Frankle et al. 2020 (1912.05671).
        """
        n_steps = self.steps[-1] if n_steps is None else n_steps
        if rewind not in self.steps:
            raise SettingError(f"rewind={rewind} is no checkpoint. Accepted: {', '.join(map(str, self.steps))}.")
        if min(n_steps, every) < 1:
            raise SettingError(f"n_steps={n_steps} and every={every} must be positive.")
        course = Course(n_steps, every, self._checked(masks), until)
        checkpoints = trained(self.states[self.steps.index(rewind)], self.train, self.test, course)
        return _record(self.toy.p, cast("HookedTransformer", self.toy.model), checkpoints, self.train, self.test)

    def _checked(self, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        for name, mask in masks.items():
            if name not in TRAINED:
                raise UnknownParameterError(
                    f"A mask is of {name!r}, which is not trained. Accepted: {', '.join(TRAINED)}; nearest: "
                    f"{nearest(name, TRAINED)}."
                )
            if mask.dtype != torch.bool or mask.shape != self.states[0][name].shape:
                raise InputError(
                    f"The mask of {name!r} has shape {tuple(mask.shape)} and dtype {mask.dtype}. Give bools of shape "
                    f"{tuple(self.states[0][name].shape)}, as pf.development.ticket_masks does."
                )
        return masks


@public
@lru_cache(maxsize=4)
def modular_training(
    p: int = 53,
    *,
    train_share: float = 0.5,
    n_steps: int = 1500,
    every: int = 50,
    d_model: int = 64,
    d_mlp: int = 256,
    seed: int = 0,
) -> ModularTraining:
    """Train a one-layer transformer on half of all sums modulo p from its first step, and keep its weights as it goes.

    It is right on the pairs trained on long before it is on the others: it groks. Full batches, AdamW with learning rate
    0.002 and weight decay 2, no biases. Checkpoints are kept on disk (see `cache_folder`), trainings within the process.

    Cost: 12 ms of CPU for each step with the default sizes.

    Args:
        p: The modulus, a prime from 7 up.
        train_share: Of all pairs. From fewer it generalises later, and from too few never.
        n_steps: Training steps.
        every: Steps between checkpoints.
        d_model: Width of the residual stream; four heads share it.
        d_mlp: Neurons.
        seed: Of weights and of the pairs trained on.

    Raises:
        SettingError: `p` is no prime from 7 up, sizes do not fit, or another setting is out of range.
        MissingExtraError: HookedTransformer cannot be imported.

    Source: Nanda et al. 2023 (2301.05217); differs: a smaller modulus, a larger share of pairs and stronger weight decay, so
    that half a minute is enough.
    """
    check_sizes(p, d_model, d_mlp, n_steps)
    if not 0 < train_share < 1 or every < 1:
        raise SettingError(f"train_share={train_share} must lie between 0 and 1, and every={every} be positive.")
    model = build_hooked(architecture_of(p, d_model, d_mlp), seed=seed)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    train, test = all_pairs(p)[order].tensor_split([round(train_share * p * p)])
    sizes = {"p": p, "d_model": d_model, "d_mlp": d_mlp, "train_share": train_share, "n_steps": n_steps, "every": every}
    checkpoints = cached_checkpoints(
        "modular_training",
        {**sizes, "seed": seed},
        lambda: trained(model.state_dict(), train, test, Course(n_steps, every, {})),
        version=VERSION,
    )
    return _record(p, model, checkpoints, train, test)


def _record(
    p: int, like: "HookedTransformer", checkpoints: Mapping[int, Weights], train: Tensor, test: Tensor
) -> ModularTraining:
    """Checkpoints with what they get right, and a toy with the last one's weights in a model of its own."""
    untrained = {name: tensor.detach().clone() for name, tensor in like.state_dict().items() if name not in TRAINED}
    states = tuple(untrained | weights for weights in checkpoints.values())
    model = deepcopy(like)
    model.load_state_dict(states[-1])
    scores = torch.tensor([[measured(weights, rows) for rows in (train, test)] for weights in checkpoints.values()])
    return ModularTraining(
        toy=toy_of(p, model),
        steps=tuple(checkpoints),
        states=states,
        train=train,
        test=test,
        losses=scores[..., 0],
        accuracies=scores[..., 1],
    )
