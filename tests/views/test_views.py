import html
import json
import math
import re

import pytest

from param_features.errors import NonFiniteError
from param_features.measure import Example
from param_features.views import View, feature_view, show, tokens_view
from param_features.views.circuitsvis_page import script
from param_features.views.tokens import Row

HOSTILE = ("<b>", "</script><script>alert(1)</script>", " a&b", "ok")


def view_of(tokens=HOSTILE, values=(1.0, -2.0, 0.0, 0.5)) -> View:
    return View("Feature 1", (Row("first", tuple(tokens), tuple(values), 1),))


def props_of(page: str) -> dict:
    found = re.search(r"CircuitsVis\.ColoredTokens, (\{.*?\})\);</script>", page, re.DOTALL)
    return json.loads(found[1].replace("<\\/", "</"))


def test_notebook_html_holds_circuitsvis_and_fetches_nothing():
    page = view_of()._repr_html_()
    assert page.count("CircuitsVis.render(") == 1
    assert page.count(script()) == 1
    assert "<script src" not in page
    assert "cdn.jsdelivr" not in page.replace(script(), "")


def test_hostile_tokens_stay_text():
    page = view_of()._repr_html_().replace(script(), "")
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<b>first</b>" in page
    assert props_of(page)["tokens"] == [html.escape(token) for token in HOSTILE]


def test_colours_share_one_symmetric_scale():
    rows = (Row("a", ("x",), (1.0,)), Row("b", ("y",), (-4.0,)))
    page = View("t", rows)._repr_html_()
    assert [props["minValue"] for props in map(json.loads, re.findall(r"ColoredTokens, (\{.*?\})\)", page))] == [-4.0, -4.0]


def test_nan_is_refused_by_name():
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        view_of(values=(math.nan, 0.0, 0.0, 0.0))._repr_html_()


def test_terminal_text_marks_the_token_and_colours_by_sign():
    text = str(view_of(("up", "down", "none", "weak"), (2.0, -2.0, 0.0, 0.01)))
    assert "\x1b[38;2;0;0;0;48;2;64;64;255mup" in text
    assert "\x1b[1;4m\x1b[38;2;0;0;0;48;2;255;64;64mdown" in text
    assert text.endswith("noneweak")


def test_terminal_text_cannot_be_commanded_by_a_token():
    assert "\x1b[2J" not in str(view_of(("\x1b[2J", "b", "c", "d")))


def test_example_rows_show_a_window_around_the_token():
    tokens = tuple(f"t{index}" for index in range(60))
    example = Example(-1.5, 0, 40, tokens, tuple(float(index) for index in range(60)), "t41")
    row = feature_view(3, [example], unit="nats").rows[0]
    assert row.tokens[row.marked] == "t40"
    assert row.values[row.marked] == 40.0
    assert row.title == "-1.5000 «t40» → 't41'"


def test_show_prints_in_a_terminal(tiny_features, tiny_tokens, capsys):
    tiny_features.show(0, n=2)
    assert "Feature 0: top examples, activation in nats per unit step" in capsys.readouterr().out
    tiny_features.show(0, tiny_tokens[:1])
    assert "text 0" in capsys.readouterr().out


def test_a_text_view_has_every_token(tiny_features, tiny_tokens):
    view = tiny_features.view(2, tiny_tokens[:2])
    assert [len(row.tokens) for row in view.rows] == [10, 10]
    expected = tiny_features.activations(tiny_tokens[:2])[1, :, 2].tolist()
    assert view.rows[1].values == pytest.approx(expected)


def test_padding_is_not_shown(tiny_features):
    texts = [[1, 2, 3, 4], [5, 6]]
    assert [len(row.tokens) for row in tiny_features.view(2, texts).rows] == [4, 2]
    examples = tiny_features.top_examples(2, 2, tokens=texts)
    assert {len(example.tokens) for example in examples} == {len(example.activations) for example in examples} == {2, 4}


def test_show_displays_in_a_notebook(monkeypatch):
    class Shell:
        kernel = object()

    shown = []
    module = type("IPython", (), {"get_ipython": staticmethod(Shell)})
    display = type("display", (), {"display": staticmethod(shown.append)})
    monkeypatch.setitem(__import__("sys").modules, "IPython", module)
    monkeypatch.setitem(__import__("sys").modules, "IPython.display", display)
    show(view_of())
    assert len(shown) == 1
    assert isinstance(tokens_view(0, [["a"]], __import__("torch").zeros(1, 1), unit="nats"), View)
