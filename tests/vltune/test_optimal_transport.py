import math

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from vltune.config import ConfigError
from vltune.optimal_transport import (
    TransportConfig,
    class_similarity,
    patch_marginal,
    sinkhorn,
    sinkhorn_scaling,
    transport,
)


def problem(
    M: int, C: int, seed: int, batch: tuple[int, ...] = (2, 3)
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(*batch, M, C, generator=generator, dtype=torch.float64)
    a = torch.rand(*batch, M, generator=generator, dtype=torch.float64).softmax(-1)
    b = torch.rand(*batch, C, generator=generator, dtype=torch.float64).softmax(-1)
    return cost, a, b


@pytest.mark.parametrize(("M", "C"), [(7, 5), (3, 11), (1, 4), (13, 1)])
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_scaling])
def test_agrees_with_pot(M: int, C: int, epsilon: float, solve: type(sinkhorn)) -> None:
    """Plan, both marginals and transport cost of POT's log-domain solver in fp64."""
    cost, a, b = problem(M, C, seed=M * C)
    result = solve(cost, a, b, epsilon=epsilon, max_iter=20000, tolerance=1e-10)
    assert result.converged.all()
    assert torch.allclose(result.plan.sum(-1), a, atol=1e-12)
    assert torch.allclose(result.plan.sum(-2), b, atol=1e-9)
    for i, j in np.ndindex(2, 3):
        reference = ot.bregman.sinkhorn_log(
            a[i, j].numpy(),
            b[i, j].numpy(),
            cost[i, j].numpy(),
            epsilon,
            numItermax=20000,
            stopThr=1e-11,
        )
        assert np.allclose(result.plan[i, j].numpy(), reference, atol=1e-8)
        ours = float((result.plan[i, j] * cost[i, j]).sum())
        assert ours == pytest.approx(float((reference * cost[i, j].numpy()).sum()), abs=1e-7)


@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_scaling])
def test_rows_and_columns_without_mass_stay_empty(solve: type(sinkhorn)) -> None:
    cost, a, b = problem(5, 3, seed=1, batch=())
    a, b = a.clone(), b.clone()
    a[2], b[1] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    result = solve(cost, a, b, epsilon=0.1, max_iter=5000, tolerance=1e-10)
    assert torch.isfinite(result.plan).all()
    assert result.plan[2].sum() == 0
    assert result.plan[:, 1].sum() == 0
    rows, columns = [0, 1, 3, 4], [0, 2]
    reference = ot.sinkhorn(
        a[rows].numpy(),
        b[columns].numpy(),
        cost[rows][:, columns].numpy(),
        0.1,
        stopThr=1e-12,
        numItermax=5000,
    )
    assert np.allclose(result.plan[rows][:, columns].numpy(), reference, atol=1e-8)


@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_scaling])
@pytest.mark.parametrize("rho", [0.05, 1.0])
@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
def test_relaxed_class_marginal_agrees_with_pot(solve: type(sinkhorn), rho: float) -> None:
    """POT's unbalanced solver with reg_type="entropy" and a first marginal that is all but hard."""
    cost, a, b = problem(6, 4, seed=5, batch=())
    result = solve(cost, a, b, epsilon=0.1, max_iter=20000, tolerance=1e-12, relaxation=rho)
    reference = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(),
        b.numpy(),
        cost.numpy(),
        0.1,
        (1e8, rho),
        reg_type="entropy",
        numItermax=20000,
        stopThr=1e-13,
    )
    assert torch.allclose(result.plan.sum(-1), a, atol=1e-10)
    assert np.allclose(result.plan.numpy(), reference, atol=1e-6)


def test_small_epsilon_finds_the_assignment() -> None:
    """Uniform marginals of equal size: the plan tends to the optimal permutation (Hungarian)."""
    cost = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.7, 0.9], [0.6, 0.8, 0.1]], dtype=torch.float64)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    plan = sinkhorn(cost, third, third, epsilon=0.005, max_iter=5000, tolerance=1e-10).plan
    best = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64) / 3
    assert torch.allclose(plan, best, atol=1e-6)


