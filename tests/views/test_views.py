import json
import math
import re
import sys

import pytest
import torch

from param_features.errors import FeatureCountError, InputError, NonFiniteError
from param_features.measure import Example
from param_features.views import View, choice_view, feature_view, neuron_view, show, tokens_view
from param_features.views import notebook as kernel
from param_features.views.circuitsvis_page import literal, script
from param_features.views.colours import static_tokens
from param_features.views.tokens import TokenRow

HOSTILE = ("<b>", "</script><script>alert(1)</script>", " a&b", "ok")


def view_of(tokens=HOSTILE, values=(1.0, -2.0, 0.0, 0.5)) -> View:
    return View("Feature 1", (TokenRow("first", tuple(tokens), tuple(values), 1),))


def props_of(page: str, component: str = "ColoredTokens") -> dict:
    found = re.search(rf"CircuitsVis\.{component}, (\{{.*?\}})\)\);?", page, re.DOTALL)
    return json.loads(found[1])


def test_notebook_html_holds_circuitsvis_and_fetches_nothing():
    page = view_of()._repr_html_()
    assert page.count("CircuitsVis.render(") == 1
    assert page.count(script()) == 1
    assert "<script src" not in page
    assert "://" not in page.replace(script(), "")


def test_hostile_tokens_stay_text():
    page = view_of()._repr_html_().replace(script(), "")
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<b>first</b>" in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;</span>" in page
    assert props_of(page)["tokens"] == [literal(token) for token in HOSTILE]


def test_a_literal_token_starts_nothing_in_html_and_reads_the_same():
    for token in HOSTILE:
        assert not re.search(r"<[a-z/!?]|&[a-z#]", literal(token))
        assert literal(token).replace("\u2060", "") == token


