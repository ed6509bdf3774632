"""Saved features, bound to a model whose chosen parameters are the ones that were decomposed."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor

from param_features.errors import SettingError
from param_features.files.hub import located
from param_features.fitted import Fitted, Metrics, read_saved
from param_features.gradients import plan_engine
from param_features.machine import own_modes, public
from param_features.params import Adapter
from param_features.problem import (
    Divergence,
    ModelInputs,
    Problem,
    Question,
    SamplePositions,
    check_tokens,
    inspect_output,
    match_model,
    read_divergence,
    recorded_positions,
)

Features = TypeVar("Features", bound=Fitted)


@public
@own_modes()
def load(
    directory: str | PathLike,
    *,
    model: Any = None,
    divergence: Callable | None = None,
    output: Callable[[Any], Tensor] | None = None,
    positions: Callable[[Tensor], Tensor] | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Fitted:
    """Load features that `save_pretrained` or `push_to_hub` wrote; nothing in the files is executed.

    What exists here is never looked up on the hub, nor is what reads like a path. Of a repository the two files alone are
    fetched, once: without network, those fetched before are taken.

    Args:
        directory: Where they lie: a folder, or `owner/name` or `owner/name@revision` on the Hugging Face hub.
        model: The model they belong to, in any library that holds the same weights: parameters are found by name or else by
            their weights, see `bind`. Without a model, directions and metrics can be read, activations cannot.
        divergence: The function that was given to `decompose`, if it was one: code is not saved.
        output: The function that was given to `decompose` as `output=`, if one was.
        positions: The function that was given to `decompose` as `positions=`, if it was one.
        tokenizer: For strings, where the model carries none.
        revision: Branch, tag or commit on the hub; its main branch by default.
        token: Of the hub; by default the one that `hf auth login` left.

    Raises:
        StoreError: The files are unfinished, edited, of an unknown format, or say what no saved features say.
        SourceError: The name reads like a path, and there is nothing there.
        HubNotFoundError: The hub has no such repository or revision, or it holds no saved features.
        HubAccessError: The hub does not let the caller read it.
        HubOfflineError: The hub was not reached, and the cache does not hold the files.
        MissingExtraError: They are on the hub, and huggingface-hub is not installed.
        FingerprintError: The model's chosen parameters are not the ones that were decomposed.
        UnknownParameterError: The model lacks a parameter.
        ModelStateError: The model's weights are not all there, or those of the features come and go with each call.
        NoGradientError: The weights were made under `torch.inference_mode()`.
        SettingError: The features need `divergence=`, `output=` or `positions=`, or the model's output has another size, or
            a folder is given with a revision.
        InputError: The features' examples hold tokens that the model does not know.
    """
    folder, within = located(directory, revision=revision, token=token)
    saved = read_saved(folder, within=within)
    question = Question(_divergence(saved.divergence, divergence), saved.reference, saved.references)
    features = Fitted(saved.dictionary, question, saved.params, Metrics(saved.metrics), saved.config, saved.examples)
    return features if model is None else bind(features, model, output=output, positions=positions, tokenizer=tokenizer)


def bind(
    features: Features,
    model: Any,
    *,
    output: Callable[[Any], Tensor] | None = None,
    positions: Callable[[Tensor], Tensor] | None = None,
    tokenizer: Any = None,
) -> Features:
    """The features with a model, after checking that its chosen parameters are the same bit for bit.

    A parameter is looked for by its saved name, and else by its weights: features of a HookedTransformer's
    `blocks.2.attn.W_K` belong to the bridge's of that name and to Hugging Face's `model.layers.2.self_attn.k_proj.weight`,
    if their matrices [d_out, d_in] have the same bytes. The features then bear the model's own names.

    Raises:
        FingerprintError: No parameter has these weights, several have, or it is tied in one model only.
        UnknownParameterError: The model has no parameter of that name and none with these weights.
        ModelStateError: The model's weights are not all there, or those of the features come and go with each call.
        NoGradientError: The weights were made under `torch.inference_mode()`.
        SettingError: The features were found with `output=`, or a function as `positions=`, and none is given; or the output
            has another size.
        InputError: The features' examples hold tokens that the model does not know.
    """
    needed = features.config.get("output")
    if needed is not None and output is None:
        raise SettingError(
            f"The features were found with output={needed}, which is code and was not saved. Pass it: pf.load(dir, model=…, "
            "output=…)."
        )
    where = recorded_positions(features.config.get("positions", "all"), positions)
    chosen = match_model(model, features.params, tokenizer=tokenizer, output=output)
    adapter, subset = chosen.adapter, chosen.subset
    data = ModelInputs((torch.zeros(2, 2, dtype=torch.long),), {})
    data = data if features.examples is None else _padded_by(adapter, features.examples)
    check_tokens(adapter, data)
    data = data.map(lambda tensor: tensor.to(subset.device))
    returned = inspect_output(adapter, data).sampled(features.divergence, where)
    if returned.d_output != features.references.shape[1]:
        raise SettingError(
            f"The model's output has {returned.d_output} numbers, and the features' references have "
            f"{features.references.shape[1]}. Load the model, and give the output=, that they were found with."
        )
    problem = Problem(adapter, subset, data, returned, features.divergence, features.reference)
    if features.examples is None:
        problem = replace(problem.sampled_at("all"), positions=SamplePositions(where, returned.has_tokens))
        return features.bound_to(plan_engine(problem))
    problem = problem.sampled_at(where)
    examples = problem.positions.located(adapter, data) if returned.per_position else data
    return replace(features, examples=examples).bound_to(plan_engine(problem))


def _padded_by(adapter: Adapter, examples: ModelInputs) -> ModelInputs:
    """Rows of tokens with the arguments by which this model's library says what is padding."""
    if examples.mask is None or len(examples.args) != 1 or examples.kwargs.keys() - {"attention_mask", "position_ids"}:
        return examples
    return replace(examples, kwargs=adapter.padding(examples.mask))


def _divergence(name: str, given: Callable | None) -> Divergence:
    if given is not None:
        return read_divergence(given, is_logits=False)
    try:
        return read_divergence(name, is_logits=False)
    except SettingError as error:
        raise SettingError(
            f"The features were found with your own divergence {name!r}, which is code and was not saved. Pass it: "
            f"pf.load(dir, model=…, divergence={name})."
        ) from error
