"""From a model, parameter names and inputs to features with their controls."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

from torch import Tensor

from param_features.errors import SettingError
from param_features.fit import FitSettings, HessianSettings
from param_features.fit.components import ComponentSettings
from param_features.fitted import Fitted
from param_features.gradients import HarvestSettings
from param_features.gradients.disk import FactorStore
from param_features.machine import launched, own_modes, public
from param_features.params import ParamSpec
from param_features.problem import check_curved, read_background, read_model, read_problem, say_notices
from param_features.run.estimation.component_sizes import check_room
from param_features.run.from_gradients import Decomposition
from param_features.run.from_weights import ComponentRun, refuse_foreign
from param_features.run.request import (
    Request,
    check_request,
    component_settings,
    leaves_batch_open,
    method_settings,
    one_count,
    read_fit,
    usual_l0,
)
from param_features.run.resuming import CheckpointSettings, resumable


@public
@own_modes()
def decompose(
    model: Any,
    params: ParamSpec | None = None,
    tokens: Any = None,
    *,
    inputs: Any = None,
    store: str | PathLike | FactorStore | None = None,
    n_features: int | Mapping[str, int] | None = None,
    l0: float | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = None,
    background: Any = None,
    output: Callable[[Any], Tensor] | None = None,
    positions: Any = "all",
    tokenizer: Any = None,
    method: str = "l3d",
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    n_samples: int | None = None,
    harvest: HarvestSettings | None = None,
    fit: FitSettings | HessianSettings | ComponentSettings | Mapping[str, Any] | str | None = None,
    checkpoints: str | PathLike | CheckpointSettings | None = None,
    targets: Any = None,
    start: Fitted | None = None,
) -> Fitted:
    """Find directions in the chosen parameters, or components of their weights, each of which matters for few inputs.

    The model is run in evaluation mode and is left exactly as it was: weights, hooks, gradient flags, modes and random
    state, after success, after an error and after Ctrl-C. Ctrl-C during the fit returns the features fitted so far.

    Cost: one forward pass of the data and one backward pass of the layers above the parameters per position taken;
    then `steps` small optimiser steps. About two minutes for one W_K of a 260,000-parameter model and 65,536 samples on
    two cores. A step of `method="hessian"` costs two passes of the model per feature. Memory: the gradients, factored or
    dense, whichever is smaller.

    Args:
        model: A HookedTransformer, a TransformerBridge, a Hugging Face model, any of these inside nnsight, or any module;
            see `pf.describe`.
        params: A name (`"blocks.4.attn.W_K"`), a glob, a compiled regex or a list of these; see `pf.list_params`. Part of a
            fused matrix: `"transformer.h.4.attn.c_attn.weight[k]"`.
        tokens: Integers [batch, pos], a list of strings, a column of a dataset, or what a tokenizer returns, whose
            `attention_mask` is heeded: padding is never a sample.
        inputs: Instead of tokens: a tensor, or a tuple or dict of arguments, with the batch first. An `attention_mask`
            among them marks padding.
        store: Gradients that `pf.harvest` took before, or their directory, instead of a harvest. The parameters, the data,
            the divergence, the reference and the samples are then the store's, and may be left out; what is given must be
            the same. The result is that of a harvest in memory with the store's seed.
        n_features: Number of features; 100 by default. Of components: of each matrix, or `{name or glob: number}`, where a
            name goes before a glob; twice the smaller side of a matrix, at most 512, where nothing is given for it.
        l0: Mean number of features kept per sample; n_features / 20, at least 1, by default.
        divergence: `"kl"`, `"se"`, `"sum"`, your own function of (output, reference) to one scalar per sample, or `"auto"`:
            KL for logits and squared error otherwise.
        reference: What outputs are compared with: `"sample"`, the default, `"mean"`, `"uniform"`, `"label"`, or your own
            outputs, [d_output] or [n_references, d_output]. Or pairs of prompts, which replace `tokens`: a list of (clean,
            corrupted) texts or ids, or `pf.Pairs(clean, corrupted)`. Every clean prompt's last position is then compared
            with that of its own corrupted partner; `activations` average over partners' outputs.
        background: Samples that the features are to leave alone: any tokens (or inputs), or `pf.Background(data, …)` with
            settings. The first half of the features then rebuilds the target's gradients under a penalty on what they do on
            the background, the second half keeps the background's reconstruction; `features.on_target` tells them apart.
        output: Takes what the model returns and gives the tensor to be explained, batch first; by default the returned
            tensor, or its `.logits`. With three axes, [batch pos d_output], a sample is a position, whatever the divergence.
        positions: Which positions are samples: `"all"` that are real, `"last"`, an integer or a slice, which count a row's
            real positions (`-2`, `slice(10, -1)`), truth values [batch, pos], or a function of the tokens [batch, pos] to
            truth values. The features remember it: activations are zero, and no examples taken, at other positions. Truth
            values speak of these data alone. Rows without such a position are left out.
        tokenizer: For strings, where the model carries none: a Hugging Face tokenizer.
        method: `"l3d"` fits directions to gradients; `"hessian"` climbs to directions along which some samples' divergence
            from their own output is steeply curved, and which do not interfere; for `"kl"` and `"se"`. `"components"`
            splits the weights into rank-1 components that sum to them, and learns for every input which ones its output
            needs (SPD, VPD): D is then that of the output with the others switched off from the model's own, so that
            `reference`, `background`, `store` and `l0` are refused. Parameters that a glob takes and that have no components
            (biases, gains, positions, tied tables, experts) are left out, which a notice says.
        steps: Optimiser steps; overrides `fit.steps`.
        seed: Of every random choice. Same seed, same machine, same result.
        progress: Whether to show progress bars and what is going on, on the error stream.
        n_samples: Samples to harvest; overrides `harvest.n_samples`.
        harvest: How samples, references and examples are taken from the data. Of components all positions of a row are
            samples, and only `n_samples`, `held_out_fraction`, `n_references` and `n_examples` are taken.
        fit: Further settings of the fit, rank and format among them: `pf.FitSettings` for `"l3d"`, `pf.HessianSettings` for
            `"hessian"`, `pf.ComponentSettings` or the name of its presets, `"spd"` or `"vpd"`, for `"components"`. Where
            none are given but rank and format, and a batch of 1,024 samples does not fit in memory, a smaller one is taken,
            and a notice says so.
        checkpoints: A folder in which harvest and fit are kept as they go, or `pf.CheckpointSettings(folder, every=5)` for
            other seconds between them. The same call goes on from there after a kill, and ends with the bits of an unbroken
            one on the same machine; Ctrl-C leaves a checkpoint too. Gradients then lie on disk, and how many are taken does
            not depend on the memory: see docs/how-to/store.md.
        targets: For `"components"`, the inputs whose mechanisms are looked for: truth values [batch] or [batch, pos], of a
            feature's strongest inputs for example; or a list of texts, beside `tokens` that are other texts. At all other
            positions Δ is whole, and importances are still driven to 0, so that components hold only what the targets need
            and Δ the rest of W. How close components sum to W is then no aim.
        start: For `"components"`, features or other components of the same matrices, at whose directions they start.

    Returns:
        The features, with metrics on held-out sequences beside the same metrics of three controls.

    Raises:
        UnknownParameterError: A name matches nothing; lists the nearest.
        EmptySelectionError: No parameter was asked for.
        InputError: Tokens or inputs that the model cannot take.
        FeatureCountError: `n_features` or `l0` out of range.
        RankError: `rank` exceeds what the format can use of the largest chosen matrix.
        SettingError: Another setting is out of range or unknown.
        SampleCountError: Fewer training samples than features.
        NonFiniteError: NaN or infinity in weights, inputs, outputs or gradients.
        NoGradientError: A chosen parameter does not influence the output.
        OutputError: The model returns neither a tensor nor an object with `.logits`, and there is no `output`; or what is to
            be explained has more than three axes.
        ModelStateError: The model is on the meta device, spread over devices, or mixes the rows of a batch.
        MemoryEstimateError: The gradients, the fit or the controls would not fit in memory; `pf.estimate` tells beforehand.
        StoreError: The store is unfinished or damaged, or was harvested from something else than what is given; or a
            checkpoint is.
        DiskFullError: Gradients or a checkpoint do not fit in the folder of `checkpoints`; what was whole stays.

    Source: L3D (arXiv 2504.00194); its first draft for `method="hessian"`, see `fit/hessian.py` for what differs; the
        metrics' controls are this library's own.
    """
    processes = launched()
    if method == "components":
        refuse_foreign(reference, harvest, store=store, background=background, l0=l0)
        run = ComponentRun.of(
            model,
            params,
            tokens,
            inputs,
            n_features=n_features,
            divergence=divergence,
            output=output,
            positions=positions,
            tokenizer=tokenizer,
            seed=seed,
            progress=progress and processes.is_main,
            harvest=_with_samples(harvest or HarvestSettings(), n_samples),
            fit=component_settings(fit, steps=steps),
            processes=processes,
            targets=targets,
            start=start,
        )
        check_room(run)
        return run.fitted(None if checkpoints is None else CheckpointSettings.of(checkpoints))
    if targets is not None:
        raise SettingError(
            f"targets= is for method='components', not {method!r}. Give the inputs of interest alone as tokens=."
        )
    if start is not None:
        raise SettingError(f"start= is for method='components', not {method!r}. Leave it out.")
    fit, n_features = read_fit(method, fit), one_count(n_features, method)
    l0 = usual_l0(n_features) if l0 is None else float(l0)
    request = Request(method, n_features, l0, seed, progress and processes.is_main)
    opened = None if store is None else FactorStore.open(store)
    harvest = harvest or (HarvestSettings() if opened is None else opened.settings)
    harvest = _with_samples(harvest, n_samples)
    settings = method_settings(method, fit, steps=steps)
    names = opened.names if opened is not None and params is None else [] if params is None else params
    chosen = read_model(model, names, tokenizer=tokenizer, output=output)
    check_request(request, settings, chosen.subset)
    if opened is None:
        reference = "sample" if reference is None else reference
        problem = read_problem(
            chosen, tokens, inputs, divergence=divergence, reference=reference, positions=positions, method=method
        )
    else:
        opened.check_count(n_features)
        problem = opened.problem(
            chosen,
            tokens,
            inputs,
            divergence=divergence,
            reference=reference,
            positions=positions,
            settings=harvest,
            method=method,
        )
    left_alone = None if background is None else read_background(problem, background, n_features, method)
    if method == "hessian":
        check_curved(problem.divergence)
    say_notices(problem, divergence if opened is None else None, request.say)
    is_open = leaves_batch_open(fit) and checkpoints is None  # a resumed fit must find the batch that it began with
    run = Decomposition(problem, request, harvest, settings, left_alone, opened, is_open, processes)
    if checkpoints is None:
        return run.fitted()
    with resumable(CheckpointSettings.of(checkpoints), run.job) as (gradients, folder):
        return replace(run, store=gradients, folder=folder).fitted()


def _with_samples(harvest: HarvestSettings, n_samples: int | None) -> HarvestSettings:
    return harvest if n_samples is None else replace(harvest, n_samples=n_samples)
