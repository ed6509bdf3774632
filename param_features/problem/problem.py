"""A model and its data, read and checked once: what gradients are taken of, whoever asks for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from param_features.errors import InputError, SettingError
from param_features.machine import notify
from param_features.params import (
    Adapter,
    ParamRecord,
    ParamSpec,
    ParamSubset,
    adapter_for,
    check_present,
    check_ready,
    matching_views,
    packed_layers,
    quantised_layers,
    select,
    training_notice,
)
from param_features.problem.arguments import ModelInputs
from param_features.problem.divergence import Divergence, check_reference, read_divergence
from param_features.problem.inputs import read_inputs
from param_features.problem.output import OutputInfo, inspect_output
from param_features.problem.padding import padding_notice
from param_features.problem.pairs import PairInputs, as_pairs, check_pairs, read_pairs
from param_features.problem.positions import SamplePositions, read_positions


@dataclass(frozen=True)
class ChosenParams:
    """Parameters of a model whose weights are all there."""

    adapter: Adapter
    subset: ParamSubset


def read_model(
    model: Any,
    params: ParamSpec,
    *,
    tokenizer: Any = None,
    output: Callable[[Any], Tensor] | None = None,
) -> ChosenParams:
    """Recognise a model, choose parameters of it, and refuse those that can have no gradients.

    Args:
        model: What some adapter reads.
        params: As `pf.decompose` takes them.
        tokenizer: For strings, where the model carries none.
        output: Takes what the model returns and gives the tensor to be explained.

    Raises:
        AdapterError: No adapter reads the model.
        UnknownParameterError: A name matches nothing.
        EmptySelectionError: No parameter was asked for.
        ModelStateError: Weights are missing, or chosen ones come and go with each call.
        NonFiniteError: Chosen weights hold NaN or infinity.
        NoGradientError: Chosen weights are quantised, or were made under `torch.inference_mode()`.
    """
    adapter = adapter_for(model).reading(tokenizer=tokenizer, output=output)
    quantised = quantised_layers(adapter.module)
    subset = select(adapter.views(), params, adapter.aliases(), adapter.parts(), quantised)
    return check_model(adapter, subset)


def match_model(
    model: Any,
    records: Mapping[str, ParamRecord],
    *,
    tokenizer: Any = None,
    output: Callable[[Any], Tensor] | None = None,
) -> ChosenParams:
    """Recognise a model and find in it the parameters that were saved, by name or else by their weights.

    Args:
        model: What some adapter reads.
        records: The saved parameters by their names.
        tokenizer: As for `read_model`.
        output: As for `read_model`.

    Raises:
        AdapterError: No adapter reads the model.
        FingerprintError: No parameter has these weights, several have, or it is tied in one model only.
        UnknownParameterError: The model has no parameter of that name and none with these weights.
        ModelStateError: Weights are missing, or chosen ones come and go with each call.
        NoGradientError: Chosen weights were made under `torch.inference_mode()`.
    """
    adapter = adapter_for(model).reading(tokenizer=tokenizer, output=output)
    return check_model(adapter, ParamSubset(matching_views(adapter, records)))


def check_model(adapter: Adapter, subset: ParamSubset) -> ChosenParams:
    """Refuse a model that cannot be run, and chosen parameters that can have no gradients.

    Raises:
        ModelStateError: Weights are missing, or chosen ones come and go with each call.
        NonFiniteError: Chosen weights hold NaN or infinity.
        NoGradientError: Chosen weights are quantised, or were made under `torch.inference_mode()`.
    """
    check_ready(adapter)
    check_present(subset)
    subset.check_finite()
    _say_packed(adapter)
    return ChosenParams(adapter, subset)


def _say_packed(adapter: Adapter) -> None:
    layers = packed_layers(adapter.module)
    if layers:
        further = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        notify(
            f"{layers[0]!r}{further} are quantised by torch and pass no gradients on: what other parameters do by way of "
            "them is missing from the gradients. Decompose the model before it is quantised."
        )


@dataclass(frozen=True)
class Problem:
    """What gradients are taken of, and what outputs are compared with.

    Attributes:
        adapter: Reads the model.
        subset: The chosen parameters.
        data: What the model is run on.
        output: What it returns on them.
        divergence: D.
        reference: A name, or the user's own outputs; `"pairs"` with pairs.
        pairs: Where every sample has a partner; `data` are then the clean prompts.
        known: References that gradients were already taken with, for `"mean"` and `"given"`.
        positions: Which positions of outputs are samples.
    """

    adapter: Adapter
    subset: ParamSubset
    data: ModelInputs
    output: OutputInfo
    divergence: Divergence
    reference: str | Tensor
    pairs: PairInputs | None = None
    known: Tensor | None = None
    positions: SamplePositions = SamplePositions()

    @property
    def given_references(self) -> Tensor | None:
        """The user's own outputs as references."""
        reference = self.reference
        if isinstance(reference, str):
            return self.known if reference == "given" else None
        if reference.dim() not in (1, 2) or reference.shape[-1] != self.output.d_output:
            raise InputError(
                f"reference has shape {tuple(reference.shape)}. Outputs here have {self.output.d_output} numbers: give "
                f"[{self.output.d_output}] or [n_references, {self.output.d_output}]."
            )
        return self.divergence.to_reference(reference.to(self.subset.device).float().reshape(-1, self.output.d_output))

    @property
    def kind(self) -> str:
        """The name of the reference."""
        return self.reference if isinstance(self.reference, str) else "given"

    def sampled_at(self, positions: Any) -> "Problem":
        """The problem whose samples lie at some positions of outputs, of those rows that have any.

        Raises:
            SettingError: Pairs are compared at their last.
            InputError: No position is a sample, or which ones are is not known.
        """
        if self.pairs is not None and (not isinstance(positions, str) or positions != "all"):
            raise SettingError(
                f"positions={positions!r}, but pairs of prompts are compared at their last positions. Leave positions= out."
            )
        read = SamplePositions(positions, self.output.has_tokens)
        if not self.output.per_position:
            return replace(self, positions=read)
        located = read.located(self.adapter, self.data)
        data = located.with_samples()
        if not len(data):
            raise InputError(
                f"positions={positions!r} leaves no samples: none of the {len(located)} rows has such a position."
            )
        pairs = None if self.pairs is None else self.pairs.located(self.adapter, read)
        return replace(self, data=data, positions=read, pairs=pairs)


