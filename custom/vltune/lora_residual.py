r"""The part of the mean of products that mean factors cannot hold, on top of an untouched base.

A site's weights are W = W0 + (alpha / r) (B A + R). R belongs to the server, is frozen at the sites
and travels as tensors of its own: `<module>.residual_A.weight` (k, D_in) and `.residual_B.weight`
(D_out, k), or `<module>.residual.weight` (D_out, D_in) where that is smaller. A module without any
has none. It is in the unit of B A, so one scale holds for both.
"""

import re
from collections.abc import Mapping

from torch import Tensor, eye, float64, isfinite

from vltune.lora_factors import WIRE_PREFIX, Factors, LoraError
from vltune.low_rank import LowRankSum, split_balanced

ROUNDING = 1e-7
"""Parts of a residual below this share of the effective product are fp32 rounding."""
_RESIDUAL = re.compile(r"base_model\.model\.(?P<module>.+)\.residual(?P<side>_A|_B|)\.weight")


def compress(
    residual: LowRankSum, magnitude: float, max_rank: int | None = None
) -> tuple[dict[str, Tensor], float]:
    """The smallest fp32 tensors that hold the residual.

    Args:
        residual: R.
        magnitude: Norm of the effective product B A + R, which says what is rounding.
        max_rank: Keep at most so many singular values; None keeps all.

    Returns:
        Tensors by side (`_A` and `_B`, or the empty string for a dense one; none where R is only
        rounding), and the norm of what `max_rank` cut off.
    """
    parts = residual.singular_values()
    tail = parts.values.square().flip(0).cumsum(0).sqrt().flip(0)
    needed = int((tail > ROUNDING * magnitude).sum())
    count = needed if max_rank is None else min(needed, max_rank)
    lost = float(tail[count]) if count < needed else 0.0
    if not count:
        return {}, lost
    left, right = split_balanced(parts, count)
    rows, columns = residual.shape
    if count * (rows + columns) >= rows * columns:
        return {"": (left @ right).float()}, lost
    return {"_A": right.float(), "_B": left.float()}, lost


def name_residual(module: str, sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wire names for what `compress` gives."""
    return {f"{WIRE_PREFIX}{module}.residual{side}.weight": sides[side] for side in sorted(sides)}


def split_residual(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the server sends: the shared tensors, and the residual, both by name and sorted."""
    is_residual = {name: _RESIDUAL.fullmatch(name) is not None for name in sorted(tensors)}
    shared = {name: tensors[name] for name, found in is_residual.items() if not found}
    return shared, {name: tensors[name] for name, found in is_residual.items() if found}


def read_residual(tensors: Mapping[str, Tensor], source: str) -> dict[str, Factors]:
    """The residual of each module as factors; a dense one gets an identity beside it.

    Args:
        tensors: By wire name; all of them must be residuals.
        source: Who sent them, for the message.

    Raises:
        LoraError: A name is no residual's, a side is missing or superfluous, the shapes of a module
            disagree, or a value is NaN or infinite.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        match = _RESIDUAL.fullmatch(name)
        if match is None:
            raise LoraError(f"residual from {source}: {name!r} is not the name of a residual")
        value = tensors[name]
        if value.ndim != 2 or not value.numel() or not bool(isfinite(value).all()):
            raise LoraError(
                f"residual from {source}: {name} must be a finite matrix, got {tuple(value.shape)}"
            )
        sides.setdefault(match["module"], {})[match["side"]] = value
    return {module: _as_factors(module, sides[module], source) for module in sorted(sides)}


def _as_factors(module: str, sides: Mapping[str, Tensor], source: str) -> Factors:
    if sides.keys() == {""}:
        matrix = sides[""]
        rows, columns = matrix.shape
        if columns <= rows:
            return Factors(eye(columns, dtype=matrix.dtype), matrix)
        return Factors(matrix, eye(rows, dtype=matrix.dtype))
    if sides.keys() != {"_A", "_B"}:
        raise LoraError(
            f"residual from {source}: {module} has {sorted(sides)}; expected _A and _B, or one "
            "dense matrix"
        )
    factors = Factors(sides["_A"], sides["_B"])
    if factors.a.shape[0] != factors.b.shape[1]:
        shapes = tuple(factors.a.shape), tuple(factors.b.shape)
        raise LoraError(f"residual from {source}: {module}: the ranks of {shapes} differ")
    return factors


def as_sum(factors: Factors | None, rows: int, columns: int) -> LowRankSum:
    """The residual of one module to calculate with; zero where there is none.

    Raises:
        LoraError: It is not of the module's shape.
    """
    total = LowRankSum(rows, columns)
    if factors is None:
        return total
    if factors.b.shape[0] != rows or factors.a.shape[1] != columns:
        raise LoraError(
            f"a residual of {factors.b.shape[0]} x {factors.a.shape[1]} cannot be added to a "
            f"product of {rows} x {columns}"
        )
    total.add(factors.b.to(float64), factors.a)
    return total
