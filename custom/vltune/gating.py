"""From K predictions to one: a low-rank router weighs the conditions by the image."""

import math

import torch
from torch import Tensor, nn


class ConditionGate(nn.Module):
    """omega = softmax(x down up): the gate P(r | d) of arXiv 2605.28347.

    Zero initialisation of `up` makes the gate uniform at the start.

    Args:
        embed_dim: D.
        num_conditions: K.
        rank: Width of the router.
        num_classes: C to feed it the scores psi too, 0 for the image alone.
        generator: Seeds `down`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_conditions: int,
        rank: int,
        num_classes: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width = embed_dim + num_classes * num_conditions
        self.uses_psi = num_classes > 0
        down = torch.randn(width, rank, generator=generator)
        self.down = nn.Parameter(down / math.sqrt(width))
        self.up = nn.Parameter(torch.zeros(rank, num_conditions))

    def forward(self, image_features: Tensor, psi: Tensor | None = None) -> Tensor:
        """Weigh the conditions.

        Args:
            image_features: (B, D), unit norm.
            psi: Scores (B, K, C) if the gate was built to see them, else None.

        Returns:
            (B, K), rows sum to 1.

        Raises:
            ValueError: psi is missing where it is wanted, or given where it is not.
        """
        if self.uses_psi != (psi is not None):
            raise ValueError(f"this gate {'needs' if self.uses_psi else 'does not take'} psi")
        x = image_features if psi is None else torch.cat([image_features, psi.flatten(1)], dim=1)
        return ((x @ self.down) @ self.up).softmax(dim=-1)


def combine(logits: Tensor, gate: Tensor) -> Tensor:
    """Expectation over conditions: (B, K, C) and (B, K) -> (B, C)."""
    return torch.einsum("bkc,bk->bc", logits, gate)
