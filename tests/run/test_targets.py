"""`targets=`: components for some inputs; on all others the weights stay as they are."""

import dataclasses

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import InputError, SettingError
from param_features.fit.components import MaskedModel, Masks
from param_features.gradients import sites_of
from tests.components import made_components
from tests.models import hooked_transformer, integers, superposed

NAMES = {"blocks.0.attn.W_K": 3, "blocks.0.mlp.W_in": 4}
pytestmark = pytest.mark.usefixtures("few_metrics")


@pytest.mark.parametrize("of", ["rows", "positions"])
def test_delta_is_whole_outside_of_targets_and_the_output_there_the_models_own(of):
    model, tokens = hooked_transformer(), integers(20, 4, 6)
    fitted = made_components(model, NAMES, tokens)
    targets = torch.tensor([[True], [False], [True], [False]])
    if of == "positions":
        targets = torch.zeros(4, 6, dtype=torch.bool).index_fill(1, torch.tensor([4, 5]), True)
    inputs = fitted.examples
    marked = type(inputs)(inputs.args, inputs.kwargs, inputs.mask, inputs.samples, targets)
    masked_model, parts = MaskedModel(fitted.engine, sites_of(fitted.engine)), fitted.dictionary.parts
    rests = {site.name: parts[site.name].remainder(site.weight()) for site in masked_model.sites}
    drawn = {name: torch.rand(4, 6, n, dtype=torch.float64) for name, n in NAMES.items()}
    everywhere = targets.expand(4, 6)
    whole_outside = {name: torch.where(everywhere, 0.0, 1.0).double() for name in NAMES}
    off = {name: torch.zeros(4, 6).double() for name in NAMES}
    on_outside = {name: torch.where(everywhere.unsqueeze(-1), values, 1.0) for name, values in drawn.items()}
    with torch.no_grad(), masked_model.held():
        clean = masked_model.clean(marked).output.unflatten(0, (4, 6))
        found = masked_model.masked(marked, parts, Masks(drawn, off), rests)
        assert torch.equal(found, masked_model.masked(inputs, parts, Masks(drawn, whole_outside), rests))
        assert not torch.equal(found, masked_model.masked(inputs, parts, Masks(drawn, off), rests))
        exact = masked_model.masked(marked, parts, Masks(on_outside, off), rests).unflatten(0, (4, 6))
    outside = (slice(1, None, 2),) if of == "rows" else (slice(None), slice(0, 4))
    assert torch.equal(exact[outside], clean[outside])
    assert not torch.equal(exact, clean)


def test_components_of_one_features_inputs_hold_that_feature_alone():
    model = superposed()
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(2000, 5, generator=generator) * (torch.rand(2000, 5, generator=generator) < 0.15)
    targets = data[:, 0] > 0
    changes = {"batch_size": 128, "lr": 0.01, "importance_weight": 6e-3, "one_at_a_time_weight": 0.0, "start": "gradients"}
    settings = dataclasses.replace(pf.ComponentSettings.preset("spd"), **changes)
    found = pf.decompose(
        model,
        ["0.weight", "1.weight"],
        inputs=data,
        targets=targets,
        method="components",
        n_features=5,
        fit=settings,
        steps=400,
        progress=False,
    )
    corner, unit = model[1].weight[0].detach(), torch.eye(5)[0]
    importances = found.importances(inputs=0.8 * torch.eye(5))
    for name, true in {"0.weight": torch.outer(corner, unit), "1.weight": torch.outer(unit, corner)}.items():
        parts, needed = found.components.parts[name], importances[name][:, 0]
        kept = int(needed[0].argmax())
        part = torch.outer(parts.U[kept], parts.V[kept]).flatten()
        assert needed[0, kept] > 0.9 and needed[1:, kept].max() < 0.1
        assert nn.functional.cosine_similarity(part, true.flatten(), dim=0) > 0.9
        rest = (model.get_parameter(name) - parts.sum()).norm() / model.get_parameter(name).norm()
        assert rest > 0.3


def words(n):
    return [[k % 7, (k * 3) % 7, 1, 2] for k in range(n)]


def decomposed(**changes):
    call = {"tokens": integers(20, 20, 6), "n_features": 2, "steps": 2, "fit": {"batch_size": 24}, "progress": False}
    return pf.decompose(hooked_transformer(dtype=torch.float32), list(NAMES), method="components", **call | changes)


def test_rows_beside_others_are_the_same_as_truth_values():
    listed = decomposed(tokens=words(20), targets=words(10))
    marked = decomposed(tokens=words(20) + words(10), targets=torch.arange(30) >= 20)
    for name in NAMES:
        assert torch.equal(listed.components.parts[name].U, marked.components.parts[name].U)
    everywhere = decomposed(tokens=words(20) + words(10))
    assert not torch.equal(listed.components.parts[name].U, everywhere.components.parts[name].U)


@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [
        (torch.zeros(20, dtype=torch.bool), InputError, "marks no real position"),
        (torch.ones(20, 6, dtype=torch.bool), InputError, "marks everything"),
        (torch.ones(19, dtype=torch.bool), InputError, r"shape \(19,\)"),
        (torch.ones(20, 5, dtype=torch.bool), InputError, r"\[20, 6\]"),
        (torch.ones(20), SettingError, "torch.float32"),
        (["a text"], SettingError, "beside tokens= of type Tensor"),
        ("a text", SettingError, "list of texts"),
        (3, SettingError, "targets= is of type int"),
    ],
)
def test_targets_that_are_none_are_refused(targets, error, match):
    with pytest.raises(error, match=match):
        decomposed(targets=targets)


@pytest.mark.parametrize("method", ["l3d", "hessian"])
def test_other_methods_take_no_targets(method):
    with pytest.raises(SettingError, match="targets= is for method='components'"):
        pf.decompose(hooked_transformer(), list(NAMES), integers(20, 20, 6), method=method, targets=torch.ones(20) > 0)


def test_targets_that_are_all_held_out_are_refused():
    with pytest.raises(InputError, match="none of the rows that were drawn for training"):
        for row in range(20):
            decomposed(targets=torch.arange(20) == row, steps=1)
