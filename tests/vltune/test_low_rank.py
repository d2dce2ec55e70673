import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vltune.low_rank import LowRankSum, split_balanced

ROWS, COLUMNS, r = 23, 29, 3


def random_pair(seed: int, rank: int = r) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(ROWS, rank, generator=generator, dtype=torch.float64)
    return left, torch.randn(rank, COLUMNS, generator=generator, dtype=torch.float64)


def filled(num_products: int) -> tuple[LowRankSum, Tensor]:
    total, dense = LowRankSum(ROWS, COLUMNS), torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for seed in range(num_products):
        left, right = random_pair(seed)
        total.add(left, right, 0.5 + seed)
        dense += (0.5 + seed) * left @ right
    return total, dense


def test_norm_by_hand() -> None:
    """(1, 2)^T (3, 4) - (1, 0)^T (3, 0) = ((0, 4), (6, 8)): norm sqrt(16 + 36 + 64) = sqrt(116)."""
    total = LowRankSum(2, 2)
    total.add(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]))
    total.add(torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0]]), -1.0)
    assert total.norm() == pytest.approx(math.sqrt(116), rel=1e-14)


# 4 products of rank 3 are stacked (12 * 52 < 667); 5 are not.
@pytest.mark.parametrize("num_products", [0, 1, 4, 5, 9])
def test_equals_the_dense_sum(num_products: int) -> None:
    total, dense = filled(num_products)
    assert total.is_dense is (num_products > 4)
    assert torch.allclose(total.dense(), dense, atol=1e-12)
    assert total.norm() == pytest.approx(float(dense.norm()), rel=1e-12)
    expected = np.linalg.svd(dense.numpy(), compute_uv=False)
    values = total.singular_values().values.numpy()
    assert np.allclose(values, expected[: len(values)], atol=1e-10)
    assert np.allclose(expected[len(values) :], 0, atol=1e-10)


def test_memory_stops_at_the_dense_size() -> None:
    total = LowRankSum(ROWS, COLUMNS)
    for seed in range(40):
        total.add(*random_pair(seed))
        assert total.num_stacked * (ROWS + COLUMNS) <= ROWS * COLUMNS


def test_what_cancels_leaves_rounding_only() -> None:
    """Gram matrices would leave about 1e-8 here."""
    total = LowRankSum(ROWS, COLUMNS)
    left, right = random_pair(0)
    total.add(left, right)
    total.add(2 * left, right / 2, -1.0)
    assert not total.is_dense
    assert total.norm() < 1e-13 * float((left @ right).norm())


def test_sums_add_up() -> None:
    for first, second in ((1, 2), (1, 9), (9, 1), (9, 9)):
        a, dense_a = filled(first)
        b, dense_b = filled(second)
        a.add_sum(b, -0.5)
        assert torch.allclose(a.dense(), dense_a - 0.5 * dense_b, atol=1e-12)
        assert torch.allclose(b.dense(), dense_b, atol=1e-12)


@pytest.mark.parametrize("num_products", [3, 9])
@pytest.mark.parametrize("has_spare", [False, True])
def test_split_is_the_best_approximation_and_balanced(num_products: int, has_spare: bool) -> None:
    total, dense = filled(num_products)
    u, s, v = np.linalg.svd(dense.numpy())
    spare = random_pair(77)[1] if has_spare else None
    b, a = split_balanced(total.singular_values(), r, spare)
    assert b.shape == (ROWS, r)
    assert a.shape == (r, COLUMNS)
    assert np.allclose((b @ a).numpy(), u[:, :r] * s[:r] @ v[:r], atol=1e-9)
    values = torch.diag(torch.from_numpy(s[:r]))
    assert torch.allclose(a @ a.T, values, atol=1e-9)
    assert torch.allclose(b.T @ b, values, atol=1e-9)


def test_missing_directions_can_learn() -> None:
    """A product of rank 1 at r = 3: B gets two zero columns, A two spare rows of their length."""
    total = LowRankSum(ROWS, COLUMNS)
    left, right = random_pair(0, rank=1)
    total.add(left, right)
    spare = random_pair(1)[1]
    b, a = split_balanced(total.singular_values(), r, spare)
    assert torch.allclose(b @ a, left @ right, atol=1e-12)
    assert not b[:, 1:].any()
    length = float(spare.square().sum(dim=1).mean().sqrt())
    assert torch.allclose(a[1:].norm(dim=1), torch.full((2,), length, dtype=torch.float64))
    assert torch.allclose(a @ a.T, torch.diag((a @ a.T).diagonal()), atol=1e-10)
    # The first spare row lies in what is spanned by the product's row and A's second one.
    basis = torch.linalg.qr(a[:2].T).Q
    assert torch.allclose(basis @ (basis.T @ spare[0]), spare[0], atol=1e-10)
    b, a = split_balanced(total.singular_values(), r)
    assert not b[:, 1:].any()
    assert not a[1:].any()


def test_nothing_at_all_still_has_directions() -> None:
    spare = random_pair(1)[1]
    b, a = split_balanced(LowRankSum(ROWS, COLUMNS).singular_values(), r, spare)
    assert not b.any()
    assert (a.norm(dim=1) > 1).all()
    # Directions are kept with their sign.
    assert float(a[0] @ spare[0]) > 0


def test_rank_beyond_the_width_is_padded() -> None:
    total = LowRankSum(2, 2)
    total.add(torch.eye(2), torch.eye(2))
    for spare in (None, torch.ones(3, 2)):
        b, a = split_balanced(total.singular_values(), 3, spare)
        assert b.shape == (2, 3)
        assert a.shape == (3, 2)
        assert torch.allclose(b @ a, torch.eye(2, dtype=torch.float64), atol=1e-12)


def test_sign_convention_is_independent_of_the_form() -> None:
    """The same matrix stacked and dense, and as another pair of factors, gives the same vectors."""
    left, right = random_pair(3)
    stacked, dense, other = (LowRankSum(ROWS, COLUMNS) for _ in range(3))
    stacked.add(left, right)
    dense.add_dense(left @ right)
    other.add(-left, -right)
    first = stacked.singular_values()
    assert (first.left.gather(0, first.left.abs().argmax(dim=0, keepdim=True)) > 0).all()
    for form in (dense, other):
        parts = form.singular_values()
        assert torch.allclose(parts.left[:, :r], first.left, atol=1e-9)
        assert torch.allclose(parts.right[:r], first.right, atol=1e-9)


def test_bad_input() -> None:
    total = LowRankSum(ROWS, COLUMNS)
    left, right = random_pair(0)
    with pytest.raises(ValueError, match=r"expected factors \(23, k\) and \(k, 29\)"):
        total.add(left, right[:2])
    with pytest.raises(ValueError, match=r"expected factors"):
        total.add(right.T, left.T)
    with pytest.raises(ValueError, match=r"expected a matrix of \(23, 29\)"):
        total.add_dense(left)
