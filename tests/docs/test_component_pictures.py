"""The rule by which components are chosen for the picture, and the page that is photographed."""

from dataclasses import replace

import pytest

pytest.importorskip("PIL")
from docs import component_pictures as pictures

TEXTS = [["a", "b", "c"], ["x", "b", "y"], ["a", "b", "z"], ["q", "r", "c"]]


def test_shares_are_of_the_most_frequent_token_at_before_and_after_the_place():
    shares = pictures.shares_of([(text, 1) for text in TEXTS])
    assert shares == {"here": (0.75, "b"), "before": (0.5, "a"), "after": (0.5, "c")}


def test_a_place_at_the_edge_counts_as_another_token():
    assert pictures.shares_of([(["a"], 0), (["a", "c"], 0)])["after"] == (0.5, "c")
    assert pictures.shares_of([(["a"], 0)])["before"] == (0.0, "")


def component(number: int, matrix: str, *shares: float) -> pictures.Read:
    named = {place: (share, "t") for place, share in zip(("here", "before", "after"), shares, strict=True)}
    return pictures.Read(number, matrix, 0.1, (), named)


def test_the_purest_and_the_least_pure_are_two_of_a_matrix_and_none_is_in_both():
    read = [component(k, f"W_{k % 4}", k / 12, 0.0, 0.0) for k in range(12)]
    pure, impure = pictures.extremes(read)
    assert [each.number for each in pure] == [11, 10, 9, 8, 7, 6, 5, 4]
    assert [each.number for each in impure] == [0, 1, 2, 3]


def test_among_equals_the_larger_sum_is_the_purer():
    pure, _ = pictures.extremes(
        [component(0, "W", 0.9, 0.1, 0.1), component(1, "W", 0.1, 0.9, 0.3), component(2, "W", 0.9, 0, 0)]
    )
    assert [each.number for each in pure] == [1, 0]


def test_random_samples_of_one_token_are_pure_and_of_different_ones_are_not():
    assert pictures.purities_at_random([["a"] * 3] * 30) == (1.0, 1.0)
    middle, high = pictures.purities_at_random([[f"{row} {k}" for k in range(5)] for row in range(30)])
    assert (middle, high) == (1 / pictures.N_TOP, 1 / pictures.N_TOP)


def test_what_is_read_is_drawn_escaped(tiny_components, tiny_tokens, monkeypatch):
    monkeypatch.setattr(pictures, "N_TOP", 3)
    read = pictures.read_components(tiny_components, tiny_tokens)
    acts = tiny_components.activations(tiny_tokens)
    is_needed = acts > pictures.NEEDED
    assert [each.number for each in read] == (is_needed.any(1).sum(0) >= 3).nonzero().flatten().tolist() != []
    assert read[0].density == pytest.approx(float(is_needed[..., read[0].number].double().mean()))
    best = read[0].examples[0]
    assert list(best.activations) == acts[best.row, :, read[0].number].tolist()
    one = replace(read[0], matrix="<b>", examples=read[0].examples[:1])
    page = pictures.drawn({"purest": [one], "least pure": []})
    assert page.count("<h2>") == 2 and "&lt;b&gt;" in page and "<b>" not in page
