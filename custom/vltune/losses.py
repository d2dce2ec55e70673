"""Loss of multi-label recognition with unknown labels."""

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_FOCUS = 1e-8
"""The focusing powers start here: below 1, a power has no finite slope at 0."""


def asymmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_neg: float = 2.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> Tensor:
    r"""Asymmetric loss (Ridnik et al. 2021, Eqs. 4-7), unknown labels masked.

    L = - sum_(y=1) (1 - p)^gamma_pos log p - sum_(y=0) q^gamma_neg log(1 - q),
    p = sigmoid(logit), q = max(p - clip, 0), divided by the number of images.
    Deviation: gradients flow through the focusing weights, as in the equation.

    Args:
        logits: (B, C).
        labels: (B, C), 1 present, 0 absent, -1 unknown: no loss, no gradient.
        gamma_neg: Focusing of negatives, >= gamma_pos.
        gamma_pos: Focusing of positives.
        clip: Probability shift of negatives, in [0, 1).

    Returns:
        Scalar; 0 where no label is known.

    Raises:
        ValueError: No images, the shapes disagree, or a label is none of 1, 0, -1.
    """
    if logits.shape != labels.shape or not len(logits):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} disagree, or no image"
        )
    positive, negative = labels == 1, labels == 0
    if not bool((positive | negative | (labels == -1)).all()):
        values = labels.unique().tolist()  # type: ignore[no-untyped-call] # torch's stub
        raise ValueError(f"labels must be 1, 0 or -1, got {values}")
    # An unknown label's logit is cut out before anything is computed from it: even NaN stays there.
    logits = torch.where(positive | negative, logits, 0.0)
    probability = torch.sigmoid(logits)
    log_positive = F.logsigmoid(logits)
    shifted = (probability - clip).clamp_min(0)
    # log(1 - q) = log(1 - p) where nothing was shifted; written so that it stays exact near p = 1.
    log_negative = F.logsigmoid(-logits) if clip == 0 else torch.log1p(-shifted)
    loss_positive = (1 - probability).clamp_min(MIN_FOCUS).pow(gamma_pos) * log_positive
    loss_negative = shifted.clamp_min(MIN_FOCUS).pow(gamma_neg) * log_negative
    zero = torch.zeros_like(logits)
    known = torch.where(positive, loss_positive, zero) + torch.where(negative, loss_negative, zero)
    return -known.sum() / len(logits)
