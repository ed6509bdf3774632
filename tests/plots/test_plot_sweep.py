"""The picture of a sweep: every fit where it was measured, beside its own strongest control."""

import pytest

import param_features as pf
from param_features.errors import SettingError
from tests.sweep_made import row, sweep_of

pytest.importorskip("plotly")

ROWS = [
    row(10, l0=1.0, error=0.5, pca=0.6),
    row(10, l0=2.0, error=0.4, pca=0.5),
    row(20, l0=1.0, error=0.3, pca=0.6, fall=0.1),
    row(20, l0=2.0, error=0.2, pca=0.1),
]


def traces(figure, mode: str) -> dict:
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data if trace.mode == mode}


def test_lines_are_fits_and_dashes_their_controls():
    figure = pf.plot.sweep(sweep_of(*ROWS))
    assert traces(figure, "lines+markers") == {"10 features": ([1, 2], [0.5, 0.4]), "20 features": ([1, 2], [0.3, 0.2])}
    assert traces(figure, "lines")["20 features: control"] == ([1, 2], [0.6, 0.1])
    assert all(trace.line.dash == "dash" for trace in figure.data if trace.mode == "lines")
    assert figure.layout.xaxis.title.text.startswith("l0")


@pytest.mark.parametrize(("against", "places"), [("n_features", [10, 20]), ("size", [200, 400])])
def test_against_number_or_size_there_is_a_line_for_each_l0(against, places):
    figure = pf.plot.sweep(sweep_of(*ROWS), against)
    assert traces(figure, "lines+markers") == {"l0 1": (places, [0.5, 0.3]), "l0 2": (places, [0.4, 0.2])}
    assert list(figure.layout.xaxis.tickvals) == places


def test_markers_say_what_is_wrong_and_a_star_what_is_recommended():
    found = sweep_of(*ROWS)
    figure = pf.plot.sweep(found)
    symbols = {trace.name: list(trace.marker.symbol) for trace in figure.data if trace.mode == "lines+markers"}
    assert symbols == {"10 features": ["circle", "circle"], "20 features": ["circle-open", "x"]}
    assert traces(figure, "markers") == {"recommended": ([1], [0.3])}
    assert found.rows[found.recommendation.place].error == 0.3
    assert not traces(pf.plot.sweep(sweep_of(ROWS[3])), "markers")


def test_points_of_several_seeds_are_means():
    figure = pf.plot.sweep(sweep_of(row(seed=0, error=0.2), row(seed=1, error=0.4)))
    assert traces(figure, "lines+markers") == {"fits": ([2], [pytest.approx(0.3)])}


def test_another_axis_is_refused():
    with pytest.raises(SettingError, match=r"against='rank' is unknown. Accepted: 'l0', 'n_features', 'size'"):
        pf.plot.sweep(sweep_of(*ROWS), "rank")
