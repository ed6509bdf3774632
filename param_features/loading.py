"""`pf.load`: saved features, bound to a model whose chosen parameters are the ones that were decomposed."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from param_features.adapters import adapter_for
from param_features.directions import LowRank
from param_features.divergence import Divergence, read_divergence
from param_features.errors import FingerprintError, SettingError
from param_features.features import ParamFeatures, ParamRecord
from param_features.gradients import inspect_output, plan_engine
from param_features.inputs import ModelInputs
from param_features.measure import Metrics
from param_features.params import ParamSubset, select
from param_features.store import read_bundle


def load(directory: str | PathLike, *, model: Any = None, divergence: Callable | None = None) -> ParamFeatures:
    """Load features that `save_pretrained` wrote; nothing in the files is executed.

    Args:
        directory: Where they lie.
        model: The model they belong to. Without one, directions and metrics can be read, activations cannot.
        divergence: The function that was given to `decompose`, if it was one: code is not saved.

    Raises:
        StoreError: The files are unfinished, edited or of an unknown format.
        FingerprintError: The model's chosen parameters are not the ones that were decomposed.
        UnknownParameterError: The model lacks a parameter.
        SettingError: The features need `divergence=`.
    """
    tensors, record = read_bundle(directory)
    params = {
        name: ParamRecord(tuple(saved["shape"]), saved["fold"], saved["fingerprint"])
        for name, saved in record["params"].items()
    }
    v_out = _directions(tensors, "v_out", params)
    features = ParamFeatures(
        v_in=v_out if record["is_tied"] else _directions(tensors, "v_in", params),
        v_out=v_out,
        threshold=record["threshold"],
        params=params,
        divergence=_divergence(record["divergence"], divergence),
        reference=record["reference"],
        references=tensors["references"],
        metrics=Metrics(record["metrics"]),
        config=record["config"],
        examples=_examples(tensors),
    )
    return features if model is None else bind(features, model)


def bind(features: ParamFeatures, model: Any) -> ParamFeatures:
    """The features with a model, after checking that its chosen parameters are the same bit for bit.

    Raises:
        FingerprintError: Names the first parameter that differs.
    """
    adapter = adapter_for(model)
    subset = select(adapter.views(), list(features.params), adapter.aliases())
    _check_fingerprint(features.params, subset)
    probe = features.examples or ModelInputs((torch.zeros(2, 2, dtype=torch.long),), {})
    probe = probe.map(lambda tensor: tensor.to(subset.views[0].tensor.device))
    engine = plan_engine(adapter, subset, probe, inspect_output(adapter, probe))
    return features.bound_to(engine)


def _check_fingerprint(params: Mapping[str, ParamRecord], subset: ParamSubset) -> None:
    found = subset.fingerprint()
    for (name, record), view in zip(params.items(), subset.views, strict=True):
        if tuple(view.shape) != record.shape:
            raise FingerprintError(
                f"{name!r} has shape {tuple(view.shape)} in this model; the features were found on {record.shape}. Load the "
                "model that was decomposed."
            )
        if found[view.name] != record.fingerprint:
            raise FingerprintError(
                f"{name!r} has other weights than the ones that were decomposed (or another dtype). Load the same "
                "checkpoint with the same processing: folding LayerNorm, centring or further training change the weights."
            )


def _directions(tensors: Mapping[str, Tensor], title: str, params: Mapping[str, ParamRecord]) -> LowRank:
    return LowRank({name: (tensors[f"{title}/{name}/left"], tensors[f"{title}/{name}/right"]) for name in params})


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


def _examples(tensors: Mapping[str, Tensor]) -> ModelInputs | None:
    args = sorted((name for name in tensors if name.startswith("examples/args/")), key=lambda name: int(name.split("/")[-1]))
    kwargs = {name.split("/", 2)[2]: tensors[name] for name in tensors if name.startswith("examples/kwargs/")}
    if not args and not kwargs:
        return None
    return ModelInputs(tuple(tensors[name] for name in args), kwargs, tensors.get("examples/mask"))