def test_colours_share_one_symmetric_scale():
    rows = (TokenRow("a", ("x",), (1.0,)), TokenRow("b", ("y",), (-4.0,)))
    page = View("t", rows)._repr_html_()
    assert [props["minValue"] for props in map(json.loads, re.findall(r"ColoredTokens, (\{.*?\})\)", page))] == [-4.0, -4.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_is_refused_by_name_before_anything_is_shown(value):
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        view_of(values=(value, 0.0, 0.0, 0.0))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        choice_view([["a"]], torch.tensor([[[value]]]), n=1, measured="nats")
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        neuron_view([["a"]], torch.tensor([[[[value]]]]), params=["w"], features=[0], measured="nats")


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
    row = feature_view(3, [example], measured="nats").rows[0]
    assert row.tokens[row.marked] == "t40"
    assert row.values[row.marked] == 40.0
    assert row.title == "-1.5000 «t40» → 't41'"
    assert repr([example]) == f"[{example}]" and len(repr(example)) < 80  # a notebook shows lists by repr


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


class Shell:
    """A kernel's shell; `parent` is the message that it runs."""

    kernel = object()
    parent: dict = {}

    def get_parent(self):
        return self.parent


def run_cell(monkeypatch, run: str, cell: str | None = None, code: str = "") -> None:
    metadata = {} if cell is None else {"cellId": cell}
    monkeypatch.setattr(Shell, "parent", {"header": {"msg_id": run}, "metadata": metadata, "content": {"code": code}})


@pytest.fixture
def notebook(monkeypatch):
    """A notebook's kernel that has shown nothing yet; what is displayed."""
    shown = []
    module = type("IPython", (), {"get_ipython": staticmethod(Shell)})
    display = type("display", (), {"display": staticmethod(shown.append)})
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(kernel, "_CARRIER", kernel._Carrier())
    return shown


def brings_script() -> bool:
    return script() in view_of()._repr_html_()


def test_show_displays_in_a_notebook(notebook):
    show(view_of())
    assert len(notebook) == 1
    assert isinstance(tokens_view(0, [["a"]], torch.zeros(1, 1), measured="nats"), View)


def test_the_first_output_brings_the_script_for_all(notebook, monkeypatch):
    run_cell(monkeypatch, "run 1", "cell a")
    assert [brings_script(), brings_script()] == [True, False]
    run_cell(monkeypatch, "run 2", "cell b")
    assert not brings_script()
    run_cell(monkeypatch, "run 3", "cell a")
    assert [brings_script(), brings_script()] == [True, False], "its own output is replaced, so it brings it again"
    run_cell(monkeypatch, "run 4", "cell b")
    assert not brings_script()


def test_cells_without_ids_are_known_by_their_code(notebook, monkeypatch):
    run_cell(monkeypatch, "run 1", code="features.show(1)")
    assert brings_script()
    run_cell(monkeypatch, "run 2", code="features.show(2)")
    assert not brings_script()
    run_cell(monkeypatch, "run 3", code="features.show(1)")
    assert brings_script()


def test_every_output_brings_the_script_in_colab_and_outside_a_kernel(notebook, monkeypatch, tmp_path):
    run_cell(monkeypatch, "run 1", "cell a")
    assert [brings_script(), brings_script()] == [True, False]
    assert script() in view_of().save(tmp_path / "x.html").read_text(encoding="utf-8")
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert [brings_script(), brings_script()] == [True, True]
    monkeypatch.delitem(sys.modules, "google.colab")
    monkeypatch.delitem(sys.modules, "IPython")
    assert [brings_script(), brings_script()] == [True, True]


def test_a_view_that_fails_does_not_count_as_the_one_that_brought_the_script(notebook, monkeypatch):
    view = view_of()
    monkeypatch.setattr(View, "blocks", property(lambda _: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        view._repr_html_()
    monkeypatch.undo()
    assert brings_script()


def test_a_saved_page_is_whole(tmp_path):
    path = view_of(("héllo", " 世界", "b", "c")).save(tmp_path / "page.html")
    text = path.read_bytes().decode("utf-8")
    assert text.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in text
    assert "世界" in text
    assert text.count(script()) == 1


def test_a_text_offers_its_most_active_features(tiny_features, tiny_tokens):
    view = tiny_features.view(tokens=tiny_tokens[:2], n=3)
    acts = tiny_features.activations(tiny_tokens[:2])
    for row, text in enumerate(view.texts):
        strongest = acts[row].abs().max(0).values
        assert list(text.features) == strongest.topk(3).indices.tolist()
        for feature, values in zip(text.features, text.values, strict=True):
            assert values == pytest.approx(acts[row, :, feature].tolist())
    props = props_of(view._repr_html_(), "ColoredTokensMulti")
    assert props["labels"] == [str(feature) for feature in view.texts[0].features]
    assert [len(props["values"]), len(props["values"][0])] == [10, 3]
    assert f"feature {view.texts[1].features[2]}" in str(view)


def test_small_numbers_are_shown_in_a_unit_that_six_digits_can_hold():
    acts = torch.tensor([[[3e-7, -1e-7], [0.0, 1e-9]]])
    page = choice_view([["a", "b"]], acts, n=2, measured="nats")._repr_html_().replace(script(), "")
    props = props_of(page, "ColoredTokensMulti")
    assert "numbers × 10<sup>−7</sup>" in page
    assert props["values"][0] == pytest.approx([3.0, -1.0])
    assert props["positiveBounds"] == pytest.approx([3.0, 3.0])
    assert props["negativeBounds"] == pytest.approx([-3.0, -3.0])


def test_parts_of_parameters_sum_to_the_activation(tiny_hooked, tiny_tokens):
    import param_features as pf

    params = ["blocks.0.attn.W_K", "blocks.0.attn.b_Q", "blocks.0.mlp.W_in"]
    fit = pf.FitSettings(steps=10, selection="l1")
    found = pf.decompose(tiny_hooked, params, tiny_tokens, n_features=4, l0=2, fit=fit, progress=False)
    parts = found.activation_parts(tiny_tokens[:3])
    assert parts.shape == (3, 10, 3, 4)
    torch.testing.assert_close(parts.sum(-2), found.activations(tiny_tokens[:3]))
    assert (parts.abs().amax((0, 1, 3)) > 0).all()
    jvp = [found.activations(tiny_tokens[:3], route=route) for route in ("jvp", "vjp")]
    torch.testing.assert_close(*jvp)
    view = found.view_neurons([[1, 2, 3], [4, 5]], features=[2, 0])
    assert view.params == tuple(found.params)
    assert [len(text) for text in view.texts] == [len(values) for values in view.values] == [3, 2]
    own = found.activation_parts(torch.tensor([[4, 5]]))[0][..., [2, 0]]
    torch.testing.assert_close(torch.tensor(view.values[1]), own.float(), rtol=1e-4, atol=1e-7)
    props = props_of(view._repr_html_(), "TextNeuronActivations")
    assert props["firstDimensionLabels"] == list(found.params)
    assert props["secondDimensionLabels"] == ["2", "0"]
    strength = [found.activation_parts(torch.tensor([row])).abs().amax((0, 1, 2)) for row in ([1, 2, 3], [4, 5])]
    order = torch.stack(strength).amax(0).argsort(descending=True).tolist()
    assert list(found.view_neurons([[1, 2, 3], [4, 5]]).features) == order
    best = torch.tensor(view.values[0]).abs().amax(0)[1].argmax()
    assert f"text 0, {view.params[1]}, feature {[2, 0][best]}" in str(view)


def test_show_offers_both_browsers(tiny_features, tiny_tokens, capsys):
    tiny_features.show(tokens=tiny_tokens[:1], n=2)
    assert capsys.readouterr().out.startswith("The 2 most active features, one to choose: activation in nats per unit step")
    tiny_features.show_neurons(tiny_tokens[:1])
    assert "text 0, blocks.0.attn.W_K, feature" in capsys.readouterr().out


def test_nothing_to_show_is_refused(tiny_features, tiny_tokens):
    with pytest.raises(InputError, match="Nothing to show. Give a feature, tokens to choose a feature on, or both"):
        tiny_features.show()
    with pytest.raises(FeatureCountError, match="There is no feature 9"):
        tiny_features.show_neurons(tiny_tokens[:1], features=[0, 9])


def test_static_tokens_are_coloured_by_sign_and_marked():
    text = static_tokens(["up", "down", "none", "a\n<i>"], [2.0, -2.0, 0.0, 1.0], bound=2.0, marked=2)
    assert 'background-color:rgb(0,0,255);color:#fff">up<' in text
    assert 'background-color:rgb(255,0,0);color:#fff">down<' in text
    assert re.search(r'outline:2px solid #d97706[^"]*">none<', text)
    assert text.count("outline:2px") == 1
    assert "a⏎\n&lt;i&gt;" in text


def test_circuitsvis_is_never_asked_to_show_itself(monkeypatch):
    """Its own way probes google.com; ours reads a file."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    script.cache_clear()
    assert "CircuitsVis.render" in view_of()._repr_html_()
