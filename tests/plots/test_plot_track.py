"""The picture of features through training: every curve beside its control, phases, home and staleness marked."""

from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.errors import SettingError

pytest.importorskip("plotly")

N = 12
JUMP = torch.tensor([0.1] * 6 + [2.0] * 6, dtype=torch.float64)


def made(steps=tuple(range(0, 1200, 100)), home: int | None = 11):
    """Three features that jump at the seventh checkpoint, the third one most; stale until there."""
    curves = JUMP[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    flat = torch.full((N,), 0.9, dtype=torch.float64)
    errors = {"reconstruction_error": 1 - 0.3 * JUMP, "control_pca": 0.5 * flat, "control_random": 1.1 * flat}
    return pf.development.Track(
        steps=steps,
        impact=curves,
        density=curves / 10,
        curvature=curves.square(),
        moves=curves,
        norm=flat,
        share=torch.cat([torch.tensor([float("nan")]), flat[1:]]),
        share_random=0.1 * flat,
        errors=errors | {"control_svd_w": flat},
        match=None,
        match_random=torch.full((N,), float("nan")),
        home=home,
        home_errors={name: float(values[-1]) for name, values in errors.items()},
        features=object.__new__(pf.ParamFeatures),
        n_asked=N,
    )


def lines(figure, axis="y"):
    return {trace.name: list(trace.y) for trace in figure.data if (trace.yaxis or "y") == axis}


def marks(figure, dash):
    return [(shape.x0, shape.xref) for shape in figure.layout.shapes if shape.type == "line" and shape.line.dash == dash]


def test_features_and_their_mean_are_drawn_and_the_largest_are_in_colour():
    figure = pf.plot.track(made(), "impact", n_top=1)
    found = lines(figure)
    assert set(found) == {"feature 0", "feature 1", "feature 2", "mean"}
    assert found["feature 1"] == pytest.approx((2 * JUMP).tolist())
    assert found["mean"] == pytest.approx((2 * JUMP).tolist())
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["feature 2", "mean"]


def test_panels_hold_controls_and_share_their_axis():
    figure = pf.plot.track(made(), ("impact", "error", "share", "norm"))
    assert set(lines(figure, "y2")) == {
        "these features",
        "principal directions",
        "random directions",
        "singular directions of W",
    }
    assert set(lines(figure, "y3")) == {"in the features' span", "random directions"}
    assert set(lines(figure, "y4")) == {"‖change‖"}
    assert figure.layout.xaxis4.title.text == "training step"
    assert figure.layout.height > pf.plot.track(made()).layout.height


def test_phases_home_and_stale_checkpoints_are_marked():
    figure = pf.plot.track(made(), ("impact", "share"))
    assert marks(figure, "dot") == [(600, "x")]  # the share has one phase
    assert marks(figure, "dash") == [(1100, "x"), (1100, "x2")]
    ground = {(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"}
    assert min(ground)[0] == 0
    assert max(ground)[1] == 550
    assert not marks(pf.plot.track(replace(made(), home=None), "impact"), "dash")


def test_uneven_steps_are_drawn_evenly():
    steps = tuple(2**n for n in range(N))
    figure = pf.plot.track(made(steps), "curvature")
    assert list(figure.data[0].x) == list(range(N))
    assert figure.layout.xaxis.ticktext[-1] == "2,048"
    assert figure.layout.xaxis.title.text == "training step, evenly spaced"
    assert figure.layout.yaxis.type == "log"
    assert marks(figure, "dot") == [(6, "x")]


def test_unknown_curves_are_refused():
    with pytest.raises(SettingError, match=r"of='losses' is unknown. Accepted: one or more of 'impact', 'density'"):
        pf.plot.track(made(), ("impact", "losses"))
    with pytest.raises(SettingError, match="of=None is unknown"):
        pf.plot.track(made(), ())
    with pytest.raises(SettingError, match="refit=True"):
        pf.plot.track(made(), "match")
