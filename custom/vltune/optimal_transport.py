"""Condition-guided optimal transport between image patches and classes (arXiv 2605.28347)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vltune.config import ConfigError

SCALING_EPSILON = 0.03
"""At or above this epsilon (costs span at most 2) exp(-cost/epsilon) stays far from fp32's underflow."""


@dataclass(frozen=True)
class TransportConfig:
    """What is transported, at which cost, and how it is solved.

    Attributes:
        epsilon: Entropic weight, unit of the cost; the paper's lambda = 0.2.
        max_iter: Upper bound on Sinkhorn iterations.
        tolerance: L1 error of the class marginal at which a problem has converged.
        check_every: Iterations between convergence checks.
        marginal: Patch marginal: `informative` (the paper) or `uniform`.
        tau: Temperature of the informative marginal, divides logits; the paper's tau = 4.
        cost: 1 - softmax over classes of scaled similarity (the paper), or 1 - cosine.
        relaxation: KL weight rho of the class marginal; infinite keeps it hard, as the paper does.
        plan_gradient: `detached` treats the plan as a constant; `unrolled` differentiates through the
            iterations. Detaching is a stop-gradient, not the envelope theorem: psi is a score per
            class, not the transport value.
        solver: `auto` takes the scaling form at epsilon >= 0.03 and the log domain below.
    """

    epsilon: float = 0.2
    max_iter: int = 100
    tolerance: float = 1e-4
    check_every: int = 5
    marginal: Literal["informative", "uniform"] = "informative"
    tau: float = 4.0
    cost: Literal["softmax", "cosine"] = "softmax"
    relaxation: float = math.inf
    plan_gradient: Literal["detached", "unrolled"] = "detached"
    solver: Literal["auto", "log", "scaling"] = "auto"

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and self.tau > 0 and self.relaxation > 0 and self.tolerance > 0):
            raise ConfigError(
                f"transport: epsilon, tau, relaxation and tolerance must be > 0, got {self.epsilon}, "
                f"{self.tau}, {self.relaxation}, {self.tolerance}"
            )
        if self.max_iter < 1 or self.check_every < 1:
            raise ConfigError("transport: max_iter and check_every must be >= 1")


class TransportResult(NamedTuple):
    """A transport plan and how far it was solved.

    Attributes:
        plan: (..., M, C); rows sum to a.
        iterations: Sinkhorn iterations used.
        converged: Whether the class marginal is within the tolerance, (...). With relaxed
            marginals: whether the column masses have stopped moving by more than the tolerance.
        marginal_error: L1 error of the class marginal, (...).
    """

    plan: Tensor
    iterations: int
    converged: Tensor
    marginal_error: Tensor


def patch_marginal(similarity: Tensor, logit_scale: float, tau: float) -> Tensor:
    """Informative patches weigh more: a = softmax over patches of (max_c logit_scale s) / tau.

    Args:
        similarity: Cosines, (..., M, C).
        logit_scale: CLIP's factor; tau divides logits, not cosines.
        tau: Temperature, > 0.

    Returns:
        (..., M), rows sum to 1.
    """
    return (logit_scale * similarity.amax(dim=-1) / tau).softmax(dim=-1)


def class_similarity(
    similarity: Tensor, logit_scale: float, cost: Literal["softmax", "cosine"]
) -> Tensor:
    """S (..., M, C): softmax over classes of the scaled cosines, or the cosines themselves."""
    if cost == "softmax":
        return (logit_scale * similarity).softmax(dim=-1)
    return similarity


