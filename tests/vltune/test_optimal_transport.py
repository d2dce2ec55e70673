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


@pytest.mark.parametrize(("M", "C"), [(7, 5), (5, 11), (1, 4), (13, 1)])
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_scaling])
def test_agrees_with_pot(M: int, C: int, epsilon: float, solve: type(sinkhorn)) -> None:
    """Plan, both marginals and transport cost of POT's log-domain solver in fp64."""
    cost, a, b = problem(M, C, seed=M * C + 1)
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


@pytest.mark.parametrize("seed", range(3))
def test_scaling_form_falls_back_where_floats_do_not_reach(seed: int) -> None:
    """exp(-1 / 0.002) is 0 in fp32: without the log domain columns would divide by zero."""
    cost, a, b = (value.float() for value in problem(6, 4, seed=seed))
    options = {"epsilon": 0.002, "max_iter": 300, "tolerance": 1e-4}
    scaling, log = sinkhorn_scaling(cost, a, b, **options), sinkhorn(cost, a, b, **options)
    assert (scaling.solver, scaling.num_fallback) == ("scaling+log", 6)
    assert (log.solver, log.num_fallback) == ("log", 0)
    assert torch.equal(scaling.plan, log.plan)


def test_only_the_chunk_that_needs_it_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two problems of 5 x 3; only the last problem has costs of 200 epsilon."""
    monkeypatch.setattr("vltune.sinkhorn.CHUNK_ELEMENTS", 30)
    cost, a, b = (value.float() for value in problem(5, 3, seed=4))
    cost[1, 2, 0, 0] = 20.0
    result = sinkhorn_scaling(cost, a, b, epsilon=0.1, max_iter=200, tolerance=1e-6)
    assert (result.solver, result.num_fallback) == ("scaling+log", 2)
    whole = sinkhorn(cost, a, b, epsilon=0.1, max_iter=200, tolerance=1e-6)
    assert torch.allclose(result.plan, whole.plan, atol=1e-6)
    assert result.converged.all()


@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_scaling])
@pytest.mark.parametrize("rho", [math.inf, 0.1])
def test_gradients_are_finite_beside_empty_rows_and_columns(
    solve: type(sinkhorn), rho: float
) -> None:
    cost, a, b = problem(5, 3, seed=1, batch=())
    a[2], b[1] = 0.0, 0.0
    leaves = [cost.requires_grad_(), (a / a.sum()).requires_grad_(), (b / b.sum()).requires_grad_()]
    result = solve(*leaves, epsilon=0.1, max_iter=30, tolerance=0.0, relaxation=rho)
    value = (result.plan * cost.detach() ** 2).sum()
    for gradient in torch.autograd.grad(value, leaves):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_scaling])
def test_relaxed_convergence_means_the_optimum(solve: type(sinkhorn)) -> None:
    """Fixed point by hand: v = (b / K^T u)^d means column mass = b^d (K^T u)^(1-d)."""
    cost, a, b = problem(6, 4, seed=7, batch=(3,))
    options = {"epsilon": 0.1, "tolerance": 1e-9, "relaxation": 0.3}
    few = solve(cost, a, b, max_iter=1, **options)
    many = solve(cost, a, b, max_iter=5000, **options)
    assert not few.converged.any()
    assert many.converged.all()
    assert (few.marginal_error > many.marginal_error).all()


@pytest.mark.parametrize("solver", ["log", "scaling"])
def test_half_precision_similarity_is_solved_in_fp32(solver: str) -> None:
    similarity = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)).half()
    config = TransportConfig(epsilon=0.1, solver=solver)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        psi, result = transport(similarity, 10.0, config)
    assert psi.dtype == result.plan.dtype == torch.float32
    assert torch.allclose(psi, transport(similarity.float(), 10.0, config)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [("nan", "NaN"), ("negative", "marginal a"), ("empty", "no mass"), ("totals", "equal totals")],
)
def test_impossible_problems_are_refused(change: str, word: str) -> None:
    cost, a, b = problem(5, 3, seed=1, batch=(2,))
    if change == "nan":
        cost[1, 0, 0] = math.nan
    elif change == "negative":
        a[0, 1] = -0.1
    elif change == "empty":
        b[1] = 0.0
    else:
        b[1] *= 2
    for solve in (sinkhorn, sinkhorn_scaling):
        with pytest.raises(ValueError, match=word):
            solve(cost, a, b, epsilon=0.1, max_iter=5)
