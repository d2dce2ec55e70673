import math

import pytest
import torch
from torch.nn import functional as F

from vltune.losses import asymmetric_loss


def test_two_labels_by_hand() -> None:
    """Logit 0: p = 0.5. Positive: (1 - 0.5)^1 * ln 2. Negative: q = 0.45, 0.45^2 * -ln 0.55."""
    loss = asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(0.5 * math.log(2) - 0.45**2 * math.log(0.55), rel=1e-6)


def test_without_focusing_and_shift_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(3, 7) * 5, torch.randint(0, 2, (3, 7))
    ours = asymmetric_loss(logits, labels, gamma_neg=0, gamma_pos=0, clip=0)
    theirs = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / 3
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_unknown_labels_have_no_loss_and_no_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([[1, -1, 0], [-1, -1, -1]])
    asymmetric_loss(logits, labels).backward()
    assert torch.equal(logits.grad[labels == -1], torch.zeros(4))
    assert (logits.grad[labels != -1] != 0).all()
    nothing = asymmetric_loss(logits, torch.full((2, 3), -1))
    assert nothing.item() == 0.0
    nothing.backward()


def test_easy_negatives_below_the_shift_are_ignored_and_extremes_are_finite() -> None:
    """P = sigmoid(-4) = 0.018 < 0.05: shifted to zero."""
    assert asymmetric_loss(torch.tensor([[-4.0]]), torch.tensor([[0]])).item() == 0.0
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[0, 1]]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_gradients_stay_finite_for_every_focusing(gamma: float) -> None:
    """A power below 1 has an infinite slope at 0, which easy labels reach (p < clip, p = 1)."""
    logits = torch.tensor([[-9.0, 60.0, -60.0, 0.3]], requires_grad=True)
    for labels in (torch.tensor([[0, 1, 0, 1]]), torch.tensor([[1, 0, 1, 0]])):
        loss = asymmetric_loss(logits, labels, gamma_neg=gamma, gamma_pos=gamma)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()


def test_gradient_agrees_with_finite_differences() -> None:
    logits = torch.tensor([[0.7, -1.3, 2.1], [-0.2, 0.4, -2.5]], dtype=torch.float64)
    labels = torch.tensor([[1, 0, -1], [0, 1, 0]])
    assert torch.autograd.gradcheck(
        lambda x: asymmetric_loss(x, labels, gamma_neg=2.5), logits.requires_grad_()
    )


def test_a_broken_logit_of_an_unknown_label_reaches_nobody() -> None:
    logits = torch.tensor([[math.nan, 0.5]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[-1, 1]]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad[0, 0] == 0
    assert torch.isfinite(logits.grad).all()


def test_wrong_labels_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="1, 0 or -1"):
        asymmetric_loss(torch.zeros(1, 2), torch.tensor([[2, 0]]))
    with pytest.raises(ValueError, match="disagree"):
        asymmetric_loss(torch.zeros(1, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="no image"):
        asymmetric_loss(torch.zeros(0, 2), torch.zeros(0, 2))
