"""Using features elsewhere: as a LoRA adapter, and with coefficients trained for a task."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from param_features.errors import SettingError
from param_features.features.measuring import MeasuredFeatures
from param_features.intervene import (
    Budget,
    FineTuned,
    Loss,
    choose,
    read_off_target,
    read_task,
    tune,
    with_penalty,
    write_lora,
)
from param_features.machine import methods_in_own_modes, public
from param_features.run import bind

_N_READINGS = 10


@methods_in_own_modes
class TrainableFeatures(MeasuredFeatures):
    """Features whose coefficients can be exported and trained."""

    @public
    def to_lora(
        self,
        path: str | PathLike,
        coefficients: Mapping[int, float],
        *,
        model: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        """Write W + Σ δ_k v_k as a LoRA adapter in peft's own files; `peft.PeftModel.from_pretrained(hf, path)` loads it.

        The logits are those inside `steer(coefficients)`, to about 1e-6 of the largest for a model in float32. In bfloat16
        they differ by about the weights' rounding: peft adds to a layer's output in float32 what `steer` rounds into it.

        Expressed exactly: weights and biases of `nn.Linear`, transformers' `Conv1D` and convolutions, whole or in part
        (`c_attn.weight[k]`), and weights of untied `nn.Embedding`. All else is refused by name before anything is written.

        Cost: the factors alone, (d_in + d_out) · rank numbers a layer; the rank is the sum of the features' ranks.

        Args:
            path: The folder; an earlier adapter there is replaced, whole or not at all.
            coefficients: Steps δ by feature.
            model: The model that peft will wrap, if the features are bound to another library's: the parameters are found
                in it by their weights, as `pf.load` does.
            dtype: Of the stored factors.

        Returns:
            The folder.

        Raises:
            ExportError: peft cannot hold a parameter: says which and why.
            FingerprintError: `model` does not hold these weights, after folding LayerNorm for example.
            UnknownParameterError: `model` has no parameter of that size and name.
            FeatureCountError: There is no such feature.
            SettingError: No coefficients, or one that is no finite number.
            StoreError: Something else lies at `path`.
            NotBoundError: The features were loaded without a model, and none is given.
            MissingExtraError: peft is not installed.
        """
        if model is None:
            self.bound_engine("to_lora")
            return write_lora(self, path, coefficients, dtype=dtype)
        output = None if self.engine is None else self.engine.adapter.given_output
        return write_lora(bind(self, model, output=output), path, coefficients, dtype=dtype)

    @public
    def finetune(
        self,
        data: Any = None,
        features: int | Sequence[int] = 10,
        *,
        inputs: Any = None,
        where: Tensor | None = None,
        targets: Tensor | None = None,
        loss: Loss | None = None,
        steps: int = 100,
        lr: float = 0.1,
        kl_weight: float = 0.0,
        kl_data: Any = None,
        kl_inputs: Any = None,
        batch_size: int = 32,
        seed: int = 0,
        progress: bool = True,
    ) -> FineTuned:
        """Train the coefficients δ of some features by Adam, the directions and the rest of the model fixed.

        The objective is the loss plus kl_weight · D(original ‖ tuned) on other data; D is KL for logits over tokens, else
        the fit's own divergence. The model is not changed: it runs on W + Σ δ_k v_k in place of W. Ctrl-C returns what is
        reached.

        Cost: `steps` forward and backward passes of up to `batch_size` rows, with a penalty twice that; ten passes over all
        of the data for the history. Memory: the outputs of the other data.

        Args:
            data: Texts, tokens or what a tokenizer returns, as for `pf.decompose`; or pairs (prompt, completion) of texts,
                of which the completions count.
            features: Which ones; or how many, and those whose coefficients the loss depends on most at δ = 0 are taken.
            inputs: Instead of tokens, what the module takes; with `loss`.
            where: [batch, pos], True at each token whose prediction counts; all but the first by default.
            targets: Handed to `loss` beside the output, rows first.
            loss: `loss(output, batch)`, or `loss(output, batch, targets)`, to one number, lower is better; `batch` holds the
                tokens or the inputs. The mean cross-entropy of the next token, in nats, by default.
            steps: Of Adam.
            lr: Its learning rate, in units of δ.
            kl_weight: Of the penalty; 0 for none.
            kl_data: Where the output should stay; the held-out sequences of the fit by default. With a penalty, half of the
                rows are for it, and the off-target divergence is measured on the others.
            kl_inputs: Instead of `kl_data`, for modules that take none.
            batch_size: Rows per step, drawn by `seed`; all of them where there are no more.
            seed: Same seed, same machine, same bits.
            progress: Whether to show a progress bar on the error stream.

        Returns:
            The coefficients, loss before and after, off-target divergence, and `beside_lora()` for the comparison.

        Raises:
            NotBoundError: The features were loaded without a model.
            FeatureCountError: There is no such feature, or none.
            InputError: Data that the model cannot take, or of which nothing counts.
            SettingError: A setting is out of range.
            OutputError: `loss` gives no scalar.
            NonFiniteError: The loss became NaN or infinite.
        """
        engine = self.bound_engine("finetune")
        budget = Budget(steps, lr, batch_size, seed, _N_READINGS)
        if kl_weight < 0:
            raise SettingError(f"kl_weight={kl_weight} must be 0 or above.")
        task = read_task(engine, data, inputs, where=where, targets=targets, loss=loss)
        chosen = choose(self, features, task, batch_size)
        off_target = read_off_target(engine, self.inputs_or_examples(kl_data, kl_inputs), self.divergence, batch_size)
        objective = with_penalty(task, off_target, kl_weight, torch.Generator().manual_seed(seed))
        return tune(self, chosen, objective, budget, progress=progress)
