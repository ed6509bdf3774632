"""The picture of chains: their traces, the burn-in and the estimate."""

import pytest
import torch

import param_features as pf

pytest.importorskip("plotly")


def test_lines_are_running_means_of_what_a_chain_says():
    losses = torch.rand(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    estimates = 10 * (losses[:, 8:].mean(1) - 1)
    found = pf.development.LearningCoefficient(estimates, losses, 1.0, 10.0, 8, 1.01, 6)
    figure = pf.plot.learning_coefficient(found)
    bold = [trace for trace in figure.data if trace.showlegend]
    assert [trace.name for trace in bold] == [f"chain {k}: {float(estimates[k]):.2f}" for k in range(2)]
    for chain, trace in enumerate(bold):
        expected = [float((10 * (losses[chain, i - 1 : i + 1] - 1)).mean()) for i in range(1, 40)]  # 40 / 20 steps at a time
        assert list(trace.y)[1:] == pytest.approx(expected)
    assert list(figure.data[0].y) == pytest.approx((10 * (losses[0] - 1)).tolist())
    spans = {shape.type: (shape.x0, shape.x1, shape.y0) for shape in figure.layout.shapes}
    assert spans["rect"][:2] == (0, 8)
    assert spans["line"][2] == pytest.approx(found.mean)
    assert "R-hat 1.010" in figure.layout.title.text and "d/2 = 3" in figure.layout.title.text
    assert figure.layout.xaxis.title.text == "step"
