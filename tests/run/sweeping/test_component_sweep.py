"""A sweep of components over the importance weight: its fits, its rule, and how it goes on."""

import json
import re
import signal
from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.errors import SettingError, StoreError
from param_features.fit.components import ComponentTrainer
from param_features.run.sweeping.components import ComponentRow, ComponentSweep, weights_around
from tests.models import hooked_transformer, integers
from tests.stops import hearing_interrupts, stopped_after

pytestmark = pytest.mark.usefixtures("few_metrics")
MATRIX = "blocks.0.attn.W_Q"
TOKENS = integers(20, 20, 6)


@pytest.fixture(scope="module")
def model():
    return hooked_transformer(dtype=torch.float32)


def swept(model, directory=None, **changes):
    call = {"method": "components", "n_features": 3, "fit": {"batch_size": 30}, "steps": 3, "progress": False}
    return pf.sweep(model, MATRIX, TOKENS, directory=directory, **call | changes)


def test_five_weights_half_a_decade_apart_around_that_of_the_fit(model):
    assert weights_around(1e-3) == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)
    found = swept(model, fit={"batch_size": 30, "importance_weight": 0.01, "frequency_weight": 0.005})
    assert [row.weight for row in found.rows] == [1e-3, 3.16e-3, 1e-2, 3.16e-2, 0.1]
    frequencies = [fit.config["fit"]["frequency_weight"] for fit in found.fits]
    assert frequencies == pytest.approx([row.weight / 2 for row in found.rows])
    assert all(isinstance(fit, pf.ParamComponents) for fit in found.fits) and len(repr(found).splitlines()) >= 7


def test_every_fit_is_that_of_decompose(model):
    found = swept(model, importance_weight=[0.1], seeds=[1])
    taken = found.fits[0].config["fit"]
    alone = pf.decompose(
        model,
        MATRIX,
        TOKENS,
        method="components",
        n_features=3,
        fit={
            "batch_size": 30,
            "importance_weight": 0.1,
            "frequency_weight": taken["frequency_weight"],
        },
        steps=3,
        seed=1,
        progress=False,
    )
    assert torch.equal(found.fits[0].dictionary.parts[MATRIX].U, alone.dictionary.parts[MATRIX].U)
    assert dict(found.rows[0].metrics) == dict(alone.metrics)


def rows_of(*values, seeds=(0,)):
    limits = pf.SweepSettings()
    names = ("stochastic", "unmasked")
    return [
        ComponentRow(weight, seed, dict(zip(names, found, strict=True)) | OTHERS, (), limits)
        for weight, *found in values
        for seed in seeds
    ]


OTHERS = {"all_zero": 2.0, "l0": 4.0, "alive": 3.0, "rounded": 0.1}


@pytest.mark.parametrize(
    ("values", "place", "match"),
    [
        ([(1e-3, 0.01, 0.001), (1e-2, 0.09, 0.009), (1e-1, 0.2, 0.009)], 1, "importance_weight=0.01: the largest"),
        ([(1e-3, 0.01, 0.001), (1e-2, 0.09, 0.2)], 0, "importance_weight=0.001: the largest"),
        ([(1e-3, 0.01, 0.001), (1e-2, 0.02, 0.001)], 1, "largest weight tried"),
        ([(1e-3, 0.3, 0.001), (1e-2, 0.4, 0.001)], None, r"none\. .* at the smallest, 0\.001, it is 15\.0% and 0\.1%"),
    ],
)
def test_the_largest_weight_with_which_the_output_stays_is_recommended(values, place, match):
    rows = rows_of(*values)
    found = ComponentSweep(tuple(rows), (), len(rows))
    assert found.place == place
    assert re.search(match, found.reason)
    assert [row["is_recommended"] for row in found.as_rows()].count(True) == (place is not None)


def test_a_weight_must_do_with_every_seed():
    rows = rows_of((1e-3, 0.01, 0.001), (1e-2, 0.02, 0.001), seeds=(0, 1))
    rows[3] = replace(rows[3], metrics=rows[3].metrics | {"stochastic": 0.5})
    rows[1] = replace(rows[1], matched_by=("control_neurons",))
    rows[0] = replace(rows[0], metrics=rows[0].metrics | {"stochastic": 0.02})
    found = ComponentSweep(tuple(rows), (), 4)
    assert found.place == 1 and "nothing beyond control_neurons" in found.reason


def test_finished_fits_are_read_and_the_rest_is_made(model, tmp_path):
    weights = {"importance_weight": [0.01, 0.1]}
    with hearing_interrupts(), stopped_after(4, ComponentTrainer, stop=lambda: signal.raise_signal(signal.SIGINT)):
        found = swept(model, tmp_path, **weights)
    assert len(found.rows) == 1 and "Interrupted after 1 of 2 fits." in repr(found)
    with stopped_after(3, ComponentTrainer):  # the first is read: three steps are left
        found = swept(model, tmp_path, **weights)
    assert [dict(row.metrics) for row in found.rows] == [dict(row.metrics) for row in swept(model, **weights).rows]
    with stopped_after(0, ComponentTrainer):
        assert len(swept(model, tmp_path, **weights).rows) == 2
    with pytest.raises(StoreError, match="was made otherwise: n_features 4, there 3; n_components"):
        swept(model, tmp_path, **weights, n_features=4)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"data": "0" * 64}))
    with pytest.raises(StoreError, match=r"is of another sweep: tokens= \(or inputs=\)"):
        swept(model, tmp_path, **weights)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"importance_weight": 0}, "importance_weight=0 must be positive"),
        ({"l0": 3}, "l0= is not for method='components'"),
        ({"rank": 2}, "rank= is not for method='components'"),
        ({"n_features": [3, 4]}, "varies importance_weight="),
        ({"method": "l3d", "fit": None, "importance_weight": 0.1}, "are for method='components', not 'l3d'"),
    ],
)
def test_what_it_cannot_heed_is_refused_by_name(model, given, match):
    with pytest.raises(SettingError, match=match):
        swept(model, **given)
