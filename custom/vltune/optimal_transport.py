"""Condition-guided optimal transport between image patches and classes (arXiv 2605.28347)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vltune.config import ConfigError
from vltune.sinkhorn import TransportResult as TransportResult
from vltune.sinkhorn import sinkhorn as sinkhorn
from vltune.sinkhorn import sinkhorn_scaling as sinkhorn_scaling

SCALING_EPSILON = 0.03
"""From here up (costs span at most 2) exp(-cost / epsilon) stays far from fp32's underflow."""


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
        plan_gradient: `detached` treats the plan as a constant; `unrolled` differentiates through
            the iterations. Detaching is a stop-gradient, not the envelope theorem: psi is a score
            per class, not the transport value.
        solver: `auto` takes the scaling form at epsilon >= 0.03 and the log domain below. Where
            floats do not reach, the scaling form falls back to the log domain by itself.
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
                "transport: epsilon, tau, relaxation and tolerance must be > 0, got "
                f"{self.epsilon}, {self.tau}, {self.relaxation}, {self.tolerance}"
            )
        if self.max_iter < 1 or self.check_every < 1:
            raise ConfigError("transport: max_iter and check_every must be >= 1")


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


def transport(
    similarity: Tensor, logit_scale: float, config: TransportConfig
) -> tuple[Tensor, TransportResult]:
    r"""Class scores by transport: psi_c = C sum_m P[m, c] S[m, c].

    A unit-mass plan has column sums 1/C; the factor C makes psi a mean of S under the plan. With a
    relaxed class marginal psi is divided by the column's mass instead, so that it stays a mean.
    Source: arXiv 2605.28347; the factor C is ours (spec: psi would be about sim / C).

    Args:
        similarity: Cosines of patches and classes, (..., M, C); half types are computed in fp32.
        logit_scale: CLIP's factor.
        config: Marginals, cost, solver.

    Returns:
        psi (..., C) and the solved plan.

    Raises:
        ValueError: The similarity is empty or holds NaN or infinity.
    """
    if similarity.dtype != torch.float64:
        similarity = similarity.float()
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