def test_forms_agree_in_fp32_and_permuting_patches_permutes_the_plan() -> None:
    cost, a, b = (value.float() for value in problem(17, 7, seed=3))
    options = {"epsilon": 0.05, "max_iter": 500, "tolerance": 1e-6}
    log, scaling = sinkhorn(cost, a, b, **options), sinkhorn_scaling(cost, a, b, **options)
    assert torch.allclose(log.plan, scaling.plan, atol=1e-6)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    moved = sinkhorn(cost[..., order, :], a[..., order], b, **options)
    assert torch.allclose(moved.plan, log.plan[..., order, :], atol=1e-6)


def test_too_few_iterations_are_reported_by_problem() -> None:
    cost, a, b = problem(9, 5, seed=2, batch=(2,))
    cost[0] = 0.5  # a constant cost converges at once
    result = sinkhorn(cost, a, b, epsilon=0.02, max_iter=2, tolerance=1e-8)
    assert result.iterations == 2
    assert result.converged.tolist() == [True, False]
    assert result.marginal_error[1] > 1e-8


def test_one_patch_by_hand() -> None:
    """One patch, hard uniform classes: P[0, c] = 1/C, so psi_c = C * S_c / C = S_c."""
    similarity = torch.tensor([[[0.3, 0.1]]])
    psi, result = transport(similarity, 10.0, TransportConfig())
    expected = torch.tensor([3.0, 1.0]).softmax(-1)
    assert torch.allclose(psi, expected.unsqueeze(0), atol=1e-6)
    assert result.plan.shape == (1, 1, 2)


def test_marginal_and_cost_by_hand() -> None:
    """Largest cosines 0.4 and 0.2, scale 10, tau 4: logits 1.0 and 0.5."""
    similarity = torch.tensor([[0.4, 0.1], [0.0, 0.2]])
    assert torch.allclose(
        patch_marginal(similarity, 10.0, 4.0), torch.tensor([1.0, 0.5]).softmax(-1)
    )
    assert torch.equal(class_similarity(similarity, 10.0, "cosine"), similarity)
    assert torch.allclose(
        class_similarity(similarity, 10.0, "softmax"), (10 * similarity).softmax(-1)
    )


def test_detached_gradient_is_the_plan() -> None:
    """With cosine cost and a constant plan, d psi_c / d s[m, c] = C P[m, c]."""
    similarity = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    psi, result = transport(similarity, 10.0, TransportConfig(cost="cosine", epsilon=0.1))
    psi.sum().backward()
    assert torch.allclose(similarity.grad, 3 * result.plan)


@pytest.mark.parametrize("solver", ["log", "scaling"])
def test_unrolled_gradient_agrees_with_finite_differences(solver: str) -> None:
    config = TransportConfig(
        cost="cosine",
        epsilon=0.2,
        plan_gradient="unrolled",
        max_iter=20,
        tolerance=1e-30,
        solver=solver,
    )
    similarity = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: transport(s, 5.0, config)[0], similarity)


def test_relaxed_scores_stay_means_of_the_similarity() -> None:
    similarity = torch.rand(2, 6, 4)
    psi, _ = transport(
        similarity, 10.0, TransportConfig(cost="cosine", relaxation=0.05, max_iter=500)
    )
    assert (psi <= similarity.amax(-2) + 1e-6).all()
    assert (psi >= similarity.amin(-2) - 1e-6).all()


@pytest.mark.parametrize(
    "change", [{"epsilon": 0.0}, {"tau": -1.0}, {"relaxation": 0.0}, {"max_iter": 0}]
)
def test_wrong_configuration_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TransportConfig(**change)


def test_wrong_shapes_are_printed() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        sinkhorn(torch.rand(2, 3), torch.rand(3), torch.rand(3), epsilon=0.1, max_iter=5)
    with pytest.raises(ValueError, match="epsilon > 0"):
        sinkhorn(torch.rand(2, 3), torch.rand(2), torch.rand(3), epsilon=-1, max_iter=5)
    assert math.isinf(TransportConfig().relaxation)
