import pytest
import torch
from torch import nn

from param_features.fit import batch_top_k
from param_features.fit.formats import LowRank
from param_features.fitted.metrics import Metrics
from param_features.gradients import Dense, Factored, GradientStore
from param_features.measure import controls as module
from param_features.measure.controls import (
    ControlDictionary,
    dictionary_error,
    leading_eigenvectors,
    principal_directions,
    random_directions,
    random_like,
    singular_directions,
)
from param_features.measure.principal import SlicedPrincipal
from param_features.params import adapter_for, select


def store_of(n_samples: int = 300, seed: int = 0) -> GradientStore:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(2.0, 0.1, 30).reshape(6, 5)
    gradient = Dense(scale * torch.randn(n_samples, 6, 5, generator=generator))
    bias = Dense(torch.randn(n_samples, 3, 1, generator=generator))
    store = GradientStore(n_samples, {"w": gradient, "b": bias})
    store.add({"w": gradient, "b": bias})
    return store


def rows_of(store: GradientStore) -> torch.Tensor:
    return torch.cat([gradient.dense().matrix.flatten(1) for gradient in store.rows(slice(None)).values()], 1)


def test_principal_directions_are_the_right_singular_vectors():
    store = store_of()
    found = principal_directions(store, 4, torch.Generator().manual_seed(0))
    expected = torch.linalg.svd(rows_of(store), full_matrices=False).Vh[:4]
    torch.testing.assert_close((found @ expected.T).abs(), torch.eye(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [600, 20, 0])
def test_few_leading_eigenvectors_are_those_of_the_whole_decomposition(rank):
    factor = torch.randn(600, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = factor @ torch.diag(torch.linspace(2, 1, rank, dtype=torch.float64)) @ factor.T
    found, whole = leading_eigenvectors(matrix, 40), torch.linalg.eigh(matrix).eigenvectors.T.flip(0)[:40]
    torch.testing.assert_close(found @ found.T, torch.eye(40, dtype=torch.float64))
    n = min(rank, 40)
    torch.testing.assert_close(found[:n].T @ found[:n], whole[:n].T @ whole[:n], atol=1e-6, rtol=0)
    kept = (found @ matrix @ found.T).diagonal()
    torch.testing.assert_close(kept, (whole @ matrix @ whole.T).diagonal(), atol=1e-6 * max(1.0, float(kept.max())), rtol=0)


def test_iterated_principal_directions_span_what_the_exact_ones_span(monkeypatch):
    store = store_of()
    exact = principal_directions(store, 4, torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "_EXACT_UP_TO", 10)
    iterated = principal_directions(store, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(iterated @ iterated.T, torch.eye(4), atol=1e-5, rtol=0)
    kept = [(rows_of(store) @ rows.T).square().sum() for rows in (exact, iterated)]
    assert kept[1] == pytest.approx(float(kept[0]), rel=1e-3)


def test_error_of_orthonormal_rows_is_what_top_k_leaves_over():
    store = store_of()
    rows = principal_directions(store, 8, torch.Generator().manual_seed(0))
    coords = rows_of(store) @ rows.T
    expected = 1 - (coords * batch_top_k(coords, 3)).square().sum() / rows_of(store).square().sum()
    assert dictionary_error(ControlDictionary.of_rows(rows), store, 3) == pytest.approx(float(expected), abs=1e-5)


def test_a_slanted_dictionary_gets_the_better_encoder():
    """Two nearly parallel rows: the overlaps alone count the shared part twice, least squares does not."""
    shared = torch.zeros(33)
    shared[0] = 1
    rows = torch.stack([shared, shared + 0.1 * torch.eye(33)[1]])
    rows = rows / rows.norm(dim=1, keepdim=True)
    store = store_of()
    overlaps = rows_of(store) @ rows.T
    tied = (rows_of(store) - overlaps @ rows).square().sum() / rows_of(store).square().sum()
    best = torch.linalg.lstsq(rows.T, rows_of(store).T).solution.T
    solved = (rows_of(store) - best @ rows).square().sum() / rows_of(store).square().sum()
    assert solved < tied - 0.01
    assert dictionary_error(ControlDictionary.of_rows(rows), store, 2) == pytest.approx(float(solved), abs=1e-4)


def test_random_directions_have_the_fits_rank_and_nearly_nothing_to_say():
    like = store_of().rows(slice(0, 1))
    found = random_directions(like, 5, 2, torch.Generator().manual_seed(0))
    assert found.factors["w"][0].shape == (5, 6, 2)
    assert found.factors["b"][0].shape == (5, 3, 1)


def test_singular_directions_lead_with_the_strongest_and_fill_up_with_pairs():
    layer = nn.Linear(4, 3)
    subset = select(adapter_for(layer).views(), "weight")
    u, _, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    found = singular_directions(subset, 12).materialize()["weight"]
    assert len(found) == 9  # 3 singular directions and the 6 pairs of them; W has no more
    for index in range(3):
        expected = torch.outer(u[:, index], vh[index])
        assert float((found[index] * expected).sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.flatten(1) @ found.flatten(1).T, torch.eye(9), atol=1e-5, rtol=0)


def test_a_factored_store_gives_the_same_controls_as_its_dense_twin():
    generator = torch.Generator().manual_seed(0)
    factored = Factored(torch.randn(50, 2, 20, generator=generator), torch.randn(50, 2, 30, generator=generator))
    stores = []
    for gradient in (factored, factored.dense()):
        stores.append(GradientStore(50, {"w": gradient}))
        stores[-1].add({"w": gradient})
    assert isinstance(stores[0].rows(slice(0, 1))["w"], Factored)
    directions = LowRank({"w": (torch.randn(4, 20, 1, generator=generator), torch.randn(4, 30, 1, generator=generator))})
    errors = [dictionary_error(ControlDictionary.of(directions), store, 2) for store in stores]
    assert errors[0] == pytest.approx(errors[1], abs=1e-5)


def test_a_matching_control_is_shown_as_such():
    metrics = Metrics({"reconstruction_error": 0.5, "control_pca": 0.5, "control_random": 0.9})
    assert metrics.matched_by == ["control_pca"]
    assert "principal directions of the gradients: MATCHES THE FIT" in repr(metrics)
    assert "the fit is 44% lower" in repr(metrics)


def test_singular_directions_of_a_large_matrix_are_the_strongest_of_all_pairs():
    layer = nn.Linear(60, 50)
    found = singular_directions(select(adapter_for(layer).views(), "weight"), 70)
    s = torch.linalg.svdvals(layer.weight.detach())
    pairs = sorted((float((s[i] * s[j]).sqrt()) for i in range(50) for j in range(50) if i != j), reverse=True)[:20]
    reach = torch.stack([(layer.weight.detach() * m).sum() for m in found.materialize()["weight"]])
    torch.testing.assert_close(reach[:50], s, atol=1e-5, rtol=0)
    left, right = found.factors["weight"]
    u, _, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    own = (left[50:, :, 0] @ u).square() @ s, (right[50:, :, 0] @ vh.T).square() @ s
    torch.testing.assert_close((own[0] * own[1]).sqrt(), torch.tensor(pairs), atol=1e-4, rtol=0)


def test_directions_too_large_to_hold_take_the_way_by_slices(monkeypatch):
    store = store_of()
    monkeypatch.setattr(module, "_EXACT_UP_TO", 10)
    monkeypatch.setattr(module, "_DENSE_NUMBERS", 4 * 33)
    generator = torch.Generator().manual_seed(0)
    assert isinstance(module.principal_dictionary(store, 4, generator), ControlDictionary)
    assert isinstance(module.principal_dictionary(store, 5, generator), SlicedPrincipal)


@pytest.mark.parametrize(("n_features", "d"), [(8, 30), (8, 100), (100, 800)])
def test_control_bytes_grow_with_what_each_way_holds(n_features, d):
    def needed(n_samples=20, **more):
        sizes = {"n_features": n_features, "n_samples": n_samples, "n_held_out": 100} | more
        return module.control_bytes({"w": (d, d)}, **sizes)

    n_params = d * d  # the three ways: exact, dense rows, slices
    dense = 4 * n_features * n_params
    least = 8 * n_params**2 if n_params <= 4096 else dense if n_features * n_params <= 2**26 else 4 * 2**27
    assert least < needed() <= 15 * least
    assert needed(n_held_out=10**6) >= needed()


def test_random_directions_lie_in_one_parameter_each_where_the_given_ones_do(tiny_components):
    given = tiny_components.v_out
    drawn = random_like(given, torch.Generator().manual_seed(0))
    for name, (left, right) in drawn.factors.items():
        assert torch.equal(left.flatten(1).any(1), given.factors[name][0].flatten(1).any(1))
        assert right.flatten(1).any(1).all()
    torch.testing.assert_close(drawn.norm(), torch.ones(7, dtype=torch.float64))
