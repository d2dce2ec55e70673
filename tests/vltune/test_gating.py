import pytest
import torch

from vltune.gating import ConditionGate, combine

B, K, C, D = 2, 5, 7, 11


def test_gate_starts_uniform_and_rows_sum_to_one() -> None:
    gate = ConditionGate(D, K, 3, 0, torch.Generator().manual_seed(0))
    assert torch.allclose(gate(torch.randn(B, D)), torch.full((B, K), 1 / K))
    with torch.no_grad():
        gate.up.normal_()
    weights = gate(torch.randn(B, D))
    assert torch.allclose(weights.sum(-1), torch.ones(B))
    assert weights.std() > 0


def test_gate_by_hand() -> None:
    """X = 2, down = 1, up = (0, 0.5): logits (0, 1)."""
    gate = ConditionGate(1, 2, 1, 0, torch.Generator())
    with torch.no_grad():
        gate.down.fill_(1.0)
        gate.up.copy_(torch.tensor([[0.0, 0.5]]))
    assert torch.allclose(gate(torch.tensor([[2.0]])), torch.tensor([[0.0, 1.0]]).softmax(-1))


def test_psi_is_taken_only_where_it_is_wanted() -> None:
    with_psi = ConditionGate(D, K, 3, C, torch.Generator())
    assert with_psi(torch.randn(B, D), torch.randn(B, K, C)).shape == (B, K)
    with pytest.raises(ValueError, match="needs psi"):
        with_psi(torch.randn(B, D))
    with pytest.raises(ValueError, match="does not take psi"):
        ConditionGate(D, K, 3, 0, torch.Generator())(torch.randn(B, D), torch.randn(B, K, C))


def test_combination_by_hand() -> None:
    """0.25 * (4, 8) + 0.75 * (0, -4) = (1, -1)."""
    logits = torch.tensor([[[4.0, 8.0], [0.0, -4.0]]])
    assert torch.equal(combine(logits, torch.tensor([[0.25, 0.75]])), torch.tensor([[1.0, -1.0]]))
