"""Laws of `Layout`: what is read can be written back, alone or beside other parts, under functorch too."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from param_features.params import Layout
from param_features.params.layout import WHOLE


@dataclass(frozen=True)
class Case:
    """A layout, the shape of the tensor that it reads from, and a slow obvious reading."""

    layout: Layout
    shape: tuple[int, ...]
    expected: Tensor

    @property
    def stored(self) -> Tensor:
        return numbered(*self.shape)

    def like_the_named(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.expected.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def heads_out(h: int, o: int, i: int, *, rows_in: bool) -> Case:
    """W_Q, W_K and W_V inside a linear layer, or inside a layer that multiplies from the left."""
    stored = numbered(i, h * o) if rows_in else numbered(h * o, i)
    matrix = stored if rows_in else stored.T
    expected = torch.stack([matrix[:, head * o : (head + 1) * o] for head in range(h)])
    pattern = "i (head o) -> head i o" if rows_in else "(head o) i -> head i o"
    return Case(Layout(pattern, (("o", o),)), tuple(stored.shape), expected)


def heads_in(h: int, o: int, i: int, *, rows_in: bool) -> Case:
    """W_O."""
    stored = numbered(h * i, o) if rows_in else numbered(o, h * i)
    matrix = stored if rows_in else stored.T
    expected = torch.stack([matrix[head * i : (head + 1) * i] for head in range(h)])
    pattern = "(head i) o -> head i o" if rows_in else "o (head i) -> head i o"
    return Case(Layout(pattern, (("i", i),)), tuple(stored.shape), expected)


def transposed(h: int, o: int, i: int) -> Case:
    return Case(Layout("o i -> i o"), (o, i), numbered(o, i).T)


def head_bias(h: int, o: int, i: int) -> Case:
    return Case(Layout("(head o) -> head o", (("o", o),)), (h * o,), numbered(h * o).reshape(h, o))


def interleaved(h: int, o: int, i: int, part: int) -> Case:
    """One of queries, keys and values where each head holds all three."""
    stored = numbered(h * 3 * o, i)
    expected = torch.cat([stored[(3 * head + part) * o : (3 * head + part + 1) * o] for head in range(h)])
    start = part * h * o
    pattern = "(head part o) i -> (part head o) i"
    return Case(Layout(pattern, (("head", h), ("part", 3)), (start, start + h * o)), (h * 3 * o, i), expected)


def narrowed(h: int, o: int, i: int, part: int, *, axis: int) -> Case:
    """One of three parts that lie one after the other, along the rows or the columns."""
    stored = numbered(3 * o, i) if axis == 0 else numbered(i, 3 * o)
    span = slice(part * o, (part + 1) * o)
    expected = stored[span] if axis == 0 else stored[:, span]
    return Case(Layout(part=(part * o, (part + 1) * o), axis=axis), tuple(stored.shape), expected)


def fused_sizes(h: int, o: int, i: int, part: int) -> Case:
    """Parts of unequal sizes, as grouped queries, keys and values have."""
    spans = [(0, h * o), (h * o, h * o + o), (h * o + o, h * o + 2 * o)]
    stored = numbered(h * o + 2 * o, i)
    return Case(Layout(part=spans[part]), tuple(stored.shape), stored[slice(*spans[part])])


PARTS = {
    "interleaved": interleaved,
    "rows": lambda *sizes: narrowed(*sizes, axis=0),
    "columns": lambda *sizes: narrowed(*sizes, axis=1),
    "unequal": fused_sizes,
}
WHOLES = {
    "heads out": lambda *sizes: heads_out(*sizes, rows_in=False),
    "heads out, rows in": lambda *sizes: heads_out(*sizes, rows_in=True),
    "heads in": lambda *sizes: heads_in(*sizes, rows_in=False),
    "heads in, rows in": lambda *sizes: heads_in(*sizes, rows_in=True),
    "transposed": transposed,
    "head bias": head_bias,
}

sizes = st.tuples(*[st.integers(1, 4)] * 3)
parts = st.builds(
    lambda kind, sizes, part: PARTS[kind](*sizes, part), st.sampled_from(sorted(PARTS)), sizes, st.integers(0, 2)
)
cases = st.one_of(st.builds(lambda kind, sizes: WHOLES[kind](*sizes), st.sampled_from(sorted(WHOLES)), sizes), parts)


@given(cases)
def test_reading_gives_the_named_tensor(case):
    assert torch.equal(case.layout.read(case.stored), case.expected)


@given(cases)
def test_writing_what_was_read_changes_nothing(case):
    assert torch.equal(case.layout.write(case.layout.read(case.stored), case.stored), case.stored)


@given(cases)
def test_reading_what_was_written_gives_it_back_and_the_stored_tensor_is_left_alone(case):
    stored, value = case.stored, case.like_the_named()
    written = case.layout.write(value, stored)
    assert written.shape == stored.shape
    assert torch.equal(case.layout.read(written), value)
    assert torch.equal(stored, case.stored)


@given(cases)
def test_writing_twice_is_writing_last(case):
    first, last = case.like_the_named(1), case.like_the_named(2)
    written = case.layout.write(last, case.layout.write(first, case.stored))
    assert torch.equal(written, case.layout.write(last, case.stored))


@given(parts)
def test_writing_a_part_leaves_everything_else(case):
    is_named = case.layout.write(torch.ones_like(case.expected), torch.zeros(case.shape, dtype=torch.float64)).bool()
    assert int(is_named.sum()) == case.expected.numel()
    written = case.layout.write(case.like_the_named(), case.stored)
    assert torch.equal(written[~is_named], case.stored[~is_named])


@given(st.sampled_from(sorted(PARTS)), sizes)
def test_parts_are_disjoint_and_together_the_whole(kind, sizes):
    found = [PARTS[kind](*sizes, part) for part in range(3)]
    counts = sum(one.layout.write(torch.ones_like(one.expected), torch.zeros(one.shape)) for one in found)
    assert torch.equal(counts, torch.ones(found[0].shape))


@given(cases, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_reading_and_writing_keep_the_dtype(case, dtype):
    stored = case.stored.to(dtype)
    assert case.layout.read(stored).dtype == dtype
    assert case.layout.write(case.like_the_named(dtype=dtype), stored).dtype == dtype


EXAMPLES = {name: make(2, 3, 4) for name, make in WHOLES.items()} | {name: make(2, 3, 4, 1) for name, make in PARTS.items()}


@pytest.mark.parametrize("case", EXAMPLES.values(), ids=EXAMPLES)
class TestUnderFunctorch:
    def test_mapped_over_values(self, case):
        values = torch.stack([case.like_the_named(seed) for seed in range(3)])
        mapped = torch.func.vmap(lambda value: case.layout.write(value, case.stored))(values)
        assert torch.equal(mapped, torch.stack([case.layout.write(value, case.stored) for value in values]))
        assert torch.equal(torch.func.vmap(case.layout.read)(mapped), values)

    def test_forward_mode(self, case):
        tangent = case.like_the_named(3)
        written, change = torch.func.jvp(
            lambda value: case.layout.write(value, case.stored), (case.like_the_named(),), (tangent,)
        )
        assert torch.equal(case.layout.read(change), tangent)
        assert torch.equal(change, case.layout.write(tangent, torch.zeros_like(written)))

    def test_reverse_mode_of_writing_is_reading_and_the_other_way_round(self, case):
        cotangent = torch.randn(case.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        _, pull = torch.func.vjp(lambda value: case.layout.write(value, case.stored), case.like_the_named())
        assert torch.equal(pull(cotangent)[0], case.layout.read(cotangent))
        _, pull = torch.func.vjp(case.layout.read, case.stored)
        grad = case.like_the_named(5)
        assert torch.equal(pull(grad)[0], case.layout.write(grad, torch.zeros(case.shape, dtype=torch.float64)))


def test_the_whole_is_the_very_tensor():
    stored, value = torch.zeros(2, 3), torch.ones(2, 3)
    assert WHOLE.read(stored) is stored
    assert WHOLE.write(value, stored) is value
