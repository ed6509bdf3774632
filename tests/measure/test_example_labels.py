import pytest

from param_features.measure import Example
from param_features.measure.labels import label_of, output_label, quoted, windows_with


def example(text: str, following: str | None = "x") -> Example:
    """A text whose last word is the activating token."""
    tokens = tuple(text.split(" "))
    return Example(1.0, 0, len(tokens) - 1, tokens, (0.0,) * len(tokens), following)


def never(_: str) -> float:
    return 0.0


def test_shared_token_and_what_follows():
    examples = [example(f"w{n} said", following=f"n{n % 3}") for n in (0, 1, 0, 1, 2)]
    assert label_of(examples, never) == "on “said” → “n0” / “n1”"


def test_a_quarter_is_called_often():
    examples = [example(f"w{n} {'was' if n < 3 else f'v{n}'}", following=f"n{n}") for n in range(10)]
    assert label_of(examples, never) == "often on “was”"


def test_a_token_before_counts_where_it_is_rare_elsewhere():
    examples = [example(f"dog w{n} v{n}", following=f"n{n}") for n in range(8)]
    assert label_of(examples, never) == "after “dog”"
    assert label_of(examples, lambda token: 0.5 if token == "dog" else 0.0) == "mixed"


def test_what_nothing_shares_is_mixed():
    assert label_of([example(f"u{n} v{n}", following=f"n{n}") for n in range(8)], never) == "mixed"


def test_too_few_examples_have_no_label():
    assert label_of([example("a b")] * 3, never) == ""


@pytest.mark.parametrize(("outputs", "label"), [([3, 3, 1], "→ output 3"), ([1, 2, 3], "mixed")])
def test_outputs(outputs, label):
    assert output_label(outputs) == label


def test_what_cannot_be_seen_is_made_visible():
    assert [quoted(token) for token in (" was", " ", "\n", "a\u202eb")] == ["“was”", "“ ”", "“⏎”", "“a·b”"]


def test_windows():
    share = windows_with([["a"] * 16 + ["b"] * 16, ["a"] * 16])
    assert share("a") == pytest.approx(2 / 3)
    assert share("c") == 0
