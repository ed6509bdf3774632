"""Colours go to terminals alone."""

import io
import sys

import pytest

from param_features.views import feature_view, show, tokens_view
from tests.circuits_made import small_circuit


class Terminal(io.StringIO):
    def isatty(self):
        return True


def pages():
    import torch

    tokens = tokens_view(0, [["a", "b", "c"]], torch.tensor([[0.1, -2.0, 1.0]]), measured="nats")
    return {"tokens": tokens, "feature": feature_view(0, [], measured="nats"), "circuit": small_circuit().view()}


@pytest.mark.parametrize("name", ["tokens", "circuit"])
@pytest.mark.parametrize(
    ("stream", "no_colour", "term", "is_coloured"),
    [
        (Terminal, "", "xterm", True),
        (Terminal, "1", "xterm", False),
        (Terminal, "", "dumb", False),
        (io.StringIO, "", "xterm", False),
    ],
)
def test_show_and_repr_are_coloured_where_a_terminal_takes_it(monkeypatch, name, stream, no_colour, term, is_coloured):
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("TERM", term)
    written = stream()
    monkeypatch.setattr(sys, "stdout", written)
    page = pages()[name]
    show(page)
    assert ("\x1b" in written.getvalue()) == is_coloured == ("\x1b" in repr(page))
    assert written.getvalue() == f"{page!r}\n"


def test_a_plain_view_marks_its_token(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    plain = repr(pages()["circuit"])
    assert "\x1b" not in plain
    assert "«" in plain.split("\n", 12)[-1]
