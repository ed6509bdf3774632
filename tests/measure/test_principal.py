import pytest
import torch

from param_features.gradients import Dense, Factored, GradientStore, Indexed, flatten
from param_features.measure import principal as module
from param_features.measure.controls import ControlDictionary, dictionary_error, principal_directions
from param_features.measure.principal import sliced_principal

N_TRAIN, N_OTHER, N_FEATURES = 400, 80, 20


def kept_in(gradients) -> GradientStore:
    n_samples = next(iter(gradients.values())).n_samples
    store = GradientStore(n_samples, gradients)
    store.add(gradients)
    return store


def stores_of(seed: int = 0) -> tuple[GradientStore, GradientStore]:
    """Gradients of a factored matrix, an indexed table and a bias, whose spectrum falls slowly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * torch.arange(1, shape[-1] + 1).float().rsqrt()

    def some(n: int):
        index = torch.randint(40, (n, 3), generator=generator)
        return kept_in({
            "w": Factored(draw(n, 3, 50), draw(n, 3, 60)),
            "e": Indexed(0.3 * draw(n, 3, 30), index, 40),
            "b": Dense(0.2 * draw(n, 50, 1)),
        })  # fmt: skip

    return some(N_TRAIN), some(N_OTHER)


@pytest.fixture
def small_pieces(monkeypatch):
    """Several slices of each matrix, several chunks of the samples."""
    monkeypatch.setattr(module, "_SLICE_NUMBERS", 30 * 60 * 13)
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 64 * 60 * 13)


def found_in(train, store, n_features=N_FEATURES, **more):
    return sliced_principal(train, n_features, torch.Generator().manual_seed(0), **more).on(store)


@pytest.mark.usefixtures("small_pieces")
def test_slices_and_chunks_sum_to_what_one_piece_gives():
    train, other = stores_of()
    weights = torch.randn(N_TRAIN, 15, generator=torch.Generator().manual_seed(0))
    sliced = module._projected(train, weights, other)
    rows = weights.T @ flatten(train.rows(slice(None)))
    for found, expected in zip(sliced, (flatten(other.rows(slice(None))) @ rows.T, rows @ rows.T), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("small_pieces")
def test_overlaps_are_those_with_directions_built_from_the_weights():
    train, other = stores_of()
    found = sliced_principal(train, N_FEATURES, torch.Generator().manual_seed(0))
    rows = torch.linalg.svd(found.weights.T @ flatten(train.rows(slice(None))), full_matrices=False).Vh[:N_FEATURES]
    overlaps, gram = found.on(other)
    torch.testing.assert_close(overlaps.abs(), (flatten(other.rows(slice(None))) @ rows.T).abs(), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(gram, torch.eye(N_FEATURES), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("is_pursued", [False, True])
def test_the_held_out_error_is_that_of_the_exact_directions(is_pursued):
    train, other = stores_of()
    exact = ControlDictionary.of_rows(principal_directions(train, N_FEATURES, torch.Generator().manual_seed(0)))
    lean = sliced_principal(train, N_FEATURES, torch.Generator().manual_seed(0))
    errors = [dictionary_error(dictionary, other, 3, is_pursued=is_pursued) for dictionary in (exact, lean)]
    assert errors[0] < 0.95
    assert errors[1] == pytest.approx(errors[0], abs=0.004)


def test_each_round_brings_the_directions_closer_to_the_leading_ones():
    train, _ = stores_of()
    rows = flatten(train.rows(slice(None)))
    best = float(torch.linalg.svdvals(rows)[:N_FEATURES].square().sum())
    reached = [float(found_in(train, train, n_rounds=n)[0].square().sum()) / best for n in (0, 1, 2)]
    assert 0.9 < reached[0] < reached[1] < reached[2] < 1.0001
    assert reached[1] > 0.99


def test_as_many_directions_as_samples_span_the_samples():
    train, _ = stores_of()
    few = kept_in(train.rows(slice(0, 12)))
    overlaps, _ = found_in(few, few, 12)
    torch.testing.assert_close(overlaps.square().sum(1), few.square_norm(), rtol=1e-3, atol=1e-3)


def test_a_direction_that_no_gradient_has_is_left_near_zero():
    train, other = stores_of()
    one = {name: gradient.map(lambda t: t[:1].repeat(30, *(1 for _ in t.shape[1:]))) for name, gradient in
           train.rows(slice(0, 1)).items()}  # fmt: skip
    overlaps, gram = found_in(kept_in(one), other, 5)
    assert torch.isfinite(overlaps).all()
    assert float(gram.diagonal()[0]) == pytest.approx(1, abs=1e-3)
    assert float(overlaps[:, 1:].abs().max()) < 0.05 * float(overlaps[:, 0].abs().max())


def test_of_too_many_samples_some_are_taken(monkeypatch):
    monkeypatch.setattr(module, "_MOST_WEIGHTS", 100 * (N_FEATURES + 10))
    train, other = stores_of()
    found = sliced_principal(train, N_FEATURES, torch.Generator().manual_seed(0))
    assert found.weights.shape == (100, N_FEATURES + 10)
    assert found.on(other)[0].shape == (N_OTHER, N_FEATURES)


def test_nothing_is_drawn_from_the_users_generator():
    before = torch.get_rng_state()
    found_in(*stores_of())
    assert torch.equal(before, torch.get_rng_state())
