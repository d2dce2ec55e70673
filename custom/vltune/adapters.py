"""Per-condition residual adapters on frozen patch features (arXiv 2605.28347)."""

import math

import torch
from torch import Tensor, nn


class ConditionAdapters(nn.Module):
    """One LoRA-like adapter a condition: V_k = V + (alpha / r) (V down_k) up_k.

    The paper writes W_up(W_down(V)); the residual and `up` = 0 at the start, which keeps training
    near the zero-shot model, are our reading.

    Args:
        num_conditions: K.
        embed_dim: D.
        rank: r, the paper's D_s.
        alpha: Scale times rank.
        generator: Seeds `down`.
    """

    def __init__(
        self,
        num_conditions: int,
        embed_dim: int,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(num_conditions, embed_dim, rank) < 1:
            raise ValueError(
                f"expected K, D and rank >= 1, got {num_conditions}, {embed_dim}, {rank}"
            )
        self.scale = alpha / rank
        down = torch.randn(num_conditions, embed_dim, rank, generator=generator)
        self.down = nn.Parameter(down / math.sqrt(embed_dim))
        self.up = nn.Parameter(torch.zeros(num_conditions, rank, embed_dim))

    def forward(self, patch_features: Tensor) -> Tensor:
        """Adapted patches: (B, M, D) -> (B, K, M, D), not normalised."""
        hidden = torch.einsum("bmd,kdr->bkmr", patch_features, self.down)
        return patch_features.unsqueeze(1) + self.scale * torch.einsum(
            "bkmr,krd->bkmd", hidden, self.up
        )

    def cosine_similarity(self, patch_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosines of adapted patches and texts without ever building (B, K, M, D).

        With h = scale V down: <V_k, t> = <V, t> + <h, up t> and
        |V_k|^2 = |V|^2 + 2 <h, up V> + h up up^T h, so everything beyond V T^T has width r, not D.
        Exact up to rounding.

        Args:
            patch_features: V, (B, M, D).
            text_features: (K, C, D) or (1, C, D), unit norm.

        Returns:
            (B, K, M, C).
        """
        (B, M, D), (K, _, r) = patch_features.shape, self.down.shape
        flat = patch_features.reshape(B * M, D)
        # One product with all conditions' factors side by side: (D, K r) twice.
        hidden = self.scale * (flat @ self.down.permute(1, 0, 2).reshape(D, K * r))
        projected = flat @ self.up.permute(2, 0, 1).reshape(D, K * r)
        hidden = hidden.view(B, M, K, r).transpose(1, 2)  # (B, K, M, r)
        projected = projected.view(B, M, K, r).transpose(1, 2)
        texts = text_features.expand(K, -1, -1)
        dot = torch.matmul(patch_features.unsqueeze(1), texts.transpose(1, 2))
        dot = dot + torch.matmul(hidden, torch.matmul(self.up, texts.transpose(1, 2)))
        gram = torch.matmul(self.up, self.up.transpose(1, 2))  # (K, r, r)
        square = flat.pow(2).sum(dim=-1).view(B, 1, M)
        square = square + (hidden * (2 * projected + torch.matmul(hidden, gram))).sum(dim=-1)
        # Rounding can push the square of a vanishing vector below zero.
        return dot * square.clamp_min(1e-12).rsqrt().unsqueeze(-1)
