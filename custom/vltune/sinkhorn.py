r"""Entropic optimal transport, batched: the log-domain reference and its fast scaling twin.

    min_P <P, cost> - epsilon H(P) + rho KL(P^T 1 | b)   s.t.  P 1 = a,  P >= 0

with H(P) = -sum P log P. Rows are always hard; rho = inf makes the columns hard too, P^T 1 = b.
With f, g the potentials in units of epsilon, LSE = log-sum-exp and d = rho / (rho + epsilon), an
iteration is

    g = d (log b - LSE_m(f - cost / epsilon)),   f = log a - LSE_c(g - cost / epsilon),

and P = exp(f + g - cost / epsilon). Source: Cuturi 2013; Chizat et al. 2018 for d. The convention
is that of POT's `reg_type="entropy"`; where b is uniform POT's `reg_type="kl"` gives the same plan.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**18
"""On CPU problems are solved in chunks of about this many entries, which stay in cache."""
MASS_TOLERANCE = 1e-3
"""Relative difference allowed between the totals of two hard marginals."""


class TransportResult(NamedTuple):
    """A transport plan and how far it was solved; the caller must face non-convergence.

    Attributes:
        plan: (..., M, C); rows sum to a.
        iterations: Sinkhorn iterations used, the most of any chunk.
        converged: Whether `marginal_error` is within the tolerance, bool (...).
        marginal_error: L1 distance of the class masses to what the next iteration would make of
            them, (...): to b itself where the class marginal is hard.
        solver: `log`, `scaling`, or `scaling+log` where some problems left the range of floats.
        num_fallback: Problems solved in the log domain because the scaling form could not.
    """

    plan: Tensor
    iterations: int
    converged: Tensor
    marginal_error: Tensor
    solver: str = "log"
    num_fallback: int = 0


class _Rule(NamedTuple):
    """Constants of the iteration; `damping` is d, 1 for hard columns."""

    epsilon: float
    damping: float
    max_iter: int
    tolerance: float
    check_every: int

    def is_check(self, iteration: int) -> bool:
        return iteration % self.check_every == 0 or iteration == self.max_iter


class _Solved(NamedTuple):
    """One chunk: plan (P, M, C), error (P,), iterations used."""

    plan: Tensor
    error: Tensor
    iterations: int


def sinkhorn(  # noqa: PLR0913 - the problem (3), its constants (2), the stopping rule (3)
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    epsilon: float,
    max_iter: int,
    tolerance: float = 1e-4,
    check_every: int = 10,
    relaxation: float = math.inf,
) -> TransportResult:
    """Solve all problems of a batch in the log domain; differentiable through the iterations.

    Args:
        cost: (..., M, C), finite, dimensionless; half types are computed in fp32.
        a: Patch marginal, (..., M), >= 0. A patch without mass keeps an empty row.
        b: Class marginal, (..., C), >= 0. A class without mass keeps an empty column.
        epsilon: Regularisation, same unit as cost, > 0.
        max_iter: Upper bound on iterations, >= 1.
        tolerance: L1 error of the class marginal at which a problem has converged.
        check_every: Iterations between checks, >= 1.
        relaxation: rho, same unit as cost, > 0; infinity makes the columns hard.

    Raises:
        ValueError: The shapes disagree (all are printed), an entry is negative or not finite, a
            marginal has no mass, two hard marginals differ in total, a constant is out of range.
    """
    rule = _rule(epsilon, relaxation, max_iter, tolerance, check_every)
    return _solve(cost, a, b, rule, scaling_first=False)


def sinkhorn_scaling(  # noqa: PLR0913 - the twin of sinkhorn
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    epsilon: float,
    max_iter: int,
    tolerance: float = 1e-4,
    check_every: int = 10,
    relaxation: float = math.inf,
) -> TransportResult:
    """Twin of `sinkhorn`: v = (b / (K^T u))^d, u = a / (K v), two matrix-vector products.

    Several times faster. K = exp(-(cost - row minimum) / epsilon); u absorbs the shift. Where K
    underflows or the plan is not finite, the chunk is solved again in the log domain and counted in
    `num_fallback`. Arguments, errors and result as `sinkhorn`.
    """
    rule = _rule(epsilon, relaxation, max_iter, tolerance, check_every)
    return _solve(cost, a, b, rule, scaling_first=True)


def _rule(
    epsilon: float, relaxation: float, max_iter: int, tolerance: float, check_every: int
) -> _Rule:
    if not 0 < epsilon < math.inf or max_iter < 1 or check_every < 1:
        raise ValueError(
            f"expected epsilon > 0, max_iter >= 1 and check_every >= 1, got {epsilon}, {max_iter}, "
            f"{check_every}"
        )
    if not (relaxation > 0 and tolerance >= 0):
        raise ValueError(
            f"expected relaxation > 0 and tolerance >= 0, got {relaxation} and {tolerance}"
        )
    damping = 1.0 if math.isinf(relaxation) else relaxation / (relaxation + epsilon)
    return _Rule(epsilon, damping, max_iter, tolerance, check_every)


def _solve(
    cost: Tensor, a: Tensor, b: Tensor, rule: _Rule, *, scaling_first: bool
) -> TransportResult:
    """Check, flatten, solve chunk by chunk, put the chunks together."""
    cost, a, b = (v if v.dtype == torch.float64 else v.float() for v in (cost, a, b))
    _check_shapes(cost, a, b)
    batch, (M, C) = cost.shape[:-2], cost.shape[-2:]
    cost, a, b = cost.reshape(-1, M, C), a.reshape(-1, M), b.reshape(-1, C)
    _check_values(cost, a, b, rule)
    size = max(1, CHUNK_ELEMENTS // (M * C)) if cost.device.type == "cpu" else len(cost)
    num_fallback, solved = 0, []
    # Under autocast the products of the scaling form would be half precision.
    with torch.autocast(cost.device.type, enabled=False):
        for chunk in zip(*(torch.split(value, size) for value in (cost, a, b)), strict=True):
            result = _solve_scaling(chunk[0], chunk[1], chunk[2], rule) if scaling_first else None
            if result is None:
                num_fallback += len(chunk[0]) if scaling_first else 0
                result = _solve_log(chunk[0], chunk[1], chunk[2], rule)
            solved.append(result)
    error = torch.cat([part.error for part in solved]).reshape(batch)
    return TransportResult(
        plan=torch.cat([part.plan for part in solved]).reshape(*batch, M, C),
        iterations=max(part.iterations for part in solved),
        converged=error <= rule.tolerance,
        marginal_error=error,
        solver=("scaling+log" if num_fallback else "scaling") if scaling_first else "log",
        num_fallback=num_fallback,
    )


def _solve_log(cost: Tensor, a: Tensor, b: Tensor, rule: _Rule) -> _Solved:
    """One chunk in the log domain; -inf stands for zero mass and never meets +inf."""
    kernel = cost / -rule.epsilon
    log_a, log_b = _safe_log(a), _safe_log(b)
    column = kernel.logsumexp(dim=-2)
    for iteration in range(1, rule.max_iter + 1):
        g = rule.damping * (log_b - column)
        f = log_a - (kernel + g.unsqueeze(-2)).logsumexp(dim=-1)
        column = (kernel + f.unsqueeze(-1)).logsumexp(dim=-2)
        if rule.is_check(iteration):
            with torch.no_grad():
                following = rule.damping * (log_b - column)
                error = ((g + column).exp() - (following + column).exp()).abs().sum(dim=-1)
            if bool((error <= rule.tolerance).all()):
                break
    return _Solved((kernel + f.unsqueeze(-1) + g.unsqueeze(-2)).exp(), error, iteration)


def _solve_scaling(cost: Tensor, a: Tensor, b: Tensor, rule: _Rule) -> _Solved | None:
    """One chunk on scaling vectors; None where floats do not reach."""
    lowest = cost.amin(dim=-1)
    kernel = ((lowest.unsqueeze(-1) - cost) / rule.epsilon).exp()
    # The shift by row is absorbed by u: this is where the log domain's f = 0 starts.
    u = (lowest / -rule.epsilon).exp()
    if bool(kernel.amin() == 0) or bool(u.amin() == 0):
        return None
    has_mass = b > 0
    column = _times(kernel.transpose(-1, -2), u)
    for iteration in range(1, rule.max_iter + 1):
        v = _damped(b / column, has_mass, rule.damping)
        u = a / _times(kernel, v)
        column = _times(kernel.transpose(-1, -2), u)
        if rule.is_check(iteration):
            with torch.no_grad():
                following = _damped(b / column, has_mass, rule.damping)
                error = ((v - following) * column).abs().sum(dim=-1)
            if bool((error <= rule.tolerance).all()):
                break
    plan = u.unsqueeze(-1) * kernel * v.unsqueeze(-2)
    return _Solved(plan, error, iteration) if bool(plan.isfinite().all()) else None


def _damped(ratio: Tensor, has_mass: Tensor, damping: float) -> Tensor:
    """Ratio to the power d; the power of an exact zero would have no finite gradient."""
    if damping == 1:
        return ratio
    return torch.where(has_mass, torch.where(has_mass, ratio, 1.0) ** damping, 0.0)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _safe_log(mass: Tensor) -> Tensor:
    """Logarithm; -inf with a zero gradient where the mass is zero."""
    has_mass = mass > 0
    return torch.where(has_mass, torch.where(has_mass, mass, 1.0).log(), -math.inf)


def _check_shapes(cost: Tensor, a: Tensor, b: Tensor) -> None:
    if cost.shape != (*a.shape, b.shape[-1]) or b.shape[:-1] != a.shape[:-1] or not cost.numel():
        raise ValueError(
            "expected cost (..., M, C), a (..., M), b (..., C), not empty; got "
            f"{tuple(cost.shape)}, {tuple(a.shape)}, {tuple(b.shape)}"
        )


def _check_values(cost: Tensor, a: Tensor, b: Tensor, rule: _Rule) -> None:
    if not bool(cost.isfinite().all()):
        raise ValueError("the cost holds NaN or infinity; check the features it was made from")
    for name, value in (("a", a), ("b", b)):
        if not bool((value.isfinite() & (value >= 0)).all()):
            raise ValueError(f"marginal {name} must be finite and >= 0; an entry is not")
        if bool((value.sum(dim=-1) == 0).any()):
            raise ValueError(f"marginal {name} has no mass in at least one problem")
    total_a, total_b = a.sum(dim=-1), b.sum(dim=-1)
    gap = (total_a - total_b).abs() - MASS_TOLERANCE * total_a
    if rule.damping == 1 and bool((gap > 0).any()):
        worst = int(gap.argmax())
        raise ValueError(
            f"two hard marginals need equal totals, got {total_a[worst].item():.6g} (a) and "
            f"{total_b[worst].item():.6g} (b); normalise them or relax the class marginal"
        )