def read_problem(
    chosen: ChosenParams,
    tokens: Any,
    inputs: Any,
    *,
    divergence: Any,
    reference: Any,
    positions: Any = "all",
    method: str = "l3d",
) -> Problem:
    """Read and check what the user gave about data, divergence, reference and positions; errors are `pf.decompose`'s."""
    read_positions(positions)
    adapter, prompt_pairs = chosen.adapter, as_pairs(reference)
    pairs = None if prompt_pairs is None else read_pairs(adapter, prompt_pairs, tokens, inputs)
    data = read_inputs(adapter, tokens, inputs) if pairs is None else pairs.clean
    notice = padding_notice(adapter, tokens, inputs, data) if pairs is None else None
    if notice is not None:
        notify(notice)
    output = inspect_output(adapter, data)
    measure = read_divergence(divergence, is_logits=output.is_logits)
    output = output.sampled(measure, positions)
    if pairs is None:
        check_reference(reference, measure)
    else:
        check_pairs(adapter, pairs, output, measure, method)
    problem = Problem(adapter, chosen.subset, data, output, measure, reference if pairs is None else "pairs", pairs)
    problem = problem.sampled_at(positions)
    if len(problem.data) < len(data):
        notify(f"{len(data) - len(problem.data)} of {len(data)} rows are left out: none of their positions is a sample.")
    return problem


def say_notices(problem: Problem, requested: Any, say: Callable[[str], None]) -> None:
    """Print which divergence was chosen, where the user left it open; a `Notice` for a model in training mode."""
    if requested == "auto":
        is_known = "is" if problem.output.is_logits else "is not"
        shape = problem.output.shape
        say(f"divergence: {problem.divergence.name!r}, since the output of shape {shape} {is_known} known to be logits.")
    notice = training_notice(problem.adapter)
    if notice is not None:
        notify(notice)
