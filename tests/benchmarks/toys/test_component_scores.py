"""Scores of rank-1 parts against the truth: what is right scores 1, and what only looks right does not."""

import pytest
import torch

from benchmarks.toys.component_scores import (
    random_parts,
    score_by_matrix,
    score_parts,
    seen,
    single_feature_numbers,
    singular_parts,
)


def drawn(n, d_out, d_in, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_out, generator=generator), torch.randn(n, d_in, generator=generator)


def test_the_truth_scores_one_in_any_order_sign_and_share_of_scale():
    left, right = drawn(6, 4, 7)
    order, extra = torch.randperm(6, generator=torch.Generator().manual_seed(1)), drawn(9, 4, 7, seed=2)
    parts = torch.cat([-3 * left[order], extra[0]]), torch.cat([right[order] / 3, extra[1]])
    numbers = score_parts((left, right), parts).numbers
    assert numbers == pytest.approx(
        {"ml2r": 1, "mean cosine": 1, "min cosine": 1, "matched": 6, "published mmcs": 1}, abs=1e-5
    )


def test_partners_are_one_to_one_and_a_part_without_one_counts_nothing():
    truth = drawn(5, 4, 7)
    one = truth[0][:1].repeat(3, 1), 0.5 * truth[1][:1].repeat(3, 1)
    scores = score_parts(truth, one)
    assert int((scores.cosine > 0.999).sum()) == 1 and int((scores.cosine == 0).sum()) == 2
    assert scores.numbers["matched"] == 1
    assert float(scores.norm_ratio[0]) == pytest.approx(0.5)


def test_cosines_and_norms_are_those_of_dense_matrices():
    truth, parts = drawn(3, 4, 5), drawn(3, 4, 5, seed=3)
    dense = [torch.einsum("po,pi->poi", *each).flatten(1).double() for each in (truth, parts)]
    cosine = torch.nn.functional.normalize(dense[0]) @ torch.nn.functional.normalize(dense[1]).T
    orders = [torch.tensor(order) for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]]
    best = max(orders, key=lambda order: float(cosine[range(3), order].abs().sum()))
    scores = score_parts(truth, parts)
    assert scores.cosine.tolist() == pytest.approx(cosine[range(3), best].abs().tolist(), abs=1e-6)
    assert scores.norm_ratio.tolist() == pytest.approx(
        (dense[1].norm(dim=1)[best] / dense[0].norm(dim=1)).tolist(), rel=1e-5
    )


def test_the_published_score_takes_random_parts_for_the_truth_and_ours_does_not():
    columns = torch.nn.functional.normalize(torch.randn(5, 2, generator=torch.Generator().manual_seed(4)))
    truth = (columns, torch.eye(5))
    numbers = score_parts(truth, random_parts(drawn(20, 2, 5), torch.Generator().manual_seed(0))).numbers
    assert numbers["published mmcs"] > 0.95
    assert numbers["mean cosine"] < 0.8 and numbers["matched"] == 0


def test_random_parts_have_the_mean_norm_of_the_given_ones():
    parts = drawn(20, 3, 6)
    random = random_parts(parts, torch.Generator().manual_seed(0))
    norms = random[0].norm(dim=1) * random[1].norm(dim=1)
    assert norms.tolist() == pytest.approx([float((parts[0].norm(dim=1) * parts[1].norm(dim=1)).mean())] * 20, rel=1e-5)


def test_singular_parts_sum_to_the_matrix_and_the_leading_ones_come_first():
    matrix = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    left, right = singular_parts(matrix, 20)
    torch.testing.assert_close(left.T @ right, matrix)
    assert len(singular_parts(matrix, 2)[0]) == 2 and left.norm(dim=1).diff().max() < 0


def test_what_a_part_does_off_the_directions_of_its_inputs_counts_nothing():
    embedding = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    left = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    dual = torch.linalg.pinv(embedding).T
    unseen = torch.linalg.svd(embedding).Vh[4:5]
    parts, truth = (left, dual + 5 * unseen), (left, torch.eye(4))
    assert score_parts(truth, seen(parts, embedding)).numbers["min cosine"] == pytest.approx(1, abs=1e-5)
    by_matrix = score_by_matrix({"W": truth}, {"W": parts, "other": parts}, {"W": embedding})
    assert by_matrix["W"].numbers["matched"] == 4
    assert score_parts((left, dual), parts).numbers["matched"] < 4


def test_importances_of_single_feature_inputs_are_compared_with_one_part_each():
    exact = torch.zeros(4, 6)
    exact[range(4), [2, 0, 5, 3]] = 1
    assert single_feature_numbers(exact) == {"l0": 1, "l0 above 0.1": 1, "identity errors": 0}
    changed = exact.clone()
    changed[0, 0], changed[1, 1], changed[2, 5] = 0.05, 0.2, 0.85
    assert single_feature_numbers(changed) == {"l0": 1.5, "l0 above 0.1": 1.25, "identity errors": 2}
