"""Laws of the three gradient formats, over shapes, ranks and dtypes, the empty batch included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from param_features.gradients import Dense, Factored, GradientStore, Indexed
from param_features.gradients.store import bytes_per_sample, flatten, square_norm
from param_features.gradients.types import compact, join_positions

FORMATS = (Dense, Factored, Indexed)
DTYPES = st.sampled_from([torch.float32, torch.float64])
sizes = st.integers(1, 4)
counts = st.integers(0, 4)
few = settings(max_examples=60, deadline=None)


def random_gradient(draw, kind, n, d_out, d_in, dtype, n_pos=None):
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)  # noqa: E731
    n_pos = int(torch.randint(1, 5, (), generator=draw)) if n_pos is None else n_pos
    if kind is Dense:
        return Dense(normal(n, d_out, d_in))
    if kind is Factored:
        return Factored(normal(n, n_pos, d_out), normal(n, n_pos, d_in))
    return Indexed(normal(n, n_pos, d_out), torch.randint(d_in, (n, n_pos), generator=draw), d_in)


@st.composite
def gradients(draw, kinds=FORMATS, n=counts):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    shape = [draw(size) for size in (n, sizes, sizes)]
    return random_gradient(generator, draw(st.sampled_from(kinds)), *shape, draw(DTYPES))


def directions(gradient, n_features: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator, like = torch.Generator().manual_seed(1), gradient.tensors[0]
    normal = lambda size: torch.randn(n_features, size, rank, generator=generator).to(like)  # noqa: E731
    return tuple(map(normal, gradient.matrix_shape))


def matrices(gradient) -> torch.Tensor:
    """Built entry by entry from the definition Σ_s δ_s ⊗ a_s."""
    if isinstance(gradient, Dense):
        return gradient.matrix
    n, n_pos, d_out = gradient.delta.shape
    d_in = gradient.matrix_shape[1]
    found = gradient.delta.new_zeros(n, d_out, d_in)
    for sample in range(n):
        for pos in range(n_pos):
            if isinstance(gradient, Indexed):
                found[sample, :, gradient.index[sample, pos]] += gradient.delta[sample, pos]
            else:
                found[sample] += torch.outer(gradient.delta[sample, pos], gradient.inputs[sample, pos])
    return found


def assert_close(one: torch.Tensor, two: torch.Tensor) -> None:
    tolerance = 1e-10 if one.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@few
@given(gradients())
def test_dense_is_the_sum_of_outer_products(gradient):
    assert_close(gradient.dense().matrix, matrices(gradient))
    assert gradient.matrix_shape == gradient.dense().matrix_shape == matrices(gradient).shape[1:]
    assert gradient.n_samples == len(matrices(gradient))


@few
@given(gradients(), sizes, sizes)
def test_inner_equals_the_product_of_built_matrices(gradient, n_features, rank):
    left, right = directions(gradient, n_features, rank)
    assert_close(gradient.inner(left, right), matrices(gradient).flatten(1) @ (left @ right.mT).flatten(1).T)


@few
@given(gradients(), sizes, sizes)
def test_inner_is_linear_in_the_direction(gradient, n_features, rank):
    left, right = directions(gradient, n_features, rank)
    both = gradient.inner(torch.cat([left, -2 * left], 2), torch.cat([right, right.flip(2)], 2))
    assert_close(both, gradient.inner(left, right) - 2 * gradient.inner(left, right.flip(2)))


@few
@given(gradients(), sizes, sizes, st.floats(-3, 3))
def test_inner_is_linear_and_the_square_norm_quadratic_in_the_gradient(gradient, n_features, rank, scale):
    left, right = directions(gradient, n_features, rank)
    first = gradient.tensors[0]
    longer = type(gradient)(scale * first, *gradient.tensors[1:], *([gradient.d_in] if type(gradient) is Indexed else []))
    assert_close(longer.inner(left, right), scale * gradient.inner(left, right))
    assert_close(longer.square_norm(), scale**2 * gradient.square_norm())


@few
@given(gradients())
def test_square_norm_is_that_of_the_built_matrices(gradient):
    assert_close(gradient.square_norm(), matrices(gradient).square().sum((1, 2)))


@few
@given(gradients(), sizes, sizes, st.randoms(use_true_random=False))
def test_permuting_samples_permutes_every_answer(gradient, n_features, rank, random):
    left, right = directions(gradient, n_features, rank)
    order = list(range(gradient.n_samples))
    random.shuffle(order)
    order = torch.tensor(order, dtype=torch.long)
    permuted = gradient.map(lambda tensor: tensor[order])
    assert_close(permuted.dense().matrix, matrices(gradient)[order])
    assert_close(permuted.inner(left, right), gradient.inner(left, right)[order])
    assert_close(permuted.square_norm(), gradient.square_norm()[order])


@few
@given(st.lists(st.sampled_from(FORMATS), min_size=1, max_size=3), st.integers(0, 3), sizes, sizes, DTYPES)
def test_joining_positions_sums_the_parts(kinds, n, d_out, d_in, dtype):
    generator = torch.Generator().manual_seed(len(kinds))
    parts = [random_gradient(generator, kind, n, d_out, d_in, dtype) for kind in kinds]
    joined = join_positions(parts)
    assert_close(joined.dense().matrix, sum(map(matrices, parts)))
    assert_close(joined.square_norm(), sum(map(matrices, parts)).square().sum((1, 2)))
    assert type(joined) is (kinds[0] if len(set(kinds)) == 1 else Dense)


@few
@given(gradients())
def test_compact_is_the_smaller_form_of_the_same_gradient(gradient):
    small = compact(gradient)
    assert_close(small.dense().matrix, matrices(gradient))
    n_numbers = [sum(tensor[:1].numel() for tensor in form.tensors) for form in (small, gradient, gradient.dense())]
    if gradient.n_samples:
        assert n_numbers[0] == min(n_numbers[1:])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n_pos", [1, 40])
def test_compact_chooses_by_shape_alone_so_that_an_empty_batch_fits_a_store(kind, n_pos):
    generator = torch.Generator().manual_seed(0)
    some, none = (random_gradient(generator, kind, n, 6, 5, torch.float32, n_pos) for n in (3, 0))
    assert type(compact(none)) is type(compact(some))
    store = GradientStore(3, {"w": some})
    store.add({"w": none})
    store.add({"w": some})
    assert_close(store.rows(slice(None))["w"].dense().matrix, matrices(some))


@few
@given(st.lists(gradients(n=st.just(3)), min_size=1, max_size=3))
def test_norm_and_rows_over_several_parameters(parts):
    found = {f"w{index}": part.map(lambda t: t.double() if t.is_floating_point() else t) for index, part in enumerate(parts)}
    expected = torch.cat([matrices(part).flatten(1) for part in found.values()], 1)
    assert_close(flatten(found), expected)
    assert_close(square_norm(found), expected.square().sum(1))
    store = GradientStore(6, found)
    store.add(found)
    store.add(found)
    assert_close(store.square_norm(), expected.square().sum(1).repeat(2))
    assert bytes_per_sample(found) == sum(t[0].nbytes for part in found.values() for t in compact(part).tensors)