def sinkhorn(
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
    r"""Entropic optimal transport in the log domain, all problems in one batch.

    min_P <P, cost> - epsilon H(P) + rho KL(P^T 1 | b)  s.t.  P 1 = a; with rho infinite the second
    marginal is hard. This is POT's convention `reg_type="entropy"` for the relaxed case.

    Args:
        cost: (..., M, C), finite.
        a: Patch marginal, (..., M), rows sum to 1; zeros are allowed.
        b: Class marginal, (..., C), rows sum to 1; zeros are allowed.
        epsilon: Regularisation, same unit as cost, > 0.
        max_iter: Upper bound on iterations, >= 1.
        tolerance: L1 error of the class marginal (relaxed: its change) that counts as converged.
        check_every: Iterations between checks.
        relaxation: rho > 0.

    Returns:
        Plan whose rows sum to a, iterations, convergence by problem.

    Raises:
        ValueError: epsilon <= 0, max_iter < 1, or the shapes disagree (all are printed).
    """
    _check(cost, a, b, epsilon, max_iter)
    damping = 1.0 if math.isinf(relaxation) else relaxation / (relaxation + epsilon)
    kernel = -cost / epsilon
    log_a, log_b = a.log(), b.log()
    f = torch.zeros_like(a)
    masses = None
    for iteration in range(1, max_iter + 1):
        g = damping * (log_b - torch.logsumexp(kernel + f.unsqueeze(-1), dim=-2))
        f = log_a - torch.logsumexp(kernel + g.unsqueeze(-2), dim=-1)
        if iteration % check_every == 0 or iteration == max_iter:
            plan = (kernel + f.unsqueeze(-1) + g.unsqueeze(-2)).exp()
            masses, error = _progress(plan.sum(dim=-2), b, masses, relaxation)
            if bool((error <= tolerance).all()):
                break
    return TransportResult(plan, iteration, error <= tolerance, error)


def sinkhorn_scaling(
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
    """Twin of `sinkhorn` in the scaling form: two matrix-vector products an iteration.

    Several times faster; exact to rounding while exp(-cost / epsilon) does not underflow, hence for
    epsilon >= 0.03 with costs that span at most 2. Arguments and returns as `sinkhorn`.
    """
    _check(cost, a, b, epsilon, max_iter)
    damping = 1.0 if math.isinf(relaxation) else relaxation / (relaxation + epsilon)
    # Rows are scaled to sum to one at the end, so a shift by row changes nothing but the range.
    kernel = (-(cost - cost.amin(dim=-1, keepdim=True)) / epsilon).exp()
    transposed = kernel.transpose(-1, -2)
    tiny = torch.finfo(kernel.dtype).tiny
    # A shift by row is absorbed by u, so start from the unshifted problem's u = 1.
    u = (-cost.amin(dim=-1) / epsilon).exp()
    masses = None
    for iteration in range(1, max_iter + 1):
        v = b / _times(transposed, u).clamp_min(tiny)
        v = v if damping == 1.0 else v.pow(damping)
        u = a / _times(kernel, v).clamp_min(tiny)
        if iteration % check_every == 0 or iteration == max_iter:
            masses, error = _progress(v * _times(transposed, u), b, masses, relaxation)
            if bool((error <= tolerance).all()):
                break
    plan = u.unsqueeze(-1) * kernel * v.unsqueeze(-2)
    return TransportResult(plan, iteration, error <= tolerance, error)


def transport(
    similarity: Tensor, logit_scale: float, config: TransportConfig
) -> tuple[Tensor, TransportResult]:
    r"""Class scores by transport: psi_c = C sum_m P[m, c] S[m, c].

    A unit-mass plan has column sums 1/C; the factor C makes psi a mean of S under the plan. With a
    relaxed class marginal psi is divided by the column's mass instead, so that it stays a mean.
    Source: arXiv 2605.28347; the factor C is ours (spec: psi would be about sim / C).

    Args:
        similarity: Cosines of patches and classes, (..., M, C).
        logit_scale: CLIP's factor.
        config: Marginals, cost, solver.

    Returns:
        psi (..., C) and the solved plan.
    """
    score = class_similarity(similarity, logit_scale, config.cost)
    num_patches, num_classes = similarity.shape[-2:]
    with torch.set_grad_enabled(torch.is_grad_enabled() and config.plan_gradient == "unrolled"):
        if config.marginal == "informative":
            a = patch_marginal(similarity, logit_scale, config.tau)
        else:
            a = torch.full_like(similarity[..., 0], 1 / num_patches)
        b = torch.full_like(similarity[..., 0, :], 1 / num_classes)
        solve = _solver(config)
        result = solve(
            1 - score,
            a,
            b,
            epsilon=config.epsilon,
            max_iter=config.max_iter,
            tolerance=config.tolerance,
            check_every=config.check_every,
            relaxation=config.relaxation,
        )
    psi = (result.plan * score).sum(dim=-2)
    if math.isinf(config.relaxation):
        return num_classes * psi, result
    return psi / result.plan.sum(dim=-2).clamp_min(1e-12), result


def _solver(config: TransportConfig) -> Callable[..., TransportResult]:
    if config.solver == "log" or (config.solver == "auto" and config.epsilon < SCALING_EPSILON):
        return sinkhorn
    return sinkhorn_scaling


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _progress(
    masses: Tensor, b: Tensor, before: Tensor | None, relaxation: float
) -> tuple[Tensor, Tensor]:
    """Column masses and the error that convergence is judged by."""
    if math.isinf(relaxation):
        return masses, (masses - b).abs().sum(dim=-1)
    if before is None:
        return masses, torch.full_like(masses[..., 0], math.inf)
    return masses, (masses - before).abs().sum(dim=-1)


def _check(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, max_iter: int) -> None:
    if epsilon <= 0 or max_iter < 1:
        raise ValueError(f"expected epsilon > 0 and max_iter >= 1, got {epsilon} and {max_iter}")
    if cost.shape != (*a.shape, b.shape[-1]) or b.shape[:-1] != a.shape[:-1]:
        raise ValueError(
            f"expected cost (..., M, C), a (..., M), b (..., C); got {tuple(cost.shape)}, "
            f"{tuple(a.shape)}, {tuple(b.shape)}"
        )
