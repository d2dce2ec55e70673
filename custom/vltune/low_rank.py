r"""Sums of products of thin matrices: norm, singular values and factors without the big product.

A sum of products is kept as stacked factors, left (D_out, k) and right (k, D_in), and becomes one
dense matrix (D_out, D_in) only once that is smaller. Everything is fp64: norms come from triangular
factors, not from Gram matrices, which would square what cancels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = 1e-7
"""Singular values below this share of the largest are fp32 rounding, not signal."""


class SingularValues(NamedTuple):
    """left (D_out, k), values (k,) falling, right (k, D_in); the matrix is left diag(values) right.

    The entry of largest magnitude in each column of `left` is positive, so that equal matrices give
    equal factors.
    """

    left: Tensor
    values: Tensor
    right: Tensor


class LowRankSum:
    """A running sum of products left @ right of one shape, fp64 on CPU.

    Memory grows by k (D_out + D_in) a product until D_out D_in is less, and not beyond. Products of
    different origin share no columns, so nothing can be dropped earlier without loss.

    Args:
        rows: D_out.
        columns: D_in.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []
        self._dense: Tensor | None = None

    def add(self, left: Tensor, right: Tensor, weight: float = 1.0) -> None:
        """Add weight * left @ right; left (D_out, k), right (k, D_in).

        Raises:
            ValueError: The shapes do not fit.
        """
        rows, columns = self.shape
        if left.shape != (rows, right.shape[0]) or right.shape[1:] != (columns,):
            raise ValueError(
                f"expected factors ({rows}, k) and (k, {columns}), got {tuple(left.shape)} and "
                f"{tuple(right.shape)}"
            )
        left, right = left.double() * weight, right.double()
        if self._dense is not None:
            self._dense += left @ right
            return
        self._left.append(left)
        self._right.append(right)
        if self.num_stacked * (rows + columns) > rows * columns:
            self._dense, self._left, self._right = self.dense(), [], []

    def add_dense(self, matrix: Tensor, weight: float = 1.0) -> None:
        """Add weight * matrix, (D_out, D_in)."""
        if tuple(matrix.shape) != self.shape:
            raise ValueError(f"expected a matrix of {self.shape}, got {tuple(matrix.shape)}")
        self._dense, self._left, self._right = self.dense(), [], []
        self._dense += matrix.double() * weight

    def add_sum(self, other: "LowRankSum", weight: float = 1.0) -> None:
        """Add weight times another sum of the same shape."""
        if other._dense is not None:
            self.add_dense(other._dense, weight)
            return
        for left, right in zip(other._left, other._right, strict=True):
            self.add(left, right, weight)

    @property
    def num_stacked(self) -> int:
        """Columns stacked so far, k; 0 once the sum is dense."""
        return sum(left.shape[1] for left in self._left)

    @property
    def is_dense(self) -> bool:
        """Whether the sum is held as one matrix."""
        return self._dense is not None

    def dense(self) -> Tensor:
        """The sum as a new matrix (D_out, D_in), fp64."""
        if self._dense is not None:
            return self._dense.clone()
        left, right = self._stacked()
        return left @ right

    def norm(self) -> float:
        """Frobenius norm."""
        if self._dense is not None:
            return float(torch.linalg.matrix_norm(self._dense))
        left, right = self._stacked()
        if not left.shape[1]:
            return 0.0
        core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T
        return float(torch.linalg.matrix_norm(core))

    def singular_values(self) -> SingularValues:
        """Singular values and vectors; at most min(k, D_out, D_in) of them."""
        if self._dense is not None:
            return _with_fixed_signs(*torch.linalg.svd(self._dense, full_matrices=False))
        left, right = self._stacked()
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        u, values, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        return _with_fixed_signs(q_left @ u, values, v @ q_right.T)

    def _stacked(self) -> tuple[Tensor, Tensor]:
        rows, columns = self.shape
        left = [torch.zeros(rows, 0, dtype=torch.float64), *self._left]
        right = [torch.zeros(0, columns, dtype=torch.float64), *self._right]
        return torch.cat(left, dim=1), torch.cat(right, dim=0)


def _with_fixed_signs(left: Tensor, values: Tensor, right: Tensor) -> SingularValues:
    if not values.numel():
        return SingularValues(left, values, right)
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
    return SingularValues(left * sign, values, right * sign.unsqueeze(1))


def split_balanced(
    parts: SingularValues, rank: int, spare: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Best approximation of at most `rank` as (B, A), each with the root of the singular values.

    Args:
        parts: Of the matrix to approximate.
        rank: r, columns of B and rows of A.
        spare: Rows (any, D_in) for A where a singular value is missing, in order of preference;
            they are made orthogonal to A's other rows, as long as they are on average. B is zero
            there, as at LoRA's start. Without them A is zero too, and no gradient ever leaves that.

    Returns:
        left sqrt(values) (D_out, rank) and sqrt(values) right (rank, D_in).
    """
    values = parts.values[:rank]
    count = int((values > NEGLIGIBLE * values.max()).sum()) if values.numel() else 0
    root = values[:count].sqrt()
    left, right = parts.left[:, :count] * root, parts.right[:count] * root.unsqueeze(1)
    if spare is not None and count < rank:
        # Householder's columns are orthonormal even where the given rows are not independent.
        directions = torch.cat([parts.right[:count], spare.double()]).T
        basis, triangle = torch.linalg.qr(directions)
        length = torch.linalg.matrix_norm(spare.double()) / len(spare) ** 0.5
        sign = torch.where(triangle.diagonal() < 0, -length, length)
        right = torch.cat([right, (basis * sign).T[count:rank]])
    return (
        torch.nn.functional.pad(left, (0, rank - count)),
        torch.nn.functional.pad(right, (0, 0, 0, rank - len(right))),
    )
