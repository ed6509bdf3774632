"""Training the coefficients of chosen features: n numbers, the directions fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from param_features.errors import FeatureCountError
from param_features.fit.formats import LowRank
from param_features.fitted import Fitted
from param_features.gradients import GradientEngine
from param_features.intervene.lora_comparison import LORA_LRS, RANDOM_FACTORS, LoraComparison, Rivals
from param_features.intervene.objective import Objective
from param_features.intervene.optimise import Budget, TrainingReading, train
from param_features.intervene.task import Task
from param_features.intervene.trainables import coefficients_of, first_order
from param_features.machine import public
from param_features.params import held_still


@dataclass(frozen=True, eq=False)
class FineTuned:
    """Trained coefficients, and what they gain and cost.

    Attributes:
        coefficients: δ by feature, for `steer`, `to_lora` and `edit`.
        history: Readings from before the first step to after the last.
        settings: Steps, learning rate, batch size and seed.
        unit: Of the off-target divergence; nats for KL(original ‖ tuned).
    """

    coefficients: Mapping[int, float]
    history: tuple[TrainingReading, ...]
    settings: Budget
    unit: str
    _engine: GradientEngine = field(repr=False, compare=False)
    _objective: Objective = field(repr=False, compare=False)
    _directions: LowRank = field(repr=False, compare=False)

    @property
    def loss_before(self) -> float:
        """On the data to be learned, with the model as it is."""
        return self.history[0].loss

    @property
    def loss_after(self) -> float:
        """On the data to be learned, with the coefficients."""
        return self.history[-1].loss

    @property
    def gain(self) -> float:
        """By how much the loss on the data to be learned fell."""
        return self.loss_before - self.loss_after

    @property
    def off_target(self) -> float:
        """Mean divergence of the tuned from the original output on the other data, in `unit` per position (or input)."""
        return self.history[-1].off_target

    def __repr__(self) -> str:
        """The coefficients, the loss before and after, and how far other outputs moved."""
        n_rows = len(self._objective.off_target.inputs)
        steps = "  ".join(f"{feature}: {step:+.4g}" for feature, step in self.coefficients.items())
        note = "" if self.loss_after < self.loss_before else "\nThe loss did not fall: take a smaller lr=, or more steps=."
        head = f"FineTuned: {len(self.coefficients)} coefficients of {', '.join(self._engine.subset.names)}"
        return (
            f"{head}, {self.history[-1].step} steps\n"
            f"loss         {self.loss_before:.4f} before, {self.loss_after:.4f} after, on the data learned\n"
            f"off_target   {self.off_target:.4g} {self.unit} away from the original, on {n_rows} other rows\n"
            f"coefficients {steps}{note}"
        )

    @public
    def beside_lora(
        self,
        rank: int = 1,
        *,
        lrs: Sequence[float] = LORA_LRS,
        n_random: int = 3,
        random_lrs: Sequence[float] | None = None,
        progress: bool = True,
    ) -> LoraComparison:
        """Off-target divergence at equal gain: these coefficients, a plain LoRA, and coefficients of random directions.

        Each rival is trained on the same rows with the same loss, penalty, steps and batch size, once for each learning
        rate, and read 40 times on the way; where its loss has fallen by this gain the off-target divergence is read, and the
        best learning rate counts. LoRA is peft's own, on a copy of the model, where the model is Hugging Face's and the
        parameters are whole weights of its linear layers; otherwise B·A on each parameter's matrix, trained here. The row
        says which.

        Cost: len(lrs) + n_random · len(random_lrs) trainings.

        Args:
            rank: LoRA's.
            lrs: Learning rates for LoRA.
            n_random: How many sets of random directions, each as many as the features and of their rank.
            random_lrs: Learning rates for those; this training's own by default, its third, its threefold and tenfold.
            progress: Whether to show progress bars on the error stream.

        Raises:
            FeatureCountError: `rank` or `n_random` is out of range.
            SettingError: There is no gain to compare at, or no learning rate.
            MissingExtraError: peft is needed and not installed.
        """
        if rank < 1 or n_random < 0:
            raise FeatureCountError(f"rank={rank} and n_random={n_random}. rank must be at least 1, n_random at least 0.")
        if random_lrs is None:
            random_lrs = [self.settings.lr * factor for factor in RANDOM_FACTORS]
        rivals = Rivals(self._engine, self._objective, self._directions, self.settings, progress)
        with held_still(self._engine.adapter.module):
            return rivals.compare(self.history, self.unit, rank=rank, lrs=lrs, n_random=n_random, random_lrs=random_lrs)


def tune(features: Fitted, chosen: Sequence[int], objective: Objective, budget: Budget, *, progress: bool) -> FineTuned:
    """Train the coefficients of the chosen features; see `TrainableFeatures.finetune`."""
    engine = features.bound_engine("finetune")
    directions = features.v_out.rows(list(chosen))
    with held_still(engine.adapter.module):
        trainable = coefficients_of(engine, directions)
        history = train(objective, trainable, budget, progress=progress, title="finetune")
    steps = trainable.tensors[0].detach().tolist()
    unit = f"{objective.off_target.divergence.unit} per {'position' if engine.per_position else 'input'}"
    return FineTuned(dict(zip(chosen, steps, strict=True)), tuple(history), budget, unit, engine, objective, directions)


def choose(features: Fitted, selection: int | Sequence[int], task: Task, batch_size: int) -> list[int]:
    """The features to train: those that are listed, or as many as are asked for, of the largest |∂loss/∂δ_k|, largest first.

    Args:
        features: Bound to a model.
        selection: Numbers of features, or how many.
        task: What is to be learned.
        batch_size: Rows per pass.

    Raises:
        FeatureCountError: There is no such feature, none, or one twice.
    """
    if isinstance(selection, int):
        if not 1 <= selection <= features.n_features:
            raise FeatureCountError(
                f"features={selection} asks for that many. Ask for 1 to {features.n_features}, or list them: [{selection}]."
            )
        engine = features.bound_engine("finetune")
        with held_still(engine.adapter.module):
            slopes = first_order(engine, task, features.v_out, batch_size)
        return slopes.abs().argsort(descending=True, stable=True)[:selection].tolist()
    chosen = list(selection)
    for feature in chosen:
        features.check_feature(feature)
    if not chosen or len(set(chosen)) < len(chosen):
        raise FeatureCountError(f"features={chosen} holds {'none' if not chosen else 'one twice'}. List each feature once.")
    return chosen
