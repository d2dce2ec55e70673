import pytest
import torch

from vltune.backbones.flow_matching import (
    draw_flow,
    euler_sample,
    flow_at,
    flow_loss,
    guided,
)


def test_state_and_velocity_by_hand() -> None:
    """X = (4, 8), noise = (0, 2), t = 1/4: state = 3/4 (0, 2) + 1/4 (4, 8) = (1, 3.5)."""
    targets, noise = torch.tensor([[[4.0, 8.0]]]), torch.tensor([[[0.0, 2.0]]])
    draw = flow_at(targets, noise, torch.tensor([0.25]))
    assert draw.states.tolist() == [[[1.0, 3.5]]]
    assert draw.velocities.tolist() == [[[4.0, 6.0]]]


def test_ends_of_the_line() -> None:
    targets, noise = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert torch.equal(flow_at(targets, noise, torch.zeros(2)).states, noise)
    assert torch.equal(flow_at(targets, noise, torch.ones(2)).states, targets)


def test_loss_by_hand_and_by_example() -> None:
    """Errors 1, 1, 1, 3 -> 12 / 4 = 3; a perfect example -> 0."""
    velocities = torch.zeros(2, 2, 2)
    predicted = torch.zeros(2, 2, 2)
    predicted[0] = torch.tensor([[1.0, -1.0], [1.0, 3.0]])
    assert flow_loss(predicted, velocities).tolist() == [3.0, 0.0]


def test_guidance_formula() -> None:
    """v_0 + g (v_c - v_0): 1 + 3 (2 - 1) = 4; at 1 the conditional, at 0 the unconditional."""
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert guided(conditional, unconditional, 3.0).item() == 4.0
    assert guided(conditional, unconditional, 1.0).item() == 2.0
    assert guided(conditional, unconditional, 0.0).item() == 1.0


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_exact_on_a_constant_field(steps: int) -> None:
    noise, targets = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    reached = euler_sample(lambda states, times: targets - noise, noise, steps)
    torch.testing.assert_close(reached, targets)


def test_euler_by_hand_on_a_field_that_grows() -> None:
    """V = 6 t in 3 steps from 0: (0 + 2 + 4) / 3 = 2."""
    reached = euler_sample(
        lambda states, times: 6 * times[:, None, None].expand_as(states), torch.zeros(1, 1, 1), 3
    )
    assert reached.item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        euler_sample(lambda states, times: states, torch.zeros(1, 1, 1), 0)


def test_draws_depend_on_the_generator_alone() -> None:
    targets = torch.randn(5, 3, 2)
    first = draw_flow(targets, torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    again = draw_flow(targets, torch.Generator().manual_seed(3))
    other = draw_flow(targets, torch.Generator().manual_seed(4))
    assert torch.equal(first.states, again.states)
    assert not torch.equal(first.times, other.times)
    assert bool(((first.times >= 0) & (first.times < 1)).all())
    torch.testing.assert_close(
        first.states + (1 - first.times)[:, None, None] * first.velocities, targets
    )
